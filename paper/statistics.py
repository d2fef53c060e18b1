"""What accuracy does not say: how sure a mean over seeds is, whether models differ, confidence, unknown words.

Accuracies over seeds come as a list of tables, one for each seed: {speaker: [right, clips]}, `by_speaker` of a run.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F

BINS = 15  # of confidence, equally wide (Guo et al. 2017, section 2)
DRAWS = 10_000


def mean_draws(groups, draws=DRAWS, seed=0):
    """Bootstrap the mean accuracy of models over their seeds AND the test speakers: model -> (draws,).

    groups: model -> its tables. A draw takes as many speakers as there are, the same ones for every model and seed
    (clips of a speaker are alike: Bisani & Ney 2004, section 2), and for each model n - 1 of its n seeds, both with
    replacement: n - 1, because n would give (n - 1) / n of the variance, two thirds at three seeds (Rao & Wu 1988). A
    single seed stays. Crossed resampling errs towards wide intervals (Owen 2007, section 4). Draws of two models can
    be subtracted. What a model gets does not depend on the others, if these were tested on the same speakers.
    """
    speakers = sorted({speaker for own in groups.values() for table in own for speaker in table})
    counts = {m: np.array([[t.get(s, (0, 0)) for s in speakers] for t in own], float) for m, own in groups.items()}
    rng, found = np.random.default_rng(seed), {model: [] for model in groups}
    of_seeds = {model: np.random.default_rng([seed, crc32(str(model).encode())]) for model in groups}
    for start in range(0, draws, 1000):  # a thousand at a time: memory
        size = min(1000, draws - start)
        weights = rng.multinomial(len(speakers), np.full(len(speakers), 1 / len(speakers)), size).astype(float)
        for model, table in counts.items():
            right, clips = (weights @ table[..., i].T for i in (0, 1))  # (size, seeds)
            picks = of_seeds[model].integers(len(table), size=(size, max(1, len(table) - 1)))
            found[model].append(np.take_along_axis(right / np.maximum(clips, 1), picks, 1).mean(1))
    return {model: np.concatenate(parts) for model, parts in found.items()}


def interval_of(means):
    """The 95 % percentile interval of bootstrap draws (n,): [low, high]."""
    return np.quantile(means, [0.025, 0.975]).tolist()


def two_sided_p(differences):
    """Twice the share of draws (n,) on the far side of zero (Efron & Tibshirani 1993, section 15.4), at least 2 / n."""
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, 2 * max(tail, 1 / len(differences))))


def holm(ps):
    """p values adjusted so that any false "significant" of the whole family stays below the level (Holm 1979)."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def effective_clips(table):
    """How many independent clips the clips of {speaker: [right, clips]} are worth: n / design effect, at most n.

    The design effect is the variance of the accuracy as a ratio over clusters, the speakers, divided by p (1 - p) / n
    (Kish 1965, sections 5.4 and 8.2).
    """
    right, clips = np.array(list(table.values()), float).T
    n, m, p = clips.sum(), len(clips), right.sum() / clips.sum()
    if m < 2 or p in (0, 1):
        return float(n)
    clustered = m / (m - 1) * np.square(right - p * clips).sum() / n**2
    return float(n / max(1.0, clustered / (p * (1 - p) / n)))


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
