"""A day of sentences: the false alarms of the shipped detector of commands in many hours, at the thresholds that
`paper.spotting.false_alarms` chose on validation.

    python -m paper.spotting.day --hours 24 --measured results/spot/commands.json --out results/spot/day.json

The sentences are those of the test, and go on where its hours end: the first ones are the same. The sound is not kept,
the scores are (--cache). Other processes listen (--workers) while the next sentences are spoken."""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from kwslib.data.corpus import load_corpus
from kwslib.io import cli, cores, read_json, write_json
from kwslib.spotter import load
from paper.spotting.commands import COMMANDS, words_for
from paper.spotting.counts import Heard, alarms, by_word, pooled, rate_at
from paper.spotting.false_alarms import Measure, hear
from paper.spotting.streams import joined, kept


def count(heard, apart, chosen):
    """{"all": {rate: rate_at}, "words": {rate: {word: alarms}}} of what was Heard without a command; apart: seconds
    between two alarms of a word."""
    own, offsets, limits = alarms(heard, chosen["smooth"], apart), chosen["offsets"], chosen["limits"]
    together = pooled(own, offsets)
    every = {rate: rate_at(together, heard.hours, limit) for rate, limit in limits.items()}
    return {"all": every, "words": by_word(own, offsets, COMMANDS, limits)}


def side_by_side(detector, waves, workers):
    """Heard of int16 waves, which so many processes hear, each wave by itself."""
    every, spawn = Heard(), multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    with ProcessPoolExecutor(workers, spawn, _begin, (detector,)) as pool:
        for found in pool.map(_hear, waves):
            every.parts += found.parts
            every.hours += found.hours
    return every


def _begin(detector):
    global spotter
    torch.set_num_threads(1)
    spotter = load(detector)


def _hear(wave):
    return hear(spotter, [wave])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--detector", default="commands", help="name of a shipped detector, or a checkpoint")
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus: its held-out noise")
    parser.add_argument("--measured", default="results/spot/commands.json", help="what false_alarms wrote: thresholds")
    parser.add_argument("--out", default="results/spot/day.json")
    parser.add_argument("--cache", default="tmp/spot", help="folder for scores, in one of its own for each detector")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--workers", type=int, default=cores(), help="processes that listen (default: one a core)")
    a = parser.parse_args()
    torch.set_num_threads(1)
    m = Measure(load(a.detector), load_corpus(a.corpus), None, a.cache, a.hours, 0)
    words = words_for("testing")
    sound = joined(m.sentences(words, "testing"))
    heard = kept(m.cache / f"day-of-{a.hours:g}h.pickle", lambda: side_by_side(a.detector, sound, a.workers))
    chosen = read_json(a.measured, "measure")["chosen"]
    result = {"hours": a.hours, "said": len(words), "limits": chosen["limits"]} | count(heard, m.apart, chosen)
    write_json(a.out, result)
    print(result["all"])
    return 0


if __name__ == "__main__":
    cli(main)
