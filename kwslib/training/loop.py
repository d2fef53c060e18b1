"""Train one model. This file is the whole loop; the recipe is a config file.

    python -m kwslib.train --config configs/mamba_mel_small.yaml
    python -m kwslib.train --config configs/mamba_mel_small.yaml --corpus data/subset --epochs 30 --seed 1
    accelerate launch --multi_gpu -m kwslib.train --config configs/mamba_mel_large.yaml      (or torchrun)

Every key of kwslib.training.config.Config is an option. In `out` come to lie `model.safetensors` with
`model.json`, the best weights on validation so far, `history.csv`, and while the run lasts
`resume.safetensors`. Kill it at any moment: the same command goes on from the last whole epoch and, on
the CPU, ends with the same bits. All randomness is a function of (seed, epoch).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from kwslib.checkpoint import frontend_of, read_checkpoint, save_checkpoint
from kwslib.data.augment import Augment, SpecMask
from kwslib.data.batches import Batches
from kwslib.data.corpus import load_corpus
from kwslib.data.features import Normalise
from kwslib.data.tasks import noise_of, select
from kwslib.io import KwsError, cli, replacing, write_csv
from kwslib.machine import autocast_to, keep_memory, pick_device, pick_precision
from kwslib.models.registry import build
from kwslib.training.config import Config, load_config, parse_overrides
from kwslib.training.distil import soft_targets
from kwslib.training.optim import Average, Schedule, make_optimizer


def train(config, progress=True):
    """Train `config.model` to the end, resuming what `config.out` holds. Returns the checkpoint's card."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    autocast = pick_precision(config.precision, device)
    out = Path(config.out)
    checkpoint, resume = out / "model.safetensors", out / "resume.safetensors"

    corpus = load_corpus(config.corpus)
    # what makes two runs the same run: the recipe and the data, not the place or the machine
    recipe = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "corpus", "device", "threads")}
    card = {
        "model": config.model,
        "recipe": recipe,
        "corpus": {k: corpus.card[k] for k in ("name", "source", "synthetic", "licence", "attribution", "checksum")},
    }
    out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is refused now, not after the first epoch
    if checkpoint.exists():
        done = read_checkpoint(checkpoint)[1]
        if done.get("finished") and same_run(done, card):
            say(f"{checkpoint} is trained already", rank)
            resume.unlink(missing_ok=True)  # a run killed at its very last step leaves it
            return done

    training, validation = (select(corpus, config.task, s, config.seed) for s in ("training", "validation"))
    card["labels"] = training.labels
    torch.manual_seed(config.seed)
    frontend = frontend_of(config).to(device)
    card["features"] = frontend.options
    model = build(config.model, len(training.labels)).to(device)
    optimizer = make_optimizer(model, config, device)
    average = Average(model, config.ema) if config.ema else None
    run = {"epoch": 0, "best": -1.0, "lr_scale": 1.0, "seconds": 0.0, "history": [], "card": card}
    best = {}

    saved = load_resume(resume, card)
    if saved is not None:
        run, best = saved["run"], saved["best"]
        card = run["card"]
        model.load_state_dict(saved["model"])
        load_moments(optimizer, saved["moments"], device)
        if average:
            average.load(saved["average"], run["averaged"], device)
        say(f"resuming {config.model} after epoch {run['epoch']}", rank)
    else:
        normalise = Normalise.measure(training, frontend, device=device)
        card["normalisation"] = {"mean": normalise.mean, "std": normalise.std}
    normalise = Normalise(**card["normalisation"])

    background = torch.from_numpy(noise_of(corpus, "training").flatten()) if config.background_snr else None
    augment = Augment(
        config.shift_ms,
        config.noise,
        config.stretch,
        background,
        config.background_snr,
        config.background_probability,
        config.speed,
    )
    mask = SpecMask(config.freq_mask, config.time_mask)
    batches = Batches(training, frontend, normalise, config.batch_size, device, augment, mask, config.seed, rank, world)
    if config.teachers:
        batches.targets = soft_targets(config.teachers, training, config.distillation, config.temperature, device).to(
            device
        )
    checks = Batches(validation, frontend, normalise, 256, device)
    parallel = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    schedule = Schedule(config, len(batches))

    while run["epoch"] < config.epochs:
        epoch, started = run["epoch"], time.perf_counter()
        torch.manual_seed((config.seed * 1_000_003 + epoch) * 64 + rank)  # dropout
        loss, accuracy = train_epoch(
            parallel,
            optimizer,
            batches,
            epoch,
            config,
            schedule,
            run["lr_scale"],
            autocast,
            progress and rank == 0,
            average,
        )
        if world > 1:  # batch-norm statistics are each process's own: all go on with the first one's
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        trained = time.perf_counter() - started
        judged = model if average is None else average.of(model)  # what is validated is what is kept
        check_loss, check_accuracy = evaluate(judged, checks, autocast)
        run["seconds"] += time.perf_counter() - started
        run["history"].append(
            {
                "epoch": epoch + 1,
                "lr": schedule(len(batches) * (epoch + 1) - 1) * run["lr_scale"],
                "training_loss": loss,
                "training_accuracy": accuracy,
                "validation_loss": check_loss,
                "validation_accuracy": check_accuracy,
                "clips_per_second": min(len(batches) * config.batch_size, len(training.targets)) / trained,
                "seconds": run["seconds"],
            }
        )
        if check_accuracy > run["best"]:
            run["best"], run["best_epoch"] = check_accuracy, epoch + 1
            best = {k: v.detach().cpu().clone() for k, v in judged.state_dict().items()}
        elif check_accuracy < run["best"] / 2:  # the paper's guard: go back, and go slower
            model.load_state_dict(best)
            average = Average(model, config.ema) if average else None
            optimizer.state.clear()
            run["lr_scale"] /= 5
            say(f"validation accuracy halved: back to epoch {run['best_epoch']}, learning rate / 5", rank)
        run["epoch"] += 1
        left = (config.epochs - run["epoch"]) * run["seconds"] / run["epoch"]
        say(
            f"{config.model} epoch {run['epoch']}/{config.epochs}  loss {loss:.3f}  training {accuracy:.2%}  validation "
            f"{check_accuracy:.2%}  {run['history'][-1]['clips_per_second']:.0f} clips/s  {left / 60:.1f} min left",
            rank,
        )
        card.update(
            validation={"accuracy": run["best"], "epoch": run["best_epoch"], "n": len(validation.targets)},
            training={
                "epochs": run["epoch"],
                "seconds": run["seconds"],
                "clips": len(training.targets),
                "clips_per_second": sum(h["clips_per_second"] for h in run["history"]) / run["epoch"],
                "precision": "bf16" if autocast else "fp32",
                "processes": world,
            },
            finished=run["epoch"] == config.epochs,
        )
        if rank == 0:
            write_csv(out / "history.csv", run["history"])
            save_checkpoint(checkpoint, best, card)  # after the history: it says whether the run is finished
            if run["epoch"] < config.epochs:
                run["averaged"] = average.steps if average else 0
                save_resume(resume, run, model, best, optimizer, average.weights if average else {})
    if rank == 0:
        resume.unlink(missing_ok=True)
    if world > 1:
        dist.barrier()  # nobody leaves before the files are whole
    return card


def train_epoch(model, optimizer, batches, epoch, config, schedule, lr_scale, autocast, progress, average=None):
    """One pass over the training clips. Returns mean loss and accuracy (on augmented clips)."""
    rng = np.random.default_rng([config.seed, epoch])
    model.train()
    device = next(model.parameters()).device
    total = torch.zeros(3, device=device)
    bar = progress_bar(len(batches), f"{config.model} {epoch + 1}/{config.epochs}") if progress else None
    started = time.perf_counter()
    for i, (inputs, targets, lengths) in enumerate(batches.epoch(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(epoch * len(batches) + i) * lr_scale
        if config.mixup:  # pairs of clips, blended (Zhang et al. 2018); the accuracy shown is that of the louder ones
            share = rng.beta(config.mixup, config.mixup)
            share, other = max(share, 1 - share), torch.from_numpy(rng.permutation(len(targets))).to(device)
            inputs, lengths = share * inputs + (1 - share) * inputs[other], torch.maximum(lengths, lengths[other])
        with autocast_to(device, autocast):
            logits = model(inputs, lengths).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        if config.mixup:
            blended = F.cross_entropy(logits, targets[other], label_smoothing=config.label_smoothing)
            loss = share * loss + (1 - share) * blended
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        if average is not None:
            average.update(model.module if hasattr(model, "module") else model)
        with torch.no_grad():
            true = targets.argmax(1) if targets.dim() > 1 else targets  # a teacher's targets are probabilities
            total += torch.stack([loss * len(targets), (logits.argmax(1) == true).sum(), loss.new_tensor(len(targets))])
        if bar is not None:
            bar.update()
            if i % 10 == 9:
                speed = (i + 1) * config.batch_size / (time.perf_counter() - started)
                bar.set_postfix_str(f"loss {total[0] / total[2]:.3f} acc {total[1] / total[2]:.1%} {speed:.0f} clips/s")
    if bar is not None:
        bar.close()
    if not math.isfinite(total[0]):
        raise KwsError(f"the loss is not a number in epoch {epoch + 1}; lower lr ({config.lr}) or use precision: fp32")
    return (total[0] / total[2]).item(), (total[1] / total[2]).item()


@torch.no_grad()
def evaluate(model, batches, autocast=False):
    """Mean cross-entropy and accuracy over every clip of `batches`."""
    model.eval()
    loss = hits = count = 0
    for inputs, targets, lengths in batches.all():
        with autocast_to(inputs.device, autocast):
            logits = model(inputs, lengths).float()
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        hits += (logits.argmax(1) == targets).sum().item()
        count += len(targets)
    return loss / count, hits / count


def same_run(saved, card):
    """Whether recipe and corpus are the same; a key that was not known when `saved` was written had its default."""
    defaults = dataclasses.asdict(Config())
    recipe = {k: defaults[k] for k in card["recipe"]} | saved["recipe"]
    return recipe == card["recipe"] and saved["corpus"]["checksum"] == card["corpus"]["checksum"]


def save_resume(path, run, model, best, optimizer, average):
    """Everything the next epoch depends on, in one file, so that there is no moment at which parts disagree."""
    from safetensors.torch import save

    parts = {"model": model.state_dict(), "best": best, "average": average}
    tensors = {f"{part}.{k}": v for part, weights in parts.items() for k, v in weights.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"moments.{i}.{k}": v for k, v in state.items()}
    with replacing(path) as scratch:
        scratch.write_bytes(
            save(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
                metadata={"run": json.dumps(run)},
            )
        )


def load_resume(path, card):
    """What `save_resume` wrote, or None where there is nothing or it is of another recipe or corpus."""
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
        say(f"{path} is of another recipe or corpus; starting anew", 0)
        return None
    parts = {"run": run, "model": {}, "best": {}, "average": {}, "moments": {}}
    for key, tensor in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    return parts


def load_moments(optimizer, moments, device):
    state = optimizer.state_dict()
    for key, tensor in moments.items():
        i, name = key.split(".")
        state["state"].setdefault(int(i), {})[name] = tensor if name == "step" else tensor.to(device)
    optimizer.load_state_dict(state)


def progress_bar(total, label):
    """A tqdm bar on a terminal; nothing in logs and notebooks, where a line per epoch is enough."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=total, desc=label, leave=False)


def say(text, rank):
    if rank == 0:
        print(text, flush=True)


def main():
    overrides = parse_overrides(sys.argv[1:]) if sys.argv[1:] not in (["-h"], ["--help"]) else None
    if overrides is None:
        print(__doc__)
        return 0
    card = train(load_config(overrides.pop("config", None), **overrides))
    say(
        f"best validation accuracy {card['validation']['accuracy']:.2%} in epoch {card['validation']['epoch']}",
        int(os.environ.get("RANK", 0)),
    )
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    cli(main)
