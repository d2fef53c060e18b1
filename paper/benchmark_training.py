"""What the fused scan does for whole models: training and latency of each Mamba variant, before and after.

"After" is the training loop of kwslib.training: features of a whole batch at once, bf16 where the processor has it,
channels-last convolutions, the fused scan. "Before" is the same model as the paper's code trains it: the plain
scan, float32, features clip by clip in DataLoader workers.
"""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F

from kwslib.data.augment import Augment, SpecMask
from kwslib.data.batches import Batches, SpeechCommands, collate_seq
from kwslib.data.features import Normalise, WaveToSpec
from kwslib.data.tasks import Split
from kwslib.io import CLIP
from kwslib.machine import autocast_to, pick_precision, threads
from kwslib.models.registry import build, features_of
from kwslib.scan import use_backend
from kwslib.training.config import Config
from kwslib.training.device import Place
from kwslib.training.loop import train_epoch
from kwslib.training.optim import parameter_groups
from paper.timing import timings

CPU = torch.device("cpu")
MODELS = tuple(f"mamba_{kind}_{size}" for kind in ("mel", "mfcc") for size in ("small", "medium", "large"))


def clips(count):
    """A split of noise: what a clip says does not change what it costs."""
    g = torch.Generator().manual_seed(0)
    waves = torch.randint(-3000, 3000, (count, CLIP), generator=g, dtype=torch.int16)
    empty = ["-"] * count
    return Split(waves, torch.arange(count) % 35, torch.full((count,), CLIP), empty, empty, [str(i) for i in range(35)])


def recipe(name):
    return Config(model=name, batch_size=64, epochs=1, threads=0, device="cpu")


def our_training(name, steps):
    """Clips a second of the training loop as kwslib.training runs it, augmentation included."""
    config, frontend = recipe(name), WaveToSpec(kind=features_of(name))
    model = build(name)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), fused=True)
    augment, mask = Augment(config.shift_ms, config.noise), SpecMask(config.freq_mask, config.time_mask)
    batches = Batches(clips(64 * steps), frontend, Normalise(-40.0, 20.0), 64, "cpu", augment, mask)
    few = Batches(clips(128), frontend, Normalise(-40.0, 20.0), 64, "cpu", augment, mask)
    rates = [config.lr] * max(2, steps)  # two in the warm-up
    train = partial(train_epoch, model, optimizer, config=config, rates=rates, place=Place(config))
    train(few, 0)  # warm-up
    started = time.perf_counter()
    train(batches, 1)
    return 64 * steps / (time.perf_counter() - started)


class PlainBatches:
    """The paper's way: clip-by-clip features in DataLoader workers, collated, as `train_epoch` takes batches."""

    def __init__(self, name, steps):
        dataset = SpeechCommands(clips(64 * steps), Augment(120.0, [0.0, 0.005]), WaveToSpec(kind=features_of(name)))
        workers = torch.get_num_threads()
        self.loader = torch.utils.data.DataLoader(dataset, 64, collate_fn=collate_seq, num_workers=workers)

    def __len__(self):
        return len(self.loader)

    def epoch(self, epoch):
        for waves, targets, lengths in self.loader:
            yield (waves + 40) / 20, targets, lengths


def plain_training(name, steps):
    config, model = recipe(name), build(name).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay))
    place = Place(config.model_copy(update={"precision": "fp32"}))
    train = partial(train_epoch, model, optimizer, config=config, rates=[config.lr] * steps, place=place)
    with use_backend("reference"):
        train(PlainBatches(name, 1), 0)
        batches = PlainBatches(name, steps)
        started = time.perf_counter()
        train(batches, 1)
        return 64 * steps / (time.perf_counter() - started)


def benchmark_training(names, steps, budget, show):
    found = {}
    for name in names:
        model = build(name).eval()
        x = torch.randn(1, 63, 128 if features_of(name) == "mel" else 40)
        with torch.inference_mode(), threads(1):
            fast = float(timings(partial(model, x), CPU, budget, least=5).min())
            with use_backend("reference"):
                plain = float(timings(partial(model, x), CPU, budget, least=5).min())
        found[name] = {
            "clips_per_second": our_training(name, steps),
            "plain_clips_per_second": plain_training(name, max(1, steps // 8)),
            "latency_ms": fast,
            "plain_latency_ms": plain,
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


def profile_step(name, batch=64):
    """Share of each kind of work in one training step, as PyTorch's profiler sees it; features are timed beside it."""
    from torch.profiler import ProfilerActivity, profile

    bf16, config = pick_precision("auto", CPU), recipe(name)
    frontend, waves = WaveToSpec(kind=features_of(name)), torch.randn(batch, CLIP) * 0.1
    model, x = build(name).train(), frontend(waves) / 40
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), fused=True)

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
