"""How loud are the test clips of one speaker beside all others? A speaker whom every model gets wrong, explained.

    python -m paper.levels subset

reads data/subset and the words of its runs, and writes results/subset/levels.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kwslib.data.corpus import load_corpus
from kwslib.io import KwsError, cli, write_json
from paper.comparisons import SPEAKER
from paper.results import load_runs

FLAT = 10  # dB: in a clip no tenth of which stands out by more than this, no word does


def levels(corpus, words, speaker=SPEAKER):
    """How loud a speaker's test clips of `words` are beside all other test clips: the content of levels.json.

    rms in dB below full scale, over the second; span, dB from the quietest to the loudest tenth of a second of a clip.
    """
    corpus = load_corpus(corpus)
    rows = np.flatnonzero((corpus.splits == "testing") & np.isin(corpus.words, words))
    tenths = (np.asarray(corpus.waves[rows], np.float32) / 32768).reshape(len(rows), 10, -1)
    power, own = np.square(tenths).mean(2), corpus.speakers[rows] == speaker
    if not own.any():
        raise KwsError(
            f"corpus {corpus.root} has no test clip of speaker {speaker}; take the subset of Speech Commands"
        )
    rms = 10 * np.log10(power.mean(1) + 1e-12)
    span = 10 * np.log10((power.max(1) + 1e-12) / (power.min(1) + 1e-12))
    medians = [np.median(rms[corpus.speakers[rows] == other]) for other in np.unique(corpus.speakers[rows])]
    return {
        "speaker": speaker,
        "clips": int(own.sum()),
        "others": int((~own).sum()),
        "median_db": float(np.median(rms[own])),
        "others_median_db": float(np.median(rms[~own])),
        "quieter_speakers": int(sum(m < np.median(rms[own]) for m in medians)),
        "flat": {"below_db": FLAT, "clips": int((span[own] < FLAT).sum()), "others": int((span[~own] < FLAT).sum())},
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("profile", help="whose corpus is measured, over the words of its runs")
    parser.add_argument("--corpus", help="folder of the packed corpus (default data/<profile>)")
    a = parser.parse_args(argv)
    folder = Path("results") / a.profile
    words = load_runs(folder)[0]["labels"]
    write_json(folder / "levels.json", levels(a.corpus or f"data/{a.profile}", words))
    return 0


if __name__ == "__main__":
    cli(main)
