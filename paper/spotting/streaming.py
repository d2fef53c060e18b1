"""Spotting in continuous audio: synthetic streams with exact time stamps, detections, misses and false alarms.

    python -m paper.spotting.streaming mamba_light --corpus data/subset --out results/subset/streaming/mamba_light.json

A stream (streams.py) has keywords, other words and silence of held-out speakers over background noise, and follows from
its seed.
The threshold is chosen on a stream of the validation speakers; misses and false alarms are counted on one of the test
speakers.

Two ways to listen: `windows` classifies the last second again every hop; `carried` gives every frame to the model
once, carrying each Mamba block's state (Gu & Dao 2023, section 3.3.2), and averages its outputs over the last second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import SILENCE, UNKNOWN
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, cli, write_json
from kwslib.metrics import accuracy
from kwslib.models.layers import SequenceKWS
from kwslib.spotter import load
from paper.spotting.streams import make_stream

HOP = 0.1  # seconds between decisions
SMOOTH, REFRACTORY = 0.6, 1.5  # seconds over which posteriors are averaged, and without detections; set by hand
LATEST = 1.0  # seconds after the end of a clip in which a detection still counts: the window holds the word that long
ALARMS = 0.5  # an hour, at the operating point


@torch.no_grad()
def by_windows(spotter, wave, hop=HOP, batch=256):
    """Posteriors (steps, labels) of the second before each decision, and the times of the decisions (steps,) in s."""
    starts = torch.arange(0, len(wave) - CLIP + 1, round(hop * SAMPLE_RATE))
    windows = torch.from_numpy(wave).unfold(0, CLIP, round(hop * SAMPLE_RATE))
    return spotter.all_logits(windows, batch=batch).softmax(1).numpy(), ((starts + CLIP) / SAMPLE_RATE).numpy()


@torch.no_grad()
def by_carried_state(spotter, wave, hop=HOP, piece=30.0, overlap=0.5):
    """As `by_windows`, but each frame goes through the Mamba blocks once: their states are carried through the stream.

    Features and convolutions see pieces of `piece` seconds with `overlap` beyond both ends; the range of 80 dB is
    relative to the loudest frame of a piece, not of a second. Raises KwsError for a model without Mamba blocks.
    """
    model, front = spotter.model, spotter.frontend
    if not isinstance(model, SequenceKWS) or not hasattr(model.blocks[0], "mixer"):
        raise KwsError(f"model {spotter.card['model']} carries no state; use windows")
    rate = front.hop_length * 4  # a multiple of every front-end's stride, in samples
    size, margin = round(piece * SAMPLE_RATE / rate) * rate, round(overlap * SAMPLE_RATE / rate) * rate
    states, frames = [None] * len(model.blocks), []
    for start in range(0, len(wave), size):
        first = max(0, start - margin)
        part = torch.from_numpy(wave[first : start + size + margin])[None]
        x, _ = model.frontend(spotter.normalise(front(part)), None)
        stride = round(part.shape[1] / front.hop_length / x.shape[1])  # frames of features to one of the blocks
        step = front.hop_length * stride
        x = x[:, (start - first) // step :][:, : min(size, len(wave) - start) // step]
        for i, block in enumerate(model.blocks):
            x, states[i] = block(x, states[i], return_state=True)
        frames.append(model.head.norm(x)[0])
    frames = torch.cat(frames)
    second = CLIP // step  # frames in a second
    sums = torch.cat([frames.new_zeros(1, frames.shape[1]), frames.double().cumsum(0)])
    ends = torch.arange(second, len(frames) + 1, max(1, round(hop * SAMPLE_RATE / step)))
    means = ((sums[ends] - sums[ends - second]) / second).float()
    return model.head.classify(means).softmax(1).numpy(), (ends * step / SAMPLE_RATE).numpy()


def smoothed(posteriors, times, labels, smooth=SMOOTH):
    """Averages posteriors (steps, labels) over the last `smooth` seconds: index of the most likely label, and its mean.

    Both are (steps,). The mean is 0 where that label is the class of unknown words or of silence.
    """
    step = times[1] - times[0] if len(times) > 1 else 1.0
    n = max(1, round(smooth / step))
    sums = np.cumsum(np.vstack([np.zeros((n, posteriors.shape[1])), posteriors]), 0)
    mean = (sums[n:] - sums[:-n]) / n
    best = mean.argmax(1)
    return best, np.where(np.isin(np.array(labels)[best], (UNKNOWN, SILENCE)), 0.0, mean.max(1))


def detections(posteriors, times, labels, threshold, smooth=SMOOTH, refractory=REFRACTORY):
    """Post-processing: [(time s, label), …] from posteriors (steps, labels).

    Posteriors are averaged over the last `smooth` seconds. The most likely label is detected if its mean is above
    `threshold` and it is not the class of unknown words or silence; then there is no other for `refractory` seconds.

    The durations are set by hand, not searched for. The window holds a word for a second after its end, so a shorter
    refractory time may detect it twice; a shorter mean follows every syllable of a word that is not a keyword.
    """
    best, score = smoothed(posteriors, times, labels, smooth)
    found, until = [], -np.inf
    for i in np.flatnonzero(score > threshold):
        if times[i] >= until:
            found.append((float(times[i]), labels[best[i]]))
            until = times[i] + refractory
    return found


def thresholds_of(posteriors, times, labels, n=60):
    """About n rising thresholds: the number of steps above them falls, evenly on a log scale, from all to one."""
    _, score = smoothed(posteriors, times, labels)
    return np.unique(np.quantile(score, 1 - np.geomspace(1, 1 / len(score), n)))


def match(found, stream, latest=LATEST):
    """For each keyword of the stream the delay (s) of the detection that finds it, or None where it is missed.

    A keyword is found by the first detection of its own label between its start and `latest` seconds after its end,
    and a detection finds one keyword. The delay counts from the end of the clip's sound, so that it may be negative.
    """
    used, delays, i = set(), [], 0
    for start, end, word in stream.events:
        while i < len(found) and found[i][0] < start:
            i += 1
        delays.append(None)
        for j in range(i, len(found)):
            if found[j][0] > end + latest:
                break
            if found[j][1] == word and j not in used:
                used.add(j)
                delays[-1] = found[j][0] - end
                break
    return delays


def count(found, stream):
    """Misses and false alarms of detections: dict of n (keywords), miss_rate, false_alarms (every detection that
    finds no keyword), alarms_per_hour, hours, delay_s (median)."""
    delays = match(found, stream)
    spotted = [d for d in delays if d is not None]
    alarms = len(found) - len(spotted)
    return {
        "n": len(delays),
        "miss_rate": 1 - len(spotted) / max(1, len(delays)),
        "false_alarms": alarms,
        "alarms_per_hour": alarms / stream.hours,
        "hours": stream.hours,
        "delay_s": float(np.median(spotted)) if spotted else None,
    }


def sweep(posteriors, times, labels, stream, thresholds):
    """`count` at every threshold."""
    return [{"threshold": float(t), **count(detections(posteriors, times, labels, t), stream)} for t in thresholds]


def operating_point(curve, alarms=ALARMS):
    """The lowest threshold of a curve from which on false alarms never exceed `alarms` an hour; else the highest."""
    point = curve[-1]
    for entry in reversed(curve):
        if entry["alarms_per_hour"] > alarms:
            break
        point = entry
    return point


def measure_streaming(checkpoint, corpus, hours=4.0, seed=0):
    """The content of streaming/<model>.json: for each way to listen, the curve, and the test at the chosen threshold.

    The miss rate of the test has a 95 % interval that resamples speakers.
    """
    spotter, corpus = load(checkpoint), load_corpus(corpus)
    keywords = [w for w in spotter.labels if w not in (UNKNOWN, SILENCE)]
    streams = {
        split: make_stream(corpus, keywords, split, hours, seed, UNKNOWN in spotter.labels)
        for split in ("validation", "testing")
    }
    if not all(s.events for s in streams.values()):
        raise KwsError(f"no keyword falls into a stream of {hours:g} h; give more --hours")
    result = {
        "model": spotter.card["model"],
        "seed": spotter.card["recipe"]["seed"],
        "epochs": spotter.card["recipe"]["epochs"],
        "corpus": spotter.card["corpus"],
        "keywords": keywords,
        "labels": spotter.labels,
        "hours": hours,
        "post": {"smooth_s": SMOOTH, "refractory_s": REFRACTORY, "hop_s": HOP},
        "allowed_alarms_per_hour": ALARMS,
        "ways": {},
    }
    for name, listen in (("windows", by_windows), ("carried", by_carried_state)):
        try:
            heard = {split: listen(spotter, stream.wave) for split, stream in streams.items()}
        except KwsError as e:
            result["ways"][name] = {"missing": str(e)}
            continue
        thresholds = thresholds_of(*heard["validation"], spotter.labels)
        curves = {split: sweep(*heard[split], spotter.labels, streams[split], thresholds) for split in streams}
        chosen = operating_point(curves["validation"])
        test = next(p for p in curves["testing"] if p["threshold"] == chosen["threshold"])
        delays = match(detections(*heard["testing"], spotter.labels, chosen["threshold"]), streams["testing"])
        hit = accuracy(np.ones(len(delays)), np.array([d is not None for d in delays]), streams["testing"].speakers)
        test = test | {"miss_interval": [1 - p for p in hit["interval"][::-1]], "speakers": hit["speakers"]}
        result["ways"][name] = {"validation": chosen, "test": test, "curve": curves["testing"]}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="name of a shipped model, checkpoint file, or folder that holds one")
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--hours", type=float, default=4.0, help="length of each stream (default 4)")
    a = parser.parse_args()
    result = measure_streaming(a.checkpoint, a.corpus, a.hours)
    write_json(a.out, result)
    for name, way in result["ways"].items():
        print(
            f"{result['model']}, {name}: "
            + (
                way.get("missing")
                or f"{way['test']['miss_rate']:.1%} missed at {way['test']['alarms_per_hour']:.1f} false alarms an hour"
            )
        )
    return 0


if __name__ == "__main__":
    cli(main)
