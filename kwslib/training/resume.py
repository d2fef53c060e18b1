"""What makes two runs the same run, and the file with which a killed run continues."""

from __future__ import annotations

import json

import torch

from kwslib.checkpoint import read_checkpoint
from kwslib.io import KwsError, replacing
from kwslib.training.config import Config

ELSEWHERE = ("out", "corpus", "device", "threads")  # of the machine, not of the recipe


def recipe_of(config):
    """What a checkpoint's card keeps of a config: the recipe, not the place or the machine."""
    return config.model_dump(exclude=set(ELSEWHERE))


def same_run(saved, card):
    """Whether recipe and corpus are the same; a key that was not known when `saved` was written had its default."""
    defaults = recipe_of(Config())
    recipe = {k: defaults[k] for k in card["recipe"]} | saved["recipe"]
    return recipe == card["recipe"] and saved["corpus"]["checksum"] == card["corpus"]["checksum"]


def finished_run(checkpoint, resume, card):
    """The card of `checkpoint` where it is this very run, finished; else None."""
    if not checkpoint.exists():
        return None
    done = read_checkpoint(checkpoint)[1]
    if not (done.get("finished") and same_run(done, card)):
        return None
    resume.unlink(missing_ok=True)  # a run killed at its very last step leaves it
    return done


def save_resume(path, run, model, best, optimizer, average):
    """Everything the next epoch depends on, in one file, so that there is no moment at which parts disagree.

    run: the JSON part. best: the weights kept so far. average: an `Average` or None.
    """
    from safetensors.torch import save

    run = run | {"averaged": average.steps if average else 0}
    parts = {"model": model.state_dict(), "best": best, "average": average.weights if average else {}}
    tensors = {f"{part}.{k}": v for part, weights in parts.items() for k, v in weights.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"moments.{i}.{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as scratch:
        scratch.write_bytes(save(tensors, metadata={"run": json.dumps(run)}))


def load_resume(path, card, model, optimizer, average):
    """Continue from what `save_resume` wrote: set the weights and moments, return (run, best).

    None where there is no file, or it is of another recipe or corpus. Raises KwsError for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(str(path), "pt") as f:
            run = json.loads(f.metadata()["run"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError) as e:
        raise KwsError(f"resume file {path} is damaged ({e}); delete it to train from the start") from None
    if not same_run(run["card"], card):
        return None
    parts = {"model": {}, "best": {}, "average": {}, "moments": {}}
    for key, tensor in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    model.load_state_dict(parts["model"])
    load_moments(optimizer, parts["moments"])
    if average:
        average.load(parts["average"], run["averaged"])
    return run, parts["best"]


def load_moments(optimizer, moments):
    """Give every parameter the optimizer's state that was kept of it: {"0.exp_avg": tensor, …}."""
    state = optimizer.state_dict()
    for key, tensor in moments.items():
        i, name = key.split(".")
        state["state"].setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict(state)
    for p, kept in optimizer.state.items():  # fused steps pair elements by their place in memory: keep the layout of p
        kept.update({k: torch.empty_like(p).copy_(v) for k, v in kept.items() if v.shape == p.shape})
