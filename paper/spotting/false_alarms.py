"""Two measures of a detector, never mixed: false alarms an hour on ordinary speech and noise, and false alarms per
1,000 confusable isolated words; with the misses, and their delay, at thresholds chosen on validation.

    python -m paper.spotting.false_alarms commands --corpus data/spot --speech wake_words.zip --out results/spot

measures the shipped detector. Several checkpoints are one detector, the mean of their scores. What is heard is written
first (scores, in --cache), then read: a choice (smoothing, one threshold or one for each word) is made on validation
alone, for each mode, windows and carried state, by itself. The test's recordings are scored once for each detector and
mode."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, cli, write_json
from kwslib.listening.stream import rule
from kwslib.models.ensemble import members_of
from kwslib.spotter import load
from kwslib.wake import report, voices
from paper.spotting.commands import COMMANDS, HELD_FLITE, HELD_WORDS, near_words, together, words_for
from paper.spotting.counts import (
    MODES,
    Heard,
    alarms,
    beside,
    by_word,
    delays,
    hits,
    missed_at,
    per_thousand,
    pooled,
    rate_at,
)
from paper.spotting.streams import joined, kept, make_stream, noise_bed, sentences
from paper.spotting.wake import recordings

RATES = (0.5, 1.0, 2.0)  # false alarms an hour of ordinary speech, all words together
SMOOTHS = (1, 2, 3, 5)  # windows that a score is the mean of, tried on validation
RESTARTS = {"windows": (0.0,), "carried": (0.0, 1.5)}  # restart_s, tried on validation
RESTS = (
    1.0,
    1.4,
    1.8,
    2.2,
)  # seconds without a second event of a word, the first with at most 5 repeats in 1,000 words
CHOSEN = ("restart_s", "smooth", "offsets", "limits")
PIECE = 60 * SAMPLE_RATE  # samples fed at a time
CONDITIONS = [  # name, dB of the words above the noise, way to listen
    ("clean", (40.0, 40.0), "windows"), ("clean", (40.0, 40.0), "carried"), ("noise", (5.0, 15.0), "windows"),
]  # fmt: skip


def hear(spotter, waves, mode="windows", restart=None):
    """Heard of int16 or float32 waves, through the stream object that an application uses. restart: as restart_s of the
    card's detector; None: what that says."""
    found, before = Heard(), spotter.card["detector"]
    restart = rule(spotter.card, mode)["restart_s"] if restart is None else restart
    spotter.card["detector"] = before | {"smooth": 1, mode: {"restart_s": restart}}
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


class Measure:
    """Scores of a detector on everything that is measured, kept in a folder: nothing is heard twice."""

    def __init__(self, spotter, corpus, speech, cache, hours, stream_hours, at_once=200):
        self.spotter, self.corpus, self.speech, self.cache = spotter, corpus, speech, Path(cache)
        self.hours, self.stream_hours, self.at_once = hours, stream_hours, at_once
        how = spotter.card["detector"]
        self.apart, self.window = how["refractory_s"], how["window_s"]
        digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in spotter.model.state_dict().values()))
        self.cache /= digest.hexdigest()[:12]  # another detector's scores are not taken for this one's
        self.cache.mkdir(parents=True, exist_ok=True)

    def heard(self, name, waves, mode="windows", restart=0.0):
        """Heard of what `waves()` gives, or of the file that an earlier run left."""
        path = self.cache / f"{name}-{mode}{f'-{restart:g}s' if restart else ''}.pickle"
        return kept(path, lambda: hear(self.spotter, waves(), mode, restart))

    def said(self, name, texts, make):
        """Synthetic speech of these texts, for every detector: what `make` gives, or an earlier run's file."""
        return kept(self.cache.parent / f"{name}-{zlib.crc32(' '.join(texts).encode()):08x}.pickle", make)

    def stream(self, split, snr):
        return make_stream(
            self.corpus, COMMANDS, split, self.stream_hours, 1, words_a_minute=20, keyword_share=0.8, snr=snr
        )

    def noise(self, split):
        return noise_of(self.corpus, split).flatten()

    def sentences(self, words, split):
        """Int16 waves of synthetic sentences in `words`, by a split's voices, as many as last for `hours`."""
        flite = HELD_FLITE if split == "testing" else None
        how = dict(flite=flite, noise=self.noise(split), seed=3, at_once=self.at_once)
        return sentences(words, self.hours, split, **how)

    def waves(self, split):
        """{kind: function that gives int16 waves} of what has no keyword, each kind in pieces of ten minutes: real
        running speech, synthetic sentences, noise alone."""
        noise, test = self.noise(split), split == "testing"

        def running():
            halves = recordings(self.speech, half=int(test))[None]
            return joined(halves if test else halves[4::5])

        def bed():
            return [np.int16(noise_bed(np.random.default_rng(2), noise, 1200 * SAMPLE_RATE, (100, 3000)))]

        def spoken():
            words = words_for(split)
            name = f"{split}-sentences-{self.hours:g}h"
            return joined(self.said(name, words, lambda: list(self.sentences(words, split))))

        return {"running speech": running, "sentences": spoken, "noise": bed}

    def ordinary(self, split, *how):
        """{kind: Heard} of `waves`."""
        names = {"running speech": "speech", "sentences": f"{self.hours:g}h-of-sentences", "noise": "noise"}
        return {kind: self.heard(f"{split}-{names[kind]}", waves, *how) for kind, waves in self.waves(split).items()}

    def confusable(self):
        """{group: (Heard, words)} of isolated words of the test: the corpus' others, and near words of voices and
        spellings never trained on, each with noise 30 dB below for 0.8 s before and after."""
        corpus, rng, found = self.corpus, np.random.default_rng(4), {}
        trained = set(self.spotter.card["wake"]["other_words"])
        others = (corpus.splits == "testing") & ~np.isin(corpus.words, COMMANDS)
        groups = {"words that trained": trained, "words that the first weights knew": set(HELD_WORDS["validation"])}
        groups["words left out"] = set(corpus.words[others]) - set.union(*groups.values())
        for name, words in groups.items():
            rows = np.flatnonzero(others & np.isin(corpus.words, sorted(words)))
            clips = [alone(rng, corpus.waves[i, : corpus.samples[i]]) for i in rows]
            found[name] = (
                self.heard(f"confusable-{name.split()[-1]}", lambda clips=clips: clips),
                corpus.words[rows].tolist(),
            )
        near = near_words(words_for("testing"), 40, 5, held=True)
        texts = sorted({s for group in near.values() for s in group})
        texts += sorted({*words_for("testing", holding=True)} - {*texts})
        voices_of = [("espeak-ng", None), ("espeak-ng", None), ("flite", HELD_FLITE)]
        if HELD_FLITE not in voices.engines().get("flite", []):
            voices_of = voices_of[:2]
        jobs = [voices.Job(t, e, v, "testing", 7000 + 9 * i + j)
                for i, t in enumerate(texts) for j, (e, v) in enumerate(voices_of)]  # fmt: skip
        spoken = self.said("near", texts, lambda: voices.speak(jobs, "near words", 1))
        said = [(j.text, w) for j, w in zip(jobs, spoken) if w is not None]
        scenes = [report.scene(rng, w, self.noise("testing")) for _, w in said]
        found["near words"] = self.heard("confusable-near", lambda: scenes), [t for t, _ in said]
        return found


def alone(rng, wave):
    """A clip with 0.8 s of quiet noise around it, int16."""
    level = max(1.0, 0.03 * np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    bed = rng.normal(0, level, len(wave) + 2 * round(0.8 * SAMPLE_RATE))
    bed[round(0.8 * SAMPLE_RATE) :][: len(wave)] += wave
    return np.int16(np.clip(bed, -32768, 32767))


def choose(m, mode):
    """Smoothing, thresholds and, of carried state, whether it starts anew, by the misses of validation at one false
    alarm an hour: (choices, the best of them)."""
    stream, name, choices = m.stream("validation", CONDITIONS[0][1]), f"stream-validation-clean-{m.stream_hours:g}h", []
    scored = {r: m.heard(name, lambda: [stream.wave], mode, r) for r in RESTARTS[mode]}
    ordinary = {r: m.ordinary("validation", mode, r).values() for r in RESTARTS[mode]}
    for restart, smooth in product(RESTARTS[mode], SMOOTHS):
        kinds = [alarms(h, smooth, m.apart) for h in ordinary[restart]]
        hours, events = sum(h.hours for h in ordinary[restart]), [sum(own, []) for own in zip(*kinds)]
        each = [report.threshold(own, hours, 1 / len(COMMANDS)) for own in events]
        for own, offsets in (("one", [0.0] * len(COMMANDS)), ("for each word", [t - np.mean(each) for t in each])):
            best, _ = hits(scored[restart], stream, COMMANDS, m.corpus, smooth, m.window, offsets)
            limits = {str(r): report.threshold(pooled(events, offsets), hours, r) for r in RATES}
            row = {
                "restart_s": restart,
                "smooth": smooth,
                "threshold": own,
                "offsets": list(offsets),
                "limits": limits,
                "hours": hours,
            }
            choices.append(row | {"misses": {r: float((best < t).mean()) for r, t in limits.items()}, "n": len(best)})
    chosen = min(choices, key=lambda c: (round(c["misses"]["1.0"], 4), c["smooth"]))
    limits, how = chosen["limits"]["1.0"] + np.array(chosen["offsets"]), (chosen["smooth"], m.window)
    repeats = {r: beside(scored[chosen["restart_s"]], stream, COMMANDS, *how, limits, r)["repeats"] for r in RESTS}
    rest = next((r for r, v in repeats.items() if v <= 5), RESTS[-1])
    return choices, chosen | {"refractory_s": rest, "repeats": {str(r): v for r, v in repeats.items()}}


def test(m, chosen):
    """The test's measures at the thresholds that are `chosen` for each mode, and the curves."""
    result, every = {"streams": {}, "confusable": {}}, {}
    for mode, end in MODES.items():
        restart, smooth, offsets, limits = (chosen[mode][k] for k in CHOSEN)
        ordinary = m.ordinary("testing", mode, restart)
        events = {k: pooled(alarms(h, smooth, m.apart), offsets) for k, h in ordinary.items()}
        counted = {k: (events[k], h.hours) for k, h in ordinary.items()}
        counted["all"] = every[mode] = sum(events.values(), []), sum(h.hours for h in ordinary.values())
        result["ordinary" + end] = {k: {r: rate_at(*c, t) for r, t in limits.items()} for k, c in counted.items()}
        if mode == "windows":  # of which words they are
            own = alarms(ordinary["sentences"], smooth, m.apart)
            result["alarms_in_sentences"] = by_word(own, offsets, COMMANDS, limits)
    for name, snr, mode in CONDITIONS:
        restart, smooth, offsets, limits = (chosen[mode][k] for k in CHOSEN)
        stream = m.stream("testing", snr)
        at = f"stream-testing-{name}-{m.stream_hours:g}h"
        scored = m.heard(at, lambda stream=stream: [stream.wave], mode, restart)
        best, near = hits(scored, stream, COMMANDS, m.corpus, smooth, m.window, offsets)
        points = {}
        for rate, limit in limits.items():
            late = delays(near, limit)
            point = missed_at(best, stream.speakers, limit)
            words = {w: float((best[own] < limit).mean())
                     for w in COMMANDS if (own := [e[2] == w for e in stream.events]) and any(own)}  # fmt: skip
            point |= {"delay_s": float(np.median(late)), "delay_90_s": float(np.quantile(late, 0.9)), "words": words}
            limit, rest = limit + np.array(offsets), chosen[mode]["refractory_s"]
            point |= beside(scored, stream, COMMANDS, smooth, m.window, limit, rest)
            points[rate] = point | {"speakers": len(set(stream.speakers))}
        points["curve"] = report.curve(best, *every[mode])
        result["streams"][f"{name}, {mode}"] = points
    _, smooth, offsets, limits = (chosen["windows"][k] for k in CHOSEN)
    for name, (h, words) in m.confusable().items():
        best = np.array([(s - offsets).max() for _, s in h.smoothed(smooth)])
        result["confusable"][name] = {r: per_thousand(best, words, t) for r, t in limits.items()}
    return result


def card_rule(chosen):
    """What the card's detector holds of a mode: smoothing, rest, restart, and {"0.5": {word: log-odds}, …}."""
    each = {f"{float(r):g}": {w: round(t + o, 4) for w, o in zip(COMMANDS, chosen["offsets"])}
            for r, t in chosen["limits"].items()}  # fmt: skip
    found = {k: chosen[k] for k in ("smooth", "refractory_s")} | {"thresholds": each}
    return found | ({"restart_s": chosen["restart_s"]} if chosen["restart_s"] else {})


def write_card(card, chosen, result):
    """What the measure found, into a detector's card: how it listens, thresholds, validation, test, curve."""
    card["detector"] |= card_rule(chosen["windows"]) | {"carried": card_rule(chosen["carried"])}
    card["validation"] = {k: chosen["windows"][k] for k in ("hours", "n", "misses")}
    clean, carried = (result["streams"][f"clean, {mode}"] for mode in MODES)
    rates = chosen["windows"]["limits"]
    card["spotting"] = {"clean": {r: clean[r] for r in rates}, "carried": {r: carried[r] for r in rates}}
    card["spotting"] |= {"curve": clean["curve"]}
    card["spotting"] |= {k: result[k] for k in ("ordinary", "ordinary_carried", "confusable")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "checkpoints", nargs="+", help="checkpoints of a detector, which is their mean; or a shipped one's name"
    )
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--speech", required=True, help="wake_words.zip")
    parser.add_argument("--out", type=Path, default="results/spot", help="folder for commands.json")
    parser.add_argument("--save", help="folder that gets the checkpoint with its thresholds")
    parser.add_argument("--cache", default="tmp/spot", help="folder for scores, in one of its own for each detector")
    parser.add_argument("--hours", type=float, default=6.0, help="synthetic sentences, each for validation and test")
    parser.add_argument("--stream-hours", type=float, default=1.4, help="length of each stream of keywords")
    parser.add_argument("--validate", action="store_true", help="choose on validation, and end")
    a = parser.parse_args()
    torch.set_num_threads(1)
    spotter = together([load(path) for path in a.checkpoints])
    m = Measure(spotter, load_corpus(a.corpus), a.speech, a.cache, a.hours, a.stream_hours)
    result, chosen = {"hours": a.hours, "stream_hours": a.stream_hours}, {}
    for mode, end in MODES.items():
        choices, chosen[mode] = choose(m, mode)
        result |= {"choices" + end: choices, "chosen" + end: chosen[mode]}
        for c in choices:
            print(mode, c["restart_s"], c["smooth"], c["threshold"], {r: f"{v:.1%}" for r, v in c["misses"].items()})
    if a.validate:
        return 0
    result |= {"labels": COMMANDS, "model": spotter.card["model"], "members": len(members_of(spotter.model))}
    result |= {"wake": spotter.card["wake"]} | test(m, chosen)
    write_json(a.out / "commands.json", result)
    if a.save:
        write_card(spotter.card, chosen, result)
        save_checkpoint(Path(a.save) / "model.safetensors", spotter.model.state_dict(), spotter.card)
    for kind in ("streams", "ordinary", "ordinary_carried", "confusable"):
        print(json.dumps(result[kind], indent=1, default=str)[:3000])
    return 0


if __name__ == "__main__":
    cli(main)
