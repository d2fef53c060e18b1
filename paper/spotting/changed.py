"""The recipe of wake words with one change: `python -m paper.spotting.changed CHANGE`, in results/wake/tried.

Each is a run of paper.spotting.wake from the text alone, by espeak-ng and flite, of one model instead of two. That is
all of the change `one_model`, with which the others are to be compared. They start from Mamba-Light's shipped weights,
as the recipe did when they were tried, and not from its encoder. In `no_pace` and `no_warp` one part is as it
was before. In `max_pooling` training hears half a second before the window, and a clip's score is the highest of the
windows in it, not that of one window that holds the word."""

import argparse
import contextlib
import functools
import sys
from unittest import mock

import torch

from kwslib.io import cli
from kwslib.wake import loop
from kwslib.wake.pronunciation import FLUENT
from paper.spotting import wake
from paper.spotting.commands import START

PAST_S, HOP = 0.5, 3  # the latter in frames of the model


def highest(model, inputs, share=1.0):
    """As loop.logits_of, of the window with the highest score: a maximum over windows, `HOP` frames apart."""
    x = loop.frames_of(model, inputs)
    size = round(share * x.shape[1])
    means = torch.stack([x[:, at : at + size].mean(1) for at in range(x.shape[1] - size, -1, -HOP)], 1)
    return model.head.classify(means).amax(1), means[:, 0]


@contextlib.contextmanager
def max_pooling():
    with mock.patch.object(loop, "logits_of", highest):
        with mock.patch.object(wake, "fit", functools.partial(loop.fit, past_s=PAST_S)):
            yield


@contextlib.contextmanager
def one_of_mamba_light():
    start = functools.partial(loop.fresh, start=START)
    with mock.patch.object(loop, "MEMBERS", 1), mock.patch.object(loop, "fresh", start):
        yield


CHANGES = {
    "one_model": contextlib.nullcontext,
    "no_pace": lambda: mock.patch.object(loop, "ALONE", FLUENT),  # said as in a sentence, with no vowel in full
    "no_warp": lambda: mock.patch.object(loop, "TimeWarp", torch.nn.Identity),
    "max_pooling": max_pooling,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("change", choices=CHANGES)
    parser.add_argument("--data", required=True, help="wake_words.zip")
    parser.add_argument("--corpus", required=True, help="packed corpus: its training clips are negatives")
    a = parser.parse_args()
    cache = f"data/wake/{a.change}"  # what was spoken may differ
    options = ["--data", a.data, "--corpus", a.corpus, "--cache", cache, "--engines", "espeak-ng", "flite", "--noise"]
    argv = mock.patch.object(sys, "argv", ["wake", f"tried/{a.change}", *options])
    with argv, one_of_mamba_light(), CHANGES[a.change]():
        wake.main()


if __name__ == "__main__":
    cli(main)
