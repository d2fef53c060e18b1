"""The recipe of `kws wake` on words that it was not developed on: `python -m paper.spotting.unseen --out FILE`.

They are words of Speech Commands of two syllables or more that no shipped spotter knows. Every clip of them, of
whatever split, is judged: none trains, neither these detectors nor the weights that they start from. The false
alarms are those of the other half of the running speech, as in paper.spotting.wake. Two detectors, of some words each.
"""

import argparse
import time

import numpy as np
import torch

from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, cli, write_json
from kwslib.wake import negatives
from kwslib.wake.loop import fit, speak
from paper.spotting.wake import judge, noisy, recordings, speakers

GROUPS = ["marvin seven sheila".split(), "backward follow forward visual".split()]
ENGINES = ["espeak-ng", "flite"]
BESIDE = SAMPLE_RATE // 2  # samples of silence on both sides of a clip: a clip of one second may begin with its word


def clips(corpus, word):
    """Every clip of a word, int16, with silence on both sides."""
    rows = np.flatnonzero(corpus.words == word)
    return [np.pad(corpus.waves[i, : corpus.samples[i]], BESIDE) for i in rows]


def learn(phrases, corpus, speech, steps, batch, count, lr, seed):
    """A detector of the phrases from their text; the corpus and the speech are negatives. Returns a KeywordSpotter."""
    empty = {"train": [], "held": [], "noise": [], "sources": []}
    material = speak(phrases, speakers(ENGINES, 0), empty, count, seed, 1)
    material["real"] = negatives.real([corpus], phrases)
    material["real"]["train"] += speech
    return fit(phrases, material, [[] for _ in phrases], steps, batch, lr, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="wake_words.zip: its running speech")
    parser.add_argument(
        "--corpus", required=True, help="packed corpus: clips to judge, and others that train as negatives"
    )
    parser.add_argument("--out", default="results/spot/unseen.json", help="JSON file to write")
    for key, value in dict(steps=600, batch=64, clips=450, seed=0).items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    a, started = parser.parse_args(), time.time()
    torch.set_num_threads(1)  # so that a run gives the same numbers alone and beside others
    corpus = load_corpus(a.corpus)
    others, speech = (recordings(a.data, half=half)[None] for half in (0, 1))
    kitchen = noise_of(corpus, "testing").flatten()
    heard = {"clean": speech, "kitchen_10db": noisy(speech, kitchen)}
    options = {k: v for k, v in vars(a).items() if k not in ("data", "corpus", "out")}
    result = {"run": "unseen", "options": options, "engines": ENGINES, "n": {}}
    result |= {kind: {"words": {}} for kind in heard}
    for phrases in GROUPS:
        spotter = learn(phrases, a.corpus, others, a.steps, a.batch, a.clips, a.lr, a.seed)
        takes = {phrase: clips(corpus, phrase) for phrase in phrases}
        result["n"] |= {phrase: len(own) for phrase, own in takes.items()}
        for kind, around in heard.items():
            own = takes if kind == "clean" else {phrase: noisy(t, kitchen) for phrase, t in takes.items()}
            found = judge(spotter, own, around)
            result[kind] |= {"hours": found["hours"], "words": result[kind]["words"] | found["words"]}
            print(kind, {w: [round(100 * row["misses"], 1) for row in rows[:2]] for w, rows in found["words"].items()})
    for kind in heard:  # as far as there are that many alarms of each word
        points = zip(*result[kind]["words"].values())
        result[kind]["mean_misses"] = {
            own[0]["alarms"]: float(np.mean([row["misses"] for row in own])) for own in points
        }
    write_json(a.out, result | {"seconds": round(time.time() - started)})


if __name__ == "__main__":
    cli(main)
