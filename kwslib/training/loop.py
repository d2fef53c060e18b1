"""Train one model. This file is the whole loop; the recipe is a config file, or the name of one.

    python -m kwslib.train --config mamba_mel_small
    python -m kwslib.train --config mamba_mel_small --corpus data/subset --epochs 30 --seed 1
    accelerate launch --multi_gpu -m kwslib.train --config mamba_mel_large      (or torchrun)

`out` holds `model.safetensors` with `model.json`, the best weights on validation so far; `history.csv`; `timing.json`;
and while the run lasts `resume.safetensors`. Kill it at any moment: the same command continues after the last whole
epoch and, on the CPU, ends with the same bits. All randomness is a function of (seed, epoch)."""

import contextlib
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import frontend_of, start_from
from kwslib.data.augment import Augment, SpecMask
from kwslib.data.batches import Batches, epoch_seed
from kwslib.data.corpus import load_corpus
from kwslib.data.features import Normalise
from kwslib.data.tasks import FEW, Rows, noise_of, select
from kwslib.io import CLIP, KwsError, locked
from kwslib.models.registry import build
from kwslib.training.device import Place
from kwslib.training.distil import soft_targets
from kwslib.training.optim import Schedule, make_optimizer
from kwslib.training.resume import CHECKPOINT, RESUME, Run, finished_run, recipe_of


def train(config, progress=True):
    """Train `config.model` to the end, continuing what `config.out` holds. Returns the checkpoint's card.

    Raises KwsError, also where another run trains into `config.out`."""
    place, corpus, out = Place(config), load_corpus(config.corpus), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is refused now, not after the first epoch
    busy = f"{out} is being trained by another run"
    with locked(out / ".lock", busy) if place.first else contextlib.nullcontext():
        return train_in(out, config, place, corpus, progress)


def train_in(out, config, place, corpus, progress):
    """`train`, in a folder that is this run's alone."""
    card = {"model": config.model, "recipe": recipe_of(config), "corpus": corpus.origin()}
    if done := finished_run(out, card):
        place.note(f"{out / CHECKPOINT} is trained already")
        return done

    training, validation = (select(corpus, config.task, s, config.seed) for s in ("training", "validation"))
    torch.manual_seed(config.seed)
    frontend = frontend_of(config).to(place.device)
    model = build(config.model, len(training.labels), **config.model_options).to(place.device)
    try_out(model, frontend, config.model)
    given, start = start_from(config.init, model, frontend, training.labels) if config.init else ((), None)
    run = Run(model, make_optimizer(model, config, place.device, given), place.scaler, config.ema, card)
    if run.load(out / RESUME):
        place.note(f"continuing {config.model} after epoch {run.epoch}")
    else:
        if (out / RESUME).exists():
            place.note(f"{out / RESUME} is of another recipe or corpus; starting from scratch")
        normalise = start or normalise_of(config, training, frontend, place.device)
        run.card |= {"labels": training.labels, "features": frontend.options}
        run.card["normalisation"] = normalise.options
    normalise = Normalise(**run.card["normalisation"])
    batches = training_batches(config, place, corpus, training, frontend, normalise)
    checks = Batches(validation, frontend, normalise, 256, place.device, full=config.lengths == "full")
    schedule, parallel = Schedule(config, len(batches)), place.parallel(model)
    note_size(place, config, batches, len(training.targets))

    while run.epoch < config.epochs:
        epoch, started = run.epoch, time.perf_counter()
        torch.manual_seed(epoch_seed(config.seed, epoch, place.rank))  # dropout
        rates = [schedule(epoch * len(batches) + i) * run.lr_scale for i in range(len(batches))]
        if config.guard == "published" and run.collapsed(config.guard):
            rates[0] = max(rates[0] / 5, 1e-6)
        loss = train_epoch(parallel, run.optimizer, batches, epoch, config, rates, place, run.average, progress)
        run.trained += time.perf_counter() - started
        place.share_buffers(model)
        check = validate(run.judged(), checks)
        run.seconds += time.perf_counter() - started
        run.end_epoch(rates[-1], *loss, *check)
        report_epoch(place, config, run, batches.clips())
        if run.collapsed(config.guard):
            run.go_back(config.guard)
            place.say(f"validation accuracy halved: back to epoch {run.best_epoch}, learning rate / 5")
        run.card["validation"] = {"accuracy": run.best, "epoch": run.best_epoch, "n": len(validation.targets)}
        run.card["training"] = {"epochs": run.epoch, "clips": len(training.targets)}
        run.card["training"] |= {"precision": place.precision, "processes": place.world, "resumed": run.resumed}
        run.card["finished"] = run.epoch == config.epochs
        if place.first:
            run.write(out, batches.clips())
    place.wait()
    place.say(f"best validation accuracy {run.best:.2%} in epoch {run.best_epoch}")
    return run.card


def normalise_of(config, training, frontend, device):
    """The normalisation that the recipe asks for, measured on the training clips where it is the corpus': on all of
    them, or where there are more than FEW on half as many, evenly spaced, which takes seconds."""
    if config.normalise == "corpus":
        if isinstance(training.waves, Rows):
            training = replace(training, waves=training.waves.some(FEW // 2))
        return Normalise.measure(training, frontend, device=device)
    return Normalise(kind=config.normalise)


def try_out(model, frontend, name):
    """Raise KwsError where the model cannot read such features: some need a number of bands, or of frames."""
    shape = (1, frontend.frames(CLIP), frontend.n_features)
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(shape, device=frontend.mel.device), None)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as e:
        why = str(e).split("\n")[0]
        remedy = "change n_mels, n_mfcc or hop_length, or model_options"
        raise KwsError(f"model {name} cannot read {shape[1]} frames of {shape[2]} features ({why}); {remedy}") from e


def training_batches(config, place, corpus, training, frontend, normalise):
    """The training split as the recipe wants it: augmented, masked, and with its teachers' targets."""
    if (clips := min(config.batch_size, len(training.targets))) < place.world:
        raise KwsError(f"batch_size gives {clips} clips to {place.world} processes; raise it, or start fewer")
    noisy = config.background_snr is not None or config.background_volume is not None
    background = torch.from_numpy(noise_of(corpus, "training").flatten()).to(place.device) if noisy else None
    augment = Augment(
        config.shift_ms, config.noise, config.stretch, background, config.background_snr,
        config.background_probability, config.speed, config.background_volume,
    )  # fmt: skip
    batches = Batches(
        training, frontend, normalise, config.batch_size, place.device, augment,
        SpecMask(config.freq_mask, config.time_mask, config.mask_on), config.seed, place.rank, place.world,
        config.drop_last, config.lengths == "full",
    )  # fmt: skip
    if config.teachers:
        targets = soft_targets(config.teachers, training, config.distillation, config.temperature, place.device)
        batches.targets = targets.to(place.device)
    return batches


def train_epoch(model, optimizer, batches, epoch, config, rates, place, average=None, progress=False):
    """One pass over the training clips, step i at the learning rate rates[i].

    Returns mean loss and accuracy on augmented clips, all processes'. Raises KwsError where the loss is NaN."""
    rng, device = np.random.default_rng([config.seed, epoch]), place.device
    model.train()
    total = torch.zeros(3, device=device)
    with progress_bar(len(batches), f"{config.model} {epoch + 1}/{config.epochs}", progress and place.first) as bar:
        for i, (inputs, targets, lengths) in enumerate(batches.epoch(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = rates[i] * group.get("share", 1)
            if config.mixup:  # pairs of clips, blended (Zhang et al. 2018); accuracy is that of the louder ones
                share = rng.beta(config.mixup, config.mixup)
                share, other = max(share, 1 - share), torch.from_numpy(rng.permutation(len(targets))).to(device)
                inputs, lengths = share * inputs + (1 - share) * inputs[other], torch.maximum(lengths, lengths[other])
            with place.autocast():
                logits = model(inputs, lengths).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            if config.mixup:
                blended = F.cross_entropy(logits, targets[other], label_smoothing=config.label_smoothing)
                loss = share * loss + (1 - share) * blended
            optimizer.zero_grad(set_to_none=True)
            place.scaler.scale(loss).backward()
            place.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            place.scaler.step(optimizer)
            place.scaler.update()
            if average is not None:
                average.update(getattr(model, "module", model))
            with torch.no_grad():
                true = targets.argmax(1) if targets.dim() > 1 else targets  # a teacher's targets are probabilities
                hits = (logits.argmax(1) == true).sum()
                total += torch.stack([loss * len(targets), hits, loss.new_tensor(len(targets))])
            bar.update()
            if i % 10 == 9 and not bar.disable:
                bar.set_postfix_str(f"loss {total[0] / total[2]:.3f} accuracy {total[1] / total[2]:.1%}")
    place.add_up(total)
    if not math.isfinite(total[0]):
        raise KwsError(f"the loss is not a number in epoch {epoch + 1}; lower lr ({config.lr}) or use precision: fp32")
    return (total[0] / total[2]).item(), (total[1] / total[2]).item()


@torch.no_grad()
def validate(model, batches):
    """Mean cross-entropy (no smoothing) and accuracy over every clip of `batches`, in float32 as the test is read."""
    model.eval()
    loss = hits = count = 0
    for inputs, targets, lengths in batches.all():
        logits = model(inputs, lengths)
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        hits += (logits.argmax(1) == targets).sum().item()
        count += len(targets)
    return loss / count, hits / count


def note_size(place, config, batches, clips):
    """Say what a corpus too small for its batches costs: few steps, and clips left out."""
    if len(batches) < 10:
        place.note(f"an epoch has only {len(batches)} steps; a batch_size below {config.batch_size} gives more")
    if left := clips - batches.clips():
        place.note(f"an epoch leaves out {left} of {clips} clips, which fill no batch of {config.batch_size}")


def progress_bar(total, label, shown):
    """A tqdm bar on a terminal; nothing in logs and notebooks, where a line per epoch is enough."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, leave=False, disable=not (shown and sys.stderr.isatty()))


def report_epoch(place, config, run, clips):
    """One line of results, and one of the time that is left."""
    epoch, _, loss, accuracy, _, check = run.history[-1].values()
    shares = f"training {accuracy:.2%}  validation {check:.2%}"
    place.say(f"{config.model} epoch {epoch}/{config.epochs}  loss {loss:.3f}  {shares}")
    minutes = (config.epochs - epoch) * run.seconds / epoch / 60
    place.note(f"{clips * epoch / run.trained:.0f} clips/s, {minutes:.1f} min left")
