"""What accuracy does not say: whether a model is better than another, is calibrated, and rejects unknown words."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.metrics import speaker_bootstrap

BINS = 15  # of confidence, equally wide (Guo et al. 2017, section 2)


def paired_bootstrap(better, worse, speakers, draws=10_000, seed=0):
    """Is `better` better? Both (n,) say which clips were right; speakers (n,) are resampled, the same for both.

    Returns the difference in accuracy, its 95 % interval, and p: twice the share of resamples on the far side of
    zero (Efron & Tibshirani 1993, section 15.4), at least 2 / draws.
    """
    gain = np.asarray(better, float) - np.asarray(worse, float)
    means = speaker_bootstrap(gain, speakers, draws, seed)
    tail = min((means <= 0).mean(), (means >= 0).mean())
    return {
        "difference": float(gain.mean()),
        "interval": np.quantile(means, [0.025, 0.975]).tolist(),
        "p": float(min(1.0, max(2 * tail, 2 / len(means)))),
    }


def calibration_error(probabilities, targets, bins=BINS):
    """Expected calibration error, the mean gap between confidence and accuracy over bins of confidence; its diagram.

    probabilities (n, classes), targets (n,). The diagram is a list of {confidence, accuracy, n}, empty bins left out.
    """
    confidence, predicted = (x.numpy() for x in probabilities.max(1))
    right = predicted == targets.numpy()
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    diagram = [
        {
            "confidence": float(confidence[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
            "n": int((place == b).sum()),
        }
        for b in range(bins)
        if (place == b).any()
    ]
    gap = sum(d["n"] * abs(d["confidence"] - d["accuracy"]) for d in diagram)
    return float(gap / len(right)), diagram


def temperature_of(logits, targets):
    """The temperature that makes softmax(logits / T) likeliest on held-out clips (Guo et al. 2017, section 4.2)."""
    log_t = torch.zeros((), requires_grad=True)
    logits, optimizer = logits.float(), torch.optim.LBFGS([log_t], lr=0.5, max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.exp(), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_t.detach().exp().clamp(0.05, 20))


def calibration(logits, targets, held_logits, held_targets):
    """Calibration error before and after a temperature chosen on held-out (validation) clips, with the diagrams."""
    t = temperature_of(held_logits, held_targets)
    error, diagram = calibration_error(logits.softmax(1), targets)
    scaled, after = calibration_error((logits / t).softmax(1), targets)
    return {"error": error, "diagram": diagram, "temperature": t, "error_scaled": scaled, "diagram_scaled": after}


def roc(known, unknown, points=101):
    """Rejection of unknown words by a threshold on `known`, `unknown`: scores of clips that are and are not keywords.

    Returns the area under the curve, the curve (share of unknown clips accepted, share of keywords accepted) at
    `points` places, and the share of keywords still accepted where 5 % of the unknown clips are.
    """
    known, unknown = np.sort(known), np.sort(unknown)
    below = np.searchsorted(unknown, known, "left") + np.searchsorted(unknown, known, "right")
    area = below.sum() / (2 * len(known) * len(unknown))  # ties count half
    accepted = np.linspace(0, 1, points)
    thresholds = np.quantile(unknown, 1 - accepted, method="higher")
    kept = 1 - np.searchsorted(known, thresholds, "right") / len(known)  # above the threshold
    kept[-1] = 1.0
    return {
        "area": float(area),
        "unknown_accepted": accepted.tolist(),
        "known_accepted": kept.tolist(),
        "known_at_5": float(kept[np.searchsorted(accepted, 0.05 - 1e-9)]),
    }
