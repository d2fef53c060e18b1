"""What makes two runs the same run, and the file with which a killed run continues."""

import json
import math
from collections import defaultdict

import torch

from kwslib.checkpoint import read_checkpoint, read_tensors, save_checkpoint, save_tensors, seal
from kwslib.io import KwsError, write_csv, write_json
from kwslib.machine import machine
from kwslib.training.config import Config
from kwslib.training.optim import Average

CHECKPOINT, RESUME = "model.safetensors", "resume.safetensors"


def recipe_of(config):
    """What a checkpoint's card keeps of a config: the recipe, not the place or the machine."""
    return config.model_dump(exclude={"out", "corpus", "device", "threads", "graphs"})


def same_run(saved, card):
    """Whether recipe and corpus are the same; a key that was unknown when a card was written had its default, and one
    that is unknown now (schedule_epochs) counts where it was set."""
    if not all(isinstance(saved.get(key), dict) for key in ("recipe", "corpus")):
        return False
    defaults = recipe_of(Config())
    a, b = ({k: v for k, v in c["recipe"].items() if k in defaults or v is not None} for c in (saved, card))
    return defaults | a == defaults | b and saved["corpus"].get("checksum") == card["corpus"]["checksum"]


def finished_run(out, card):
    """The card of the checkpoint in `out` where it is of this very run, finished; else None."""
    done = read_checkpoint(out / CHECKPOINT)[1] if (out / CHECKPOINT).exists() else {}
    if done.get("finished") and same_run(done, card):
        (out / RESUME).unlink(missing_ok=True)  # a run killed at its very last step leaves it
        return done


class Run:
    """A training under way, after `epoch` epochs, `resumed` so often. average: an `Average` of its weights, or None if
    `ema` is 0. best: the best validation accuracy, of `best_epoch`, with `best_loss` and `best_weights`. lr_scale: what
    the guard left of the learning rate. card: the checkpoint's. seconds: all of it; trained: without validation."""

    STATE = tuple("epoch best best_loss best_epoch lr_scale seconds trained resumed history card".split())
    HISTORY = ("epoch", "lr", "training_loss", "training_accuracy", "validation_loss", "validation_accuracy")

    def __init__(self, model, optimizer, scaler, ema, card):
        self.model, self.optimizer, self.scaler, self.ema, self.card = model, optimizer, scaler, ema, card
        self.average = Average(model, ema) if ema else None
        self.epoch, self.best, self.best_loss, self.best_epoch, self.best_weights = 0, -1.0, math.inf, 0, {}
        self.lr_scale, self.seconds, self.trained, self.resumed, self.history = 1.0, 0.0, 0.0, 0, []

    def judged(self):
        """The model that is validated and kept: with the averaged weights, where there are any."""
        return self.average.of(self.model) if self.average else self.model

    def end_epoch(self, *measured):
        """Count an epoch, whose row of the history is `measured`, and keep its weights if they are the best: of two
        with the same accuracy, those with the lower loss. Raises KwsError for weights that are not numbers."""
        self.epoch += 1
        self.history.append(dict(zip(self.HISTORY, (self.epoch, *measured))))
        loss, accuracy = measured[-2:]
        if (accuracy, -loss) > (self.best, -self.best_loss):
            self.best, self.best_loss, self.best_epoch = accuracy, loss, self.epoch
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.judged().state_dict().items()}
            if not all(v.isfinite().all() for v in self.best_weights.values()):
                raise KwsError(f"a weight is not a number in epoch {self.epoch}; lower lr or use precision: fp32")

    def collapsed(self, guard):
        """Whether validation accuracy has halved: against the best epoch (rollback), or the last (published)."""
        *_, last, now = -1.0, -1.0, *(row["validation_accuracy"] for row in self.history)
        return {"rollback": now < self.best / 2, "published": last > 0.5 and now < last / 2}.get(guard, False)

    def go_back(self, guard):
        """To the best weights. rollback: without momentum, at a fifth of the learning rate from now on. published: with
        the momentum that led astray; the loop cuts the rate of one step, as the published schedule then set it anew."""
        self.model.load_state_dict(self.best_weights)
        self.average = Average(self.model, self.ema) if self.ema else None
        if guard == "rollback":
            self.optimizer.state.clear()
            self.lr_scale /= 5

    def write(self, out, clips):
        """Write the files of the epochs so far, of `clips` clips each; the card says whether all are done."""
        speed = self.epoch * clips / self.trained
        write_json(out / "timing.json", {"seconds": self.seconds, "clips_per_second": speed, "machine": machine()})
        write_csv(out / "history.csv", self.history)
        self.card = save_checkpoint(out / CHECKPOINT, self.best_weights, self.card)
        (out / RESUME).unlink(missing_ok=True) if self.card["finished"] else self.save(out / RESUME)

    def save(self, path):
        """Everything the next epoch depends on, in one file, so that there is no moment at which parts disagree."""
        run = {key: getattr(self, key) for key in self.STATE} | {"averaged": self.average.steps if self.average else 0}
        run["scaler"] = self.scaler.state_dict()
        parts = {"model": self.model.state_dict(), "best": self.best_weights}
        parts["average"] = self.average.weights if self.average else {}
        parts |= {f"moments.{i}": state for i, state in self.optimizer.state_dict()["state"].items()}
        tensors = {f"{part}.{k}": v for part, tensors in parts.items() for k, v in tensors.items()}
        run = json.loads(json.dumps(run))
        save_tensors(path, tensors, run={**run, "sha256": seal(tensors, run)})

    def load(self, path):
        """Continue from what `save` wrote. False without a file of this recipe, corpus and version."""
        if not path.exists():
            return False
        tensors, run = read_tensors(path, "run", f"resume file {path} is damaged", "to train from the start")
        if not isinstance(run, dict) or set(self.STATE) - run.keys() or not same_run(run["card"], self.card):
            return False
        if run.get("sha256", whole := seal(tensors, run)) != whole:
            raise KwsError(f"resume file {path} is damaged (the checksum differs); delete it to train from the start")
        parts = defaultdict(dict)
        for key, tensor in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = tensor
        self.__dict__.update({key: run[key] for key in self.STATE}, best_weights=parts["best"])
        self.resumed += 1
        self.model.load_state_dict(parts["model"])
        self.scaler.load_state_dict(run["scaler"])
        load_moments(self.optimizer, parts["moments"])
        if self.average:
            self.average.load(parts["average"], run["averaged"])
        return True


def load_moments(optimizer, moments):
    """Give every parameter the optimizer's state that was kept of it: {"0.exp_avg": tensor, …}."""
    state = optimizer.state_dict()
    for key, tensor in moments.items():
        i, name = key.split(".")
        state["state"].setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict(state)
    for p, kept in optimizer.state.items():  # fused steps pair elements by their place in memory: keep the layout of p
        kept.update({k: torch.empty_like(p).copy_(v) for k, v in kept.items() if v.shape == p.shape})
