"""Every row of the paper and every rival: as published, here, and why, in one table.

The published side is data with its sources, published.yaml. Ours is read from the recipes (kwslib/recipes), counted in
the models, and, for classes and seeds, read from profile `paper`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from kwslib.checkpoint import frontend_of
from kwslib.data.tasks import V2_35
from kwslib.io import CLIP, SAMPLE_RATE, KwsError
from kwslib.models import build, count_parameters
from kwslib.models.layers import SequenceKWS
from kwslib.training.config import load_config, read_yaml
from paper.profile import Profile
from paper.results import label_of

PUBLISHED = Path(__file__).with_name("published.yaml")
PARAMS = Path(__file__).resolve().parent.parent / "profiles/paper/params.yaml"
CLIPS = 84_843  # of training, in the 35 words
# what no key of a recipe changes
FIXED = {
    "spectrum": "power",
    "mel_range": [0, SAMPLE_RATE // 2],
    "shift_probability": 1.0,
    "rect_masks": 0,
    "plateau": None,
    "selected": "best epoch on validation",
    "tie": "the lower validation loss",
    "not_finite": "ends the run",
    "validation_loss": "without smoothing",
    "noise_files": "four of six",
    "masked_frames": 101,
    "loss": "outside autocast",
    "loss_scaling": "in fp16",
    "nan_features": "are not looked for",
    "tf32": "in convolutions, as PyTorch has it",
}
ABOUT = {"like", "source", "why"}  # keys of a row that are no property of the run


def load_published(path=PUBLISHED):
    """The content of published.yaml, every row whole: what it takes over from another (`like`) filled in."""
    published = read_yaml(path, "published rows", "the paper's are paper/published.yaml")
    rows = published["rows"]

    def whole(name):
        row = rows[name]
        return {**whole(row["like"]), **row} if "like" in row else row

    return published | {"rows": {name: whole(name) for name in rows}}


def ours(name, published):
    """The keys of the published row `name` as they are here: recipe `name`, its features and its model."""
    config, profile = load_config(name), Profile(PARAMS)
    values = config.model_dump() | FIXED
    front = frontend_of(config)
    values |= {"win_length": front.win_length, "frames": front.frames(CLIP)}
    values["classes"] = len(V2_35) if profile.task == "v2-35" else len(profile.task)
    values["seeds"] = ", ".join(map(str, profile.seeds))
    values["statistics"] = "of every sixth training clip" if config.normalise == "corpus" else None
    left = CLIPS % config.batch_size
    values["steps"] = config.epochs * (CLIPS // config.batch_size + bool(left and not config.drop_last))
    if config.optimizer == "adamw" and not config.weight_decay:
        values["optimizer"] = "adam"  # without decay they are the same
    if config.grad_clip >= 1e6:
        values["grad_clip"] = "none"
    if counts := published.get("parameters"):
        ((classes, printed),) = counts.items()
        values["parameters"] = {classes: as_printed(sized(config, classes)[0], printed)}
    if "blocks_see" in published:
        values["blocks_see"] = sized(config, values["classes"])[1]
    if unknown := sorted(published.keys() - values.keys() - ABOUT):
        raise KwsError(f"published.yaml has a key {unknown[0]!r} in row {name}, which no recipe has; correct it")
    return values


@torch.no_grad()
def sized(config, classes):
    """A model's parameters, and the frames of a second that its blocks get (None where it has no such blocks)."""
    front = frontend_of(config)
    with torch.random.fork_rng(devices=[]):
        model = build(config.model, classes, **config.model_options).eval()
    seen = None
    if isinstance(model, SequenceKWS):
        seen = model.frontend(torch.zeros(1, front.frames(CLIP), front.n_features), None)[0].shape[1]
    return count_parameters(model), seen


def as_printed(count, printed):
    """A count rounded as `printed` is, "9.2K"; the count itself where that is a whole number."""
    if not isinstance(printed, str):
        return count
    return f"{count / 1e3:.{len(printed.partition('.')[2].rstrip('K'))}f}K"


@cache
def deviations():
    """One dict for each key that differs (model, key, published, here, why), and after those of a model one with key
    "same", the keys that do not. Raises KwsError for a difference without a reason.
    """
    published, found = load_published(), []
    for name, row in published["rows"].items():
        here, same = ours(name, row), []
        for key in [key for key in row if key not in ABOUT]:
            if here[key] == row[key]:
                same.append(f"{key} {said(key, row[key])}")
                continue
            why = row.get("why", {}).get(key) or published["why"].get(key)
            if not why:
                raise KwsError(f"{key} of {name} is {here[key]!r}, published {row[key]!r}; say why in published.yaml")
            found.append({"model": name, "key": key, "published": row[key], "here": here[key], "why": why})
        found.append({"model": name, "key": "same", "published": same, "here": same, "why": row["source"]})
    return found


def said(key, value):
    """A value of a key as the table prints it: "0 to 0.005", "2, 0–11 wide", "462,180 with 36 classes", "none"."""
    if isinstance(value, dict):
        return "; ".join(f"{said(key, number)} with {classes} classes" for classes, number in value.items())
    if isinstance(value, list) and "mask" in key:  # their number, and the bound of their width
        return f"{value[0]}, 0–{value[1] - 1} wide" if all(value) else "none"
    if isinstance(value, list):
        return "none" if not any(value) else " to ".join(said(key, number) for number in value)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else value


def deviation_table():
    """(DataFrame of text, caption): every difference with its reason and its models, then of each model what is the
    same.
    """
    from pandas import DataFrame

    models = {}
    for entry in deviations():
        if entry["key"] == "same":
            row = ("same", ", ".join(entry["published"]), "the same", f"Source: {entry['why']}.")
        else:
            row = (entry["key"], *(said(entry["key"], entry[side]) for side in ("published", "here")), entry["why"])
        models.setdefault(row, []).append(entry["model"])
    rows = [
        {"models": named(own), "key": key, "as published": published, "here": here, "why": why}
        for (key, published, here, why), own in sorted(models.items(), key=lambda item: item[0][0] == "same")
    ]
    caption = (
        "How every row was published and how it is trained here (profile paper, the corpus' 35 words). Keys are those "
        "of a recipe (kws train --help). First what differs, then, in the lines “same”, what does not. Rows “as run” "
        "stand beside the recorded notebooks, the others have the front-end that the README describes; “both” is the "
        f"two of them. Mamba-Light is ours; its recipe differs from Mamba-Mel Small's in: {own_habits()}."
    )
    return DataFrame(rows), caption


def own_habits():
    """The keys of Mamba-Light's recipe that Mamba-Mel Small's has otherwise, with their values, in one line."""
    own, paper = (load_config(name).model_dump() for name in ("mamba_light", "mamba_mel_small"))
    return ", ".join(f"{key} {said(key, own[key])}" for key in own if key != "model" and own[key] != paper[key])


def named(models):
    """Labels in one line: "RetNet-KWS (both)" where a model and its row "as run" are among them."""
    both = [model for model in models if f"{model}_as_run" in models]
    left = [model for model in models if model.removesuffix("_as_run") not in both or model in both]
    return "; ".join(label_of(model) + " (both)" * (model in both) for model in left)
