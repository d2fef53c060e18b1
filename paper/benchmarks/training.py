"""What the fused scan does for whole models: the latency of each Mamba variant, and its training, change by change.

Training starts from the plain scan of PyTorch in float32, contiguous kernels, and features made clip by clip in
DataLoader workers; CHANGES are made to it one after the other, each on top of those before it. The last way is that of
kwslib.training. All ways have the same optimizer, augmentation and batches of 64 clips. (The published runs were made
on a GPU with CUDA kernels under bf16: none of these ways is theirs.)
"""

from __future__ import annotations

import contextlib
import itertools
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import frontend_of
from kwslib.data.augment import Augment, SpecMask
from kwslib.data.batches import Batches, SpeechCommands, collate_seq
from kwslib.data.features import Normalise
from kwslib.data.tasks import Split
from kwslib.io import CLIP
from kwslib.machine import autocast_to, pick_precision, threads
from kwslib.models.registry import build
from kwslib.scan import use_backend
from kwslib.training.config import RECIPES, load_config
from kwslib.training.device import Place
from kwslib.training.loop import train_epoch
from kwslib.training.optim import make_optimizer
from paper.benchmarks.timing import quartiles, rounds, timings

CPU = torch.device("cpu")
MODELS = tuple(f"mamba_{kind}_{size}" for kind in ("mel", "mfcc") for size in ("small", "medium", "large"))
ABLATED = ("mamba_mel_small", "mamba_mfcc_small")  # a step of the larger ones on the plain scan takes up to 17 s
START, BATCH = "plain PyTorch scan, float32", 64
CHANGES = {"fused scan": "fused", "bf16": "bf16", "channels-last": "channels_last", "features by batch": "batched"}
ROUNDS, WARM_UP, STEPS = 3, 4, 10  # of every way: rounds, and in each the untimed and the timed steps


def clips(count):
    """A split of noise: what a clip says does not change what it costs."""
    g = torch.Generator().manual_seed(0)
    waves = torch.randint(-3000, 3000, (count, CLIP), generator=g, dtype=torch.int16)
    empty = ["-"] * count
    return Split(waves, torch.arange(count) % 35, torch.full((count,), CLIP), empty, empty, [str(i) for i in range(35)])


def recipe(name, precision="auto"):
    """A model's own recipe, for this measurement."""
    here = {"batch_size": BATCH, "epochs": 1, "threads": 0, "device": "cpu", "precision": precision}
    return load_config(RECIPES / f"{name}.yaml").model_copy(update=here)


class ClipByClip:
    """Batches for `train_epoch`, of features made clip by clip in DataLoader workers, as the paper's code does."""

    def __init__(self, split, frontend, normalise, augment, mask, batch=BATCH):
        self.normalise, self.mask, workers = normalise, mask, torch.get_num_threads()
        dataset = SpeechCommands(split, augment, frontend)
        self.loader = torch.utils.data.DataLoader(dataset, batch, collate_fn=collate_seq, num_workers=workers)

    def epoch(self, epoch):
        for features, targets, lengths in self.loader:
            masked = self.mask(features) if self.mask.on == "features" else features
            inputs = self.normalise(masked)
            yield self.mask(inputs) if self.mask.on == "normalised" else inputs, targets, lengths


class Clock:
    """The first `count` of some batches. `ends` notes when the next one is asked for: when a step is over."""

    def __init__(self, batches, count):
        self.batches, self.count, self.ends = batches, count, []

    def __len__(self):
        return self.count

    def epoch(self, epoch):
        with contextlib.closing(self.batches.epoch(epoch)) as feed:  # closed, workers end
            for batch in itertools.islice(feed, self.count):
                yield batch
                self.ends.append(time.perf_counter())


class Way:
    """One way to train a model on `clips`."""

    def __init__(self, name, clips, batch=BATCH, fused=False, bf16=False, channels_last=False, batched=False):
        torch.manual_seed(0)
        self.config, self.backend = recipe(name, "bf16" if bf16 else "fp32"), None if fused else "reference"
        self.model = build(name)  # its kernels are channels-last
        if not channels_last:
            self.model.to(memory_format=torch.contiguous_format)
        self.optimizer = make_optimizer(self.model, self.config, CPU)
        augment = Augment(self.config.shift_ms, self.config.noise)
        mask = SpecMask(self.config.freq_mask, self.config.time_mask, self.config.mask_on)
        frontend, normalise = frontend_of(self.config), Normalise(-40.0, 20.0)
        if batched:
            self.batches = Batches(clips, frontend, normalise, batch, "cpu", augment, mask)
        else:
            self.batches = ClipByClip(clips, frontend, normalise, augment, mask, batch)

    def turn(self, warm_up, steps):
        """Milliseconds of each of `steps` steps, that of getting its batch included, after some untimed ones."""
        clock, rates = Clock(self.batches, warm_up + steps), [self.config.lr] * (warm_up + steps)
        with use_backend(self.backend):
            train_epoch(self.model, self.optimizer, clock, 0, self.config, rates, Place(self.config))
        return 1000 * np.diff(clock.ends)[warm_up - 1 :]


def ways_of(name, ablated=True):
    """name -> options of the ways to train a model here: all, or the last alone. A change that changes nothing is left
    out: bf16 on a processor without it, channels-last in a model without convolutions over images.
    """
    images = any(p.dim() == 4 for p in build(name).parameters())
    without = {"bf16": not pick_precision("auto", CPU), "channels-last": not images}
    ways, options = {START: {}}, {}
    for change, option in CHANGES.items():
        if not without.get(change):
            options = options | {option: True}
            ways[f"+ {change}"] = options
    return ways if ablated else dict(list(ways.items())[-1:])


def training(name, ablated, small=False):
    """way -> quartiles of the milliseconds of a training step; the ways take turns."""
    count, warm_up, steps, batch = (1, 1, 2, 4) if small else (ROUNDS, WARM_UP, STEPS, BATCH)
    # workers make batches ahead; without some to spare, they would leave the cores to the last steps
    data = clips(batch * (warm_up + steps + 2 * torch.get_num_threads()))
    ways = {way: Way(name, data, batch, **options) for way, options in ways_of(name, ablated).items()}
    took = {way: [] for way in ways}
    for _ in range(count):
        for way in ways:
            took[way].extend(ways[way].turn(warm_up, steps))
    return {way: quartiles(ms) for way, ms in took.items()}


@torch.inference_mode()
def latency(name, budget):
    """{side: quartiles} of the milliseconds of one clip, features to logits, on one thread; sides: the two scans."""
    model, frontend = build(name).eval(), frontend_of(recipe(name))
    x = torch.randn(1, frontend.frames(CLIP), frontend.n_features)

    def plain():
        with use_backend("reference"):
            model(x)

    with threads(1):
        took = rounds({"kwslib": partial(model, x), "reference": plain}, CPU, budget)
    return {side: quartiles(ms) for side, ms in took.items()}


def benchmark_training(names, ablated, small, budget, show):
    """model -> {training: {way: quartiles}, latency: {side: quartiles}, profile: {kind: share}}."""
    found = {}
    for name in names:
        found[name] = {
            "training": training(name, name in ablated or small, small),
            "latency": latency(name, budget),
            "profile": profile_step(name),
        }
        if show:
            show({"model": name, **found[name]})
    return found


KINDS = {
    "convolution (front-end)": ("conv",),
    "scan": ("Scan",),
    "linear": ("addmm", "aten::mm", "linear", "bmm"),
    "norm, activation, pooling": ("norm", "silu", "pool"),
    "dropout": ("bernoulli", "dropout"),
    "optimiser": ("_foreach", "_fused", "Optimizer", "adam"),
    # the short causal convolution, as products with shifted frames, is among these
    "element-wise, copies": ("aten::mul", "aten::add", "aten::sum", "aten::div", "copy", "aten::cat", "aten::fill"),
}


def profile_step(name, batch=BATCH):
    """Share of each kind of work in one training step, as PyTorch's profiler sees it; features are timed beside it."""
    from torch.profiler import ProfilerActivity, profile

    bf16, config = pick_precision("auto", CPU), recipe(name)
    frontend, waves = frontend_of(config), torch.randn(batch, CLIP) * 0.1
    model, x = build(name).train(), frontend(waves) / 40
    optimizer = make_optimizer(model, config, CPU)

    def step():
        with autocast_to(CPU, bf16):
            loss = F.cross_entropy(model(x).float(), torch.arange(batch) % 35)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as run:
        step()
        step()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in run.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), "other")
        spent[kind] += event.self_cpu_time_total / 2000
    spent["features"] = float(timings(lambda: frontend(waves), CPU, 0.1).min())
    return {kind: ms / sum(spent.values()) for kind, ms in spent.items()}
