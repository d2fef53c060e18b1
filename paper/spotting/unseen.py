"""The recipe of `kws wake` on other words than those of its development: `python -m paper.spotting.unseen --out FILE`.

They are words of Speech Commands of two syllables or more that no shipped spotter knows. Their clips, of whatever
split, are judged: none trains the detector that is to hear its word. Nor has the encoder that it starts from heard
them, but for a few that stood beside other words, and are left out. The false alarms are those of the other half of the
running speech, as in paper.spotting.wake. Two detectors, of some words each.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import read_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, KwsError, cli, write_json
from kwslib.wake import voices
from kwslib.wake.loop import ENCODER, fit
from paper.spotting.encoder import beside
from paper.spotting.wake import gather, judge, mean_of, noisy, recipe_options, recordings, speakers

GROUPS = ["marvin seven sheila".split(), "backward follow forward visual".split()]
BESIDE = SAMPLE_RATE // 2  # samples of silence on both sides of a clip: a clip of one second may begin with its word


def clips(corpus, word):
    """The clips of a word that the encoder has not heard, int16, with silence on both sides."""
    rows = np.setdiff1d(np.flatnonzero(corpus.words == word), beside(corpus))
    return [np.pad(corpus.waves[i, : corpus.samples[i]], BESIDE) for i in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="wake_words.zip: its running speech")
    parser.add_argument(
        "--corpus", required=True, help="packed corpus: clips to judge, and others that train as negatives"
    )
    parser.add_argument("--out", default="results/spot/unseen.json", help="JSON file to write")
    parser.add_argument("--engines", nargs="+", default=["espeak-ng", "flite"])
    recipe_options(parser)
    a, started = parser.parse_args(), time.time()
    torch.set_num_threads(1)  # so that a run gives the same numbers alone and beside others
    corpus = load_corpus(a.corpus)
    if corpus.origin().get("checksum") != read_checkpoint(ENCODER)[1]["corpus"]["checksum"]:
        raise KwsError(f"{a.corpus} is not the corpus that the encoder was trained on; pack that of profile spot")
    others, speech = (recordings(a.data, half=half)[None] for half in (0, 1))
    kitchen = noise_of(corpus, "testing").flatten()
    heard = {"clean": speech, "kitchen_10db": noisy(speech, kitchen)}
    engines = speakers(a.engines, 0)
    options = {k: v for k, v in vars(a).items() if k not in ("data", "corpus", "out")}
    result = {"run": Path(a.out).stem, "options": options, "engines": list(engines), "n": {}}
    result |= {kind: {"words": {}} for kind in heard}
    for phrases in GROUPS:
        material = gather(phrases, engines, a.clips, a.seed, a.corpus, others)
        nobody = [[] for _ in phrases]
        spotter = fit(phrases, material, nobody, a.steps, a.batch, a.lr, a.seed, formants=voices.only_formants(engines))
        takes = {phrase: clips(corpus, phrase) for phrase in phrases}
        result["n"] |= {phrase: len(own) for phrase, own in takes.items()}
        for kind, around in heard.items():
            own = takes if kind == "clean" else {phrase: noisy(t, kitchen) for phrase, t in takes.items()}
            found = judge(spotter, own, around)
            result[kind] |= {"hours": found["hours"], "words": result[kind]["words"] | found["words"]}
            print(kind, {w: [round(100 * row["misses"], 1) for row in rows[:2]] for w, rows in found["words"].items()})
    for kind in heard:
        result[kind]["mean_misses"] = mean_of(result[kind]["words"])
    write_json(a.out, result | {"seconds": round(time.time() - started)})


if __name__ == "__main__":
    cli(main)
