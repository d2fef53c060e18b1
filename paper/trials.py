"""What was tried to make Mamba-Light better, from the trials of profile search alone: results/search/trials."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from statistics import mean

import torch

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, KwsError
from kwslib.models import MODELS, build, count_macs, count_parameters
from kwslib.training.config import Config

UNCHANGED = "noise"  # the trial whose recipe is Mamba-Light's
WHAT = {
    "both_ways": "blocks that read in both directions",
    "broadcast": "BC-ResNet's first two stages before three Mamba blocks",
    "squeeze": "squeeze-and-excitation in the front-end",
    "distilled": "Mamba-Mel Large as its teacher",
    "shift": "shifts of up to 300 ms",
    "synthetic": "synthetic speech of the same words added",
    UNCHANGED: "nothing: the recipe as it is",
}


def trials_table(trials):
    """(DataFrame of text, caption): one row for each change, its seeds together, the best first.

    trials: contents of results/search/trials/*.json; a trial of another seed is called as the first is, and its seed:
    "squeeze_1". The difference is to the unchanged recipe with the same seeds, on validation. Raises KwsError for a
    trial that is not in WHAT, and where the unchanged recipe has not been run with a seed.
    """
    from pandas import DataFrame

    found = {}
    for trial in trials:
        found.setdefault(trial["trial"].removesuffix(f"_{trial['seed']}"), {})[trial["seed"]] = trial
    if unknown := sorted(found.keys() - WHAT.keys()):
        raise KwsError(f"results/search/trials has a trial {unknown[0]!r}; say in paper/trials.py what it changes")
    plain, rows = found.get(UNCHANGED, {}), []
    for name, seeds in sorted(found.items(), key=lambda item: -gain(item[1], plain)):
        parameters, macs = sized(next(iter(seeds.values())))
        gains = [100 * gain({seed: seeds[seed]}, plain) for seed in sorted(seeds)]
        rows.append({
            "what is changed": WHAT[name],
            "parameters": f"{parameters:,}",
            "MACs (M)": f"{macs / 1e6:.1f}",
            "seeds": str(len(seeds)),
            "validation (%)": f"{100 * mean(accuracy(own) for own in seeds.values()):.2f}",
            "difference (points)": "–" if name == UNCHANGED else f"{mean(gains):+.2f}",
            "difference of each seed": "–" if name == UNCHANGED else ", ".join(f"{g:+.2f}" for g in gains),
        })  # fmt: skip
    first = trials[0]
    caption = (
        f"Validation accuracy (n = {first['validation']['n']:,} clips) after {first['training']['epochs']} epochs, a "
        "mean over seeds; difference from the unchanged recipe with the same seeds. The test split was not read."
    )
    return DataFrame(rows), caption


@contextmanager
def candidates():
    """paper.candidates, whose models are in the registry meanwhile, and not in any list of models after it."""
    before = dict(MODELS)
    try:
        yield import_module("paper.candidates")
    finally:
        MODELS.clear()
        MODELS.update(before)
        del sys.modules["paper.candidates"]


def accuracy(trial):
    return trial["validation"]["accuracy"]


def gain(seeds, plain):
    """Mean difference in accuracy, a fraction, of trials {seed: trial} from those of `plain` with the same seeds.

    Raises KwsError where one of these has not been run."""
    if missing := sorted(seeds.keys() - plain.keys()):
        raise KwsError(f"results/search/trials has no trial {UNCHANGED!r} with seed {missing[0]}; run it")
    return mean(accuracy(trial) - accuracy(plain[seed]) for seed, trial in seeds.items())


def sized(trial):
    """Parameters and multiply-accumulates of one second of a trial's model."""
    config = Config(**trial["recipe"])
    with torch.random.fork_rng(devices=[]), candidates():
        front = frontend_of(config)
        model = build(config.model, len(config.task), **config.model_options).eval()
    return count_parameters(model), count_macs(model, torch.zeros(1, front.frames(CLIP), front.n_features))
