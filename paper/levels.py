"""How loud are the test clips of one speaker beside all others? A speaker whom every model gets wrong, explained.

    python -m paper.levels subset

reads data/subset and the words of its runs, and writes results/subset/levels.json and the waves, levels.png and .pdf.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kwslib.data.corpus import load_corpus
from kwslib.io import KwsError, cli, write_json
from paper.comparisons import SPEAKER
from paper.figure_style import PAGE, new_figure, save_figure
from paper.results import load_runs

FLAT = 10  # dB: in a clip no tenth of which stands out by more than this, no word does


def levels(corpus, words, speaker=SPEAKER):
    """How loud a speaker's test clips of `words` are beside all other test clips: the content of levels.json.

    rms in dB of full scale, over the second; span, dB from the quietest to the loudest tenth of a second of a clip.
    """
    corpus = load_corpus(corpus)
    rows, own = clips_of_test(corpus, words, speaker)
    power = np.square((np.asarray(corpus.waves[rows], np.float32) / 32768).reshape(len(rows), 10, -1)).mean(2)
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


def clips_of_test(corpus, words, speaker):
    """Rows of the test clips of `words`, and which of them are the speaker's; KwsError where there are none."""
    rows = np.flatnonzero((corpus.splits == "testing") & np.isin(corpus.words, words))
    own = corpus.speakers[rows] == speaker
    if not own.any():
        raise KwsError(
            f"corpus {corpus.root} has no test clip of speaker {speaker}; take the subset of Speech Commands"
        )
    return rows, own


def waves_figure(corpus, words, speaker=SPEAKER, columns=5):
    """The waves of the speaker's test clips, each at the scale of its own largest sample, and below them, in another
    colour, those of clips of other speakers, evenly spaced in the order of the test."""
    corpus = load_corpus(corpus)
    rows, own = clips_of_test(corpus, words, speaker)
    others = rows[~own][:: max(1, (~own).sum() // columns)][:columns]
    lines = -(-own.sum() // columns)
    fig, axes = new_figure(PAGE, 0.75 * (lines + 1), lines + 1, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for which, shown, colour in ((rows[own], axes[:lines].flat, "#D55E00"), (others, axes[lines], "#0072B2")):
        for row, ax in zip(which, shown):
            parts = (np.asarray(corpus.waves[row], np.float32) / 32768).reshape(200, -1)  # of 5 ms
            peak = np.abs(parts).max() + 1e-9
            ax.fill_between(np.arange(200) / 200, parts.min(1) / peak, parts.max(1) / peak, color=colour, linewidth=0)
            ax.set_title(f"“{corpus.words[row]}”, peak {20 * np.log10(peak):.0f} dB", fontsize=6, pad=1)
            ax.set_ylim(-1, 1)
    return fig


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("profile", help="whose corpus is measured, over the words of its runs")
    parser.add_argument("--corpus", help="folder of the packed corpus (default data/<profile>)")
    a = parser.parse_args(argv)
    folder = Path("results") / a.profile
    words = load_runs(folder)[0]["labels"]
    corpus = a.corpus or f"data/{a.profile}"
    write_json(folder / "levels.json", levels(corpus, words))
    save_figure(waves_figure(corpus, words), folder, "levels")
    return 0


if __name__ == "__main__":
    cli(main)
