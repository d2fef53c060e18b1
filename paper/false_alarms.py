"""Two measures of a detector, never mixed: false alarms an hour on ordinary speech and noise, and false alarms per
1,000 confusable isolated words; with the misses, and their delay, at thresholds chosen on validation.

    python -m paper.false_alarms checkpoints/spot/commands --corpus data/spot --speech wake_words.zip --out results/spot

What is heard is written first (scores, in --cache), then read: a choice (smoothing, one threshold or one for each word)
is made on validation alone. The test's recordings are scored once."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi2

from kwslib.checkpoint import save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, KwsError, cli, write_json
from kwslib.metrics import speaker_bootstrap
from kwslib.spotter import load
from kwslib.wake import report, voices
from paper.commands import COMMANDS, HELD_FLITE, HELD_WORDS, near_words, span, words_for
from paper.streams import make_stream, noise_bed, sentences
from paper.wake import recordings

RATES = (0.5, 1.0, 2.0)  # false alarms an hour of ordinary speech, all words together
SMOOTHS = (1, 2, 3, 5)  # windows that a score is the mean of, tried on validation
PIECE = 60 * SAMPLE_RATE  # samples fed at a time
CONDITIONS = [  # name, dB of the words above the noise, way to listen
    ("clean", (40.0, 40.0), "windows"), ("clean", (40.0, 40.0), "carried"), ("noise", (5.0, 15.0), "windows"),
]  # fmt: skip


@dataclass
class Heard:
    """Scores of recordings, before smoothing: for each (times (T,), log-odds (T, labels)). hours: their length."""

    parts: list = field(default_factory=list)
    hours: float = 0.0

    def add(self, times, scores, samples):
        self.parts.append((times, scores))
        self.hours += samples / SAMPLE_RATE / 3600

    def smoothed(self, smooth):
        for times, scores in self.parts:
            yield times, mean_of_last(scores, smooth)


def hear(spotter, waves, mode="windows"):
    """Heard of int16 or float32 waves, through the stream object that an application uses."""
    found, how = Heard(), spotter.card["detector"] | {"smooth": 1}
    before, spotter.card["detector"] = spotter.card["detector"], how
    try:
        stream = spotter.stream(mode=mode, threshold=math.inf)
        for wave in waves:
            times, scores = [], []
            for at in range(0, len(wave), PIECE):
                stream.feed(wave[at : at + PIECE])
                times.append(stream.times), scores.append(stream.scores)
            stream.finish()
            times.append(stream.times), scores.append(stream.scores)
            found.add(np.concatenate(times), np.concatenate(scores), len(wave))
    finally:
        spotter.card["detector"] = before
    return found


def mean_of_last(scores, n):
    """Each row's mean with the n - 1 before it, of (T, labels)."""
    total = np.cumsum(np.vstack([np.zeros((1, scores.shape[1])), scores]), 0)
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - n, 0)
    return (total[ends] - total[starts]) / (ends - starts)[:, None]


def alarms(heard, smooth, apart):
    """The scores of all events in speech without keywords: a list for each label."""
    found = None
    for times, scores in heard.smoothed(smooth):
        found = found or [[] for _ in range(scores.shape[1])]
        for label, own in enumerate(found):
            own += report.peaks(times, scores[:, label], apart)
    return found


def pooled(events, offsets):
    """One list of all labels' events, each less its label's offset."""
    return [score - offset for own, offset in zip(events, offsets) for score in own]


def hits(heard, stream, labels, corpus, smooth, window, offsets):
    """For every keyword of a stream: its best score, less its label's offset, from its start to `window` after the
    word's end, and (times after the word's end, scores) there."""
    (times, scores), found = next(heard.smoothed(smooth)), []
    for (start, _, word), row in zip(stream.events, stream.rows):
        label, end = labels.index(word), start + span(corpus.waves[row, : corpus.samples[row]])[1] / SAMPLE_RATE
        near = (times >= start) & (times <= end + window)
        found.append((times[near] - end, scores[near, label] - offsets[label]))
    return np.array([s.max() if len(s) else -np.inf for _, s in found]), found


def delays(found, limit):
    """Seconds from the word's end to the first score at or above `limit`, of the keywords that reach it."""
    first = [(t[s >= limit][:1]) for t, s in found]
    return np.array([t[0] for t in first if len(t)])


def poisson(count, hours, level=0.95):
    """The exact interval of a rate of `count` events in so many hours (Garwood 1936): [low, high] an hour."""
    tail = (1 - level) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return [float(low / hours), float(chi2.ppf(1 - tail, 2 * count + 2) / 2 / hours)]


def rate_at(events, hours, limit):
    """{alarms, hours, per_hour, interval} of events at or above a threshold."""
    count = int(np.sum(np.asarray(events) >= limit))
    return {"alarms": count, "hours": hours, "per_hour": count / hours, "interval": poisson(count, hours)}


def missed_at(best, speakers, limit):
    """{n, misses, interval}: the share of keywords below a threshold, with a 95 % interval over speakers."""
    missed = best < limit
    draws = speaker_bootstrap(missed, speakers)
    return {"n": len(best), "misses": float(missed.mean()), "interval": np.quantile(draws, [0.025, 0.975]).tolist()}


class Measure:
    """Scores of a detector on everything that is measured, kept in a folder: nothing is heard twice."""

    def __init__(self, spotter, corpus, speech, cache, hours, stream_hours, at_once=200):
        self.spotter, self.corpus, self.speech, self.cache = spotter, corpus, speech, Path(cache)
        self.hours, self.stream_hours, self.at_once = hours, stream_hours, at_once
        how = spotter.card["detector"] if spotter else {}
        self.apart, self.window = how.get("refractory_s"), how.get("window_s")
        self.cache.mkdir(parents=True, exist_ok=True)

    def heard(self, name, waves, mode="windows"):
        """Heard of what `waves()` gives, or of the file that an earlier run left."""
        path = self.cache / f"{name}-{mode}.pickle"  # this program's own file
        if not path.exists():
            print(f"  hearing {path.stem}", file=sys.stderr, flush=True)
            path.write_bytes(pickle.dumps(hear(self.spotter, waves(), mode)))
        return pickle.loads(path.read_bytes())

    def stream(self, split, snr):
        return make_stream(
            self.corpus, COMMANDS, split, self.stream_hours, 1, words_a_minute=20, keyword_share=0.8, snr=snr
        )

    def noise(self, split):
        return noise_of(self.corpus, split).flatten()

    def ordinary(self, split, mode="windows"):
        """{kind: Heard} of what has no keyword: real running speech, synthetic sentences, noise alone."""
        spoken = [w for i, w in enumerate(recordings(self.speech, half=0)[None]) if i % 5 == 4]
        if split == "testing":
            spoken = recordings(self.speech, half=1)[None]
        bed = np.int16(noise_bed(np.random.default_rng(2), self.noise(split), 1200 * SAMPLE_RATE, (100, 3000)))
        how = dict(flite=HELD_FLITE if split == "testing" else None, noise=self.noise(split), seed=3)
        return {
            "running speech": self.heard(f"{split}-running", lambda: spoken, mode),
            "sentences": self.heard(
                f"{split}-sentences-{self.hours:g}h",
                lambda: sentences(words_for(split), self.hours, split, at_once=self.at_once, **how), mode,
            ),
            "noise": self.heard(f"{split}-noise", lambda: [bed], mode),
        }  # fmt: skip

    def confusable(self):
        """{group: (Heard, words)} of isolated words of the test: the corpus' others, and near words of voices and
        spellings never trained on, each with noise 30 dB below for 0.8 s before and after."""
        corpus, rng, found = self.corpus, np.random.default_rng(4), {}
        trained = set(self.spotter.card["wake"]["other_words"])
        others = (corpus.splits == "testing") & ~np.isin(corpus.words, COMMANDS)
        groups = {"words that trained": trained, "words of validation": set(HELD_WORDS["validation"])}
        groups["words never heard"] = set(corpus.words[others]) - set.union(*groups.values())
        for name, words in groups.items():
            rows = np.flatnonzero(others & np.isin(corpus.words, sorted(words)))
            clips = [alone(rng, corpus.waves[i, : corpus.samples[i]]) for i in rows]
            found[name] = (
                self.heard(f"confusable-{name.split()[-1]}", lambda clips=clips: clips),
                corpus.words[rows].tolist(),
            )
        near = near_words(words_for("testing"), 40, 5, held=True)
        texts = sorted({s for group in near.values() for s in group})
        voices_of = [("espeak-ng", None), ("espeak-ng", None), ("flite", HELD_FLITE)]
        if HELD_FLITE not in voices.engines().get("flite", []):
            voices_of = voices_of[:2]
        jobs = [voices.Job(t, e, v, "testing", 7000 + 9 * i + j)
                for i, t in enumerate(texts) for j, (e, v) in enumerate(voices_of)]  # fmt: skip
        spoken = self.cache / "near.pickle"
        if not spoken.exists():
            spoken.write_bytes(pickle.dumps(voices.speak(jobs, "near words", 1)))
        kept = [(j.text, w) for j, w in zip(jobs, pickle.loads(spoken.read_bytes())) if w is not None]
        scenes = [report.scene(rng, w, self.noise("testing")) for _, w in kept]
        found["near words"] = self.heard("confusable-near", lambda: scenes), [t for t, _ in kept]
        return found


def alone(rng, wave):
    """A clip with 0.8 s of quiet noise around it, int16."""
    level = max(1.0, 0.03 * np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    bed = rng.normal(0, level, len(wave) + 2 * round(0.8 * SAMPLE_RATE))
    bed[round(0.8 * SAMPLE_RATE) :][: len(wave)] += wave
    return np.int16(np.clip(bed, -32768, 32767))


def choose(m):
    """Smoothing and thresholds by the misses of validation at one false alarm an hour: (choices, the best of them)."""
    stream = m.stream("validation", (5.0, 30.0))
    scored = m.heard("validation-stream", lambda: [stream.wave])
    ordinary, choices = m.ordinary("validation"), []
    for smooth in SMOOTHS:
        kinds = [alarms(h, smooth, m.apart) for h in ordinary.values()]
        hours, events = sum(h.hours for h in ordinary.values()), [sum(own, []) for own in zip(*kinds)]
        each = [report.threshold(own, hours, 1 / len(COMMANDS)) for own in events]
        for own, offsets in (("one", [0.0] * len(COMMANDS)), ("for each word", [t - np.mean(each) for t in each])):
            best, _ = hits(scored, stream, COMMANDS, m.corpus, smooth, m.window, offsets)
            limits = {str(r): report.threshold(pooled(events, offsets), hours, r) for r in RATES}
            row = {"smooth": smooth, "threshold": own, "offsets": list(offsets), "limits": limits, "hours": hours}
            choices.append(row | {"misses": {r: float((best < t).mean()) for r, t in limits.items()}, "n": len(best)})
    return choices, min(choices, key=lambda c: (round(c["misses"]["1.0"], 4), c["smooth"]))


def test(m, chosen):
    """The test's measures at the chosen thresholds, and the curves."""
    smooth, offsets, limits = chosen["smooth"], chosen["offsets"], chosen["limits"]
    result = {"streams": {}, "ordinary": {}, "confusable": {}}
    ordinary = m.ordinary("testing")
    events = {k: pooled(alarms(h, smooth, m.apart), offsets) for k, h in ordinary.items()}
    for kind, h in ordinary.items():
        result["ordinary"][kind] = {r: rate_at(events[kind], h.hours, t) for r, t in limits.items()}
    every, hours = sum(events.values(), []), sum(h.hours for h in ordinary.values())
    result["ordinary"]["all"] = {r: rate_at(every, hours, t) for r, t in limits.items()}
    for name, snr, mode in CONDITIONS:
        stream = m.stream("testing", snr)
        try:
            scored = m.heard(f"testing-{name}", lambda stream=stream: [stream.wave], mode)
        except KwsError as e:
            result["streams"][f"{name}, {mode}"] = {"missing": str(e)}
            continue
        best, near = hits(scored, stream, COMMANDS, m.corpus, smooth, m.window, offsets)
        points = {}
        for rate, limit in limits.items():
            late = delays(near, limit)
            point = missed_at(best, stream.speakers, limit)
            words = {w: float((best[at] < limit).mean())
                     for w in COMMANDS if (at := [e[2] == w for e in stream.events]) and any(at)}  # fmt: skip
            point |= {"delay_s": float(np.median(late)), "delay_90_s": float(np.quantile(late, 0.9)), "words": words}
            points[rate] = point | {"speakers": len(set(stream.speakers))}
        points["curve"] = report.curve(best, every, hours)
        result["streams"][f"{name}, {mode}"] = points
    for name, (h, words) in m.confusable().items():
        best = np.array([(s - offsets).max() for _, s in h.smoothed(smooth)])
        result["confusable"][name] = {r: per_thousand(best, words, t) for r, t in limits.items()}
    return result


def per_thousand(best, words, limit):
    """{n, alarms, per_1000, interval, worst}: isolated words that are taken for a keyword. worst: the three words most
    often so, with their share."""
    wrong, words = best >= limit, np.array(words)
    count, n = int(wrong.sum()), len(wrong)
    shares = {w: float(wrong[words == w].mean()) for w in sorted(set(words.tolist()))}
    worst = dict(sorted(shares.items(), key=lambda pair: -pair[1])[:3])
    interval = [1000 * v for v in poisson(count, n)]
    return {"n": n, "alarms": count, "per_1000": 1000 * count / n, "interval": interval, "worst": worst}


def card_thresholds(chosen):
    """What the card's detector holds: {"0.5": {word: log-odds}, …}."""
    return {f"{float(r):g}": {w: round(t + o, 4) for w, o in zip(COMMANDS, chosen["offsets"])}
            for r, t in chosen["limits"].items()}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint of a detector, whose card gets the thresholds")
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--speech", required=True, help="wake_words.zip")
    parser.add_argument("--out", type=Path, default="results/spot", help="folder for commands.json")
    parser.add_argument("--cache", help="folder for scores (default: heard, in the checkpoint's folder)")
    parser.add_argument("--hours", type=float, default=6.0, help="synthetic sentences, each for validation and test")
    parser.add_argument("--stream-hours", type=float, default=1.4, help="length of each stream of keywords")
    parser.add_argument("--validate", action="store_true", help="choose on validation, and end")
    a = parser.parse_args()
    torch.set_num_threads(1)
    spotter, folder = load(a.checkpoint), Path(a.checkpoint)
    cache = a.cache or folder / "heard"
    m = Measure(spotter, load_corpus(a.corpus), a.speech, cache, a.hours, a.stream_hours)
    choices, chosen = choose(m)
    for c in choices:
        print(c["smooth"], c["threshold"], {r: f"{v:.1%}" for r, v in c["misses"].items()})
    if a.validate:
        return 0
    result = {"hours": a.hours, "stream_hours": a.stream_hours, "choices": choices, "chosen": chosen}
    result |= {"labels": COMMANDS, "model": spotter.card["model"], "wake": spotter.card["wake"]} | test(m, chosen)
    write_json(a.out / "commands.json", result)
    spotter.card["detector"] |= {"smooth": chosen["smooth"], "thresholds": card_thresholds(chosen)}
    spotter.card["validation"] = {k: chosen[k] for k in ("hours", "n", "misses")} | {"synthetic": False}
    save_checkpoint(folder / "model.safetensors", spotter.model.state_dict(), spotter.card)
    for kind in ("streams", "ordinary", "confusable"):
        print(json.dumps(result[kind], indent=1, default=str)[:3000])
    return 0


if __name__ == "__main__":
    cli(main)
