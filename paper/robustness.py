"""Beyond clean one-second clips: a trained model in noise, shifted, cut, on the telephone; calibration; unknown words.

    python -m paper.robustness mamba_light --corpus data/subset --out results/subset/robustness/mamba_light.json

A shipped model, or a checkpoint of one's own. Nothing is chosen on the test split: the checkpoint and the temperature
were selected on validation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as AF

from kwslib.data.audio import loudest_window, mix_at_snr, shift, to_float
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import SILENCE, UNKNOWN, noise_of, select
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, cli, write_json
from kwslib.machine import keep_memory
from kwslib.metrics import accuracy
from kwslib.spotter import load
from paper.statistics import calibration, roc

SNRS = (-5, 0, 5, 10, 15, 20)  # dB
SHIFTS = (-300, -200, -100, -50, 0, 50, 100, 200, 300)  # ms; later is positive
CUTS = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # seconds
TALKERS = 6  # voices in the babble


def pink(n, size, generator):
    """Noise (n, size) whose power falls as 1 / frequency.

    Not audio.coloured_noise, which has PyTorch's generator, float32 and the first 50 Hz otherwise: other noise, so
    other numbers than the committed ones.
    """
    spectrum = torch.fft.rfft(torch.randn(n, size, generator=generator))
    spectrum /= torch.arange(spectrum.shape[1]).clamp(min=1).sqrt()
    return torch.fft.irfft(spectrum, n=size)


def talkers(speakers, own, generator):
    """For each clip, whose speaker is in `own` (n,), TALKERS clips of as many different other speakers: int64
    (n, TALKERS), places in `speakers` (m,), the speakers of the clips to draw from. Every speaker is as likely as any.
    """
    names, who = np.unique(speakers, return_inverse=True)
    order, counts = torch.from_numpy(np.argsort(who, kind="stable")), torch.from_numpy(np.bincount(who))
    chance = torch.rand(len(own), len(names), generator=generator)
    chance[torch.from_numpy(np.asarray(own)[:, None] == names)] = -1
    others = chance.topk(TALKERS).indices
    nth = (torch.rand(others.shape, generator=generator, dtype=torch.float64) * counts[others]).long()
    return order[counts.cumsum(0)[others] - counts[others] + nth]


def babble(corpus, own, generator):
    """For each clip, whose speaker is in `own` (n,), TALKERS other people of the test split, each saying any word of
    the corpus, all at the same loudness: (n, CLIP). None where there are not enough people.
    """
    rows = np.flatnonzero(corpus.splits == "testing")
    if len(np.unique(corpus.speakers[rows])) <= TALKERS:
        return None
    picks = rows[talkers(corpus.speakers[rows], own, generator).numpy()]
    total = torch.zeros(len(own), CLIP)
    for column in picks.T:  # not all at once: memory
        voices = to_float(torch.from_numpy(np.asarray(corpus.waves[column])))
        total += voices / voices.square().mean(1, keepdim=True).sqrt().clamp_min(1e-4)
    return total / TALKERS


def recorded(corpus, n, generator):
    """n random seconds, (n, CLIP), of the corpus' noise files that are kept for testing; None without such noise."""
    try:
        noise = to_float(torch.from_numpy(np.array(noise_of(corpus, "testing"))).flatten())
    except KwsError:
        return None
    return noise.unfold(0, CLIP, 1)[torch.randint(len(noise) - CLIP + 1, (n,), generator=generator)]


def seen_noises(recipe, labels):
    """kind of noise -> whether a model of this recipe and these classes was trained with it.

    A recipe that mixes in the corpus' background noise, or has silence as a class, hears the noise files of training:
    Speech Commands and the synthetic corpus both have pink noise among theirs. The files that are kept for testing are
    in no training, nor is any babble.
    """
    background = bool(recipe.get("background_snr") or recipe.get("background_volume") or SILENCE in labels)
    return {"pink": background, "babble": False, "recorded": False}


def mixed(waves, noise, snr):
    """waves + noise, both (n, size), at `snr` dB over the clip; scaled down where that would clip."""
    out = mix_at_snr(waves, noise, snr)
    return out / out.abs().amax(1, keepdim=True).clamp_min(1.0)


def shifted(waves, ms):
    """Every wave `ms` later (earlier where negative); the gap is zeros."""
    return shift(waves, round(ms * SAMPLE_RATE / 1000))


def loudest(waves, seconds):
    """(n, CLIP) waves of which only the loudest `seconds` are left, moved to the start; the rest is zero."""
    size = round(seconds * SAMPLE_RATE)
    start = torch.from_numpy(loudest_window(waves.numpy(), size, np.float32))
    out = waves.gather(1, start[:, None] + torch.arange(size))
    return torch.nn.functional.pad(out, (0, CLIP - size))


def telephone(waves):
    """300 to 3,400 Hz at 8 kHz, through the µ-law codec of G.711 (8 bits a sample)."""
    low = AF.resample(waves, SAMPLE_RATE, 8000)
    for _ in range(2):
        low = AF.highpass_biquad(AF.lowpass_biquad(low, 8000, 3400.0), 8000, 300.0)
    coded = AF.mu_law_decoding(AF.mu_law_encoding(low.clamp(-1, 1), 256), 256)
    return AF.resample(coded, 8000, SAMPLE_RATE)


def unknown_words(corpus, labels, split):
    """int16 waves (n, CLIP) of the words of `split` that the model does not know, and their samples."""
    rows = np.flatnonzero((corpus.splits == split) & ~np.isin(corpus.words, labels))
    return torch.from_numpy(np.asarray(corpus.waves[rows])), torch.from_numpy(np.asarray(corpus.samples[rows]))


def measure_robustness(checkpoint, corpus, seed=0):
    """The content of robustness/<model>.json: accuracy by condition, calibration, and rejection of unknown words.

    Accuracies are {n, speakers, accuracy, interval}. Every model gets the same noise, which follows from `seed`; "seen"
    says of each kind whether it was in this model's training.
    """
    spotter, corpus = load(checkpoint), load_corpus(corpus)
    task, recipe = spotter.card["recipe"]["task"], spotter.card["recipe"]
    test, validation = (select(corpus, task, s, recipe["seed"]) for s in ("testing", "validation"))
    waves, targets = to_float(test.waves), test.targets.numpy()
    generator = torch.Generator().manual_seed(seed)

    def score(changed, samples=test.samples):
        return accuracy(targets, spotter.all_logits(changed, samples).argmax(1).numpy(), test.speakers)

    whole = torch.full_like(test.samples, CLIP)
    clean = spotter.all_logits(waves, test.samples)
    result = {
        "model": spotter.card["model"],
        "seed": recipe["seed"],
        "epochs": recipe["epochs"],
        "corpus": spotter.card["corpus"],
        "clean": accuracy(targets, clean.argmax(1).numpy(), test.speakers),
        "predictions": clean.argmax(1).tolist(),
        "speakers": list(map(str, test.speakers)),
        "targets": targets.tolist(),
    }
    unknown, _ = unknown_words(corpus, [w for w in spotter.labels if w not in (UNKNOWN, SILENCE)], "testing")
    noises = {
        "pink": pink(len(waves), CLIP, generator),
        "babble": babble(corpus, test.speakers, generator),
        "recorded": recorded(corpus, len(waves), generator),
    }
    noises = {kind: noise for kind, noise in noises.items() if noise is not None}
    result["seen"] = {kind: seen_noises(recipe, spotter.labels)[kind] for kind in noises}
    result["snr"] = {
        kind: {str(snr): score(mixed(waves, noise, snr), whole) for snr in SNRS} for kind, noise in noises.items()
    }
    result["shift"] = {str(ms): score(shifted(waves, ms), whole) for ms in SHIFTS}
    result["cut"] = {
        str(s): {
            "masked": score(loudest(waves, s), torch.full_like(whole, round(s * SAMPLE_RATE))),
            "padded": score(loudest(waves, s), whole),
        }
        for s in CUTS
    }
    result["telephone"] = score(telephone(waves))
    held = spotter.all_logits(validation.waves, validation.samples)
    result["calibration"] = calibration(clean, test.targets, held, validation.targets)
    if len(unknown):
        known = clean.softmax(1).amax(1).numpy()
        other = spotter.all_logits(unknown).softmax(1).amax(1).numpy()
        result["open_set"] = {"unknown_clips": len(other), **roc(known, other)}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="name of a shipped model, checkpoint file, or folder that holds one")
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    a = parser.parse_args()
    keep_memory()
    result = measure_robustness(a.checkpoint, a.corpus)
    write_json(a.out, result)
    print(
        f"{result['model']}: clean {result['clean']['accuracy']:.2%}, "
        + ", ".join(f"{kind} at 0 dB {by['0']['accuracy']:.2%}" for kind, by in result["snr"].items())
        + f", telephone {result['telephone']['accuracy']:.2%}, calibration error {result['calibration']['error']:.3f}"
    )
    return 0


if __name__ == "__main__":
    cli(main)
