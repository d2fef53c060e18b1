"""The recipe of wake words without one of its parts: `python -m paper.spotting.without PART`, in results/wake/tried.

Each is a run of paper.spotting.wake from the text alone, by espeak-ng and flite, in which one part is as it was before:
to be compared with the run `text`."""

import argparse
import sys
from unittest import mock

import torch

from kwslib.io import cli
from kwslib.wake import loop, windows
from kwslib.wake.pronunciation import FLUENT
from paper.spotting import wake

BEFORE = {
    "pace": lambda: mock.patch.object(loop, "ALONE", FLUENT),  # said as in a sentence, with no vowel in full
    "warp": lambda: mock.patch.object(loop, "TimeWarp", torch.nn.Identity),
    "levels": lambda: mock.patch.object(windows, "LEVELS", (-30, -1)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=BEFORE)
    parser.add_argument("--data", required=True, help="wake_words.zip")
    parser.add_argument("--corpus", required=True, help="packed corpus: its training clips are negatives")
    a = parser.parse_args()
    cache = f"data/wake/without_{a.part}"  # what was spoken may differ
    options = ["--data", a.data, "--corpus", a.corpus, "--cache", cache, "--engines", "espeak-ng", "flite", "--noise"]
    with BEFORE[a.part](), mock.patch.object(sys, "argv", ["wake", f"tried/without_{a.part}", *options]):
        wake.main()


if __name__ == "__main__":
    cli(main)
