"""The selective scan on a GPU: Triton's kernel against the authors' CUDA kernel, and what each does for whole models.

    python -m paper.benchmark_gpu --out results/scan/gpu.json      (under a minute; --small: seconds)

    scan     forward, and forward + backward: kwslib's Triton kernel, mamba_ssm's CUDA kernel, mambapy's parallel scan
             and the plain loop, each in the layout and on the dtype that it is written for; milliseconds a call, as
             medians with quartiles, and the largest difference from the plain loop in float64
    models   a training step of the Mamba models, batch 64, bf16: as recorded CUDA graphs, launched kernel by kernel,
             and on the authors' kernel

Peers are optional; one that does not import is named under `missing`, with the reason. Every side gets as much time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial

import numpy as np
import torch

from kwslib.io import KwsError, cli, write_json
from kwslib.machine import machine
from kwslib.models.registry import build, features_of
from kwslib.scan import selective_scan, use_backend
from paper.benchmark_scan import available, backward_too, channels_first, inputs, leaves_of, mambapy_scan
from paper.cuda_graphs import Graphed
from paper.timing import timings

BATCHES, CHANNELS, LENGTHS = (1, 64, 256), (128,), (31, 63, 126, 1000, 16_000)
MOST = {"kwslib": 1e9, "mamba_ssm": 1e9, "mambapy": 4e8, "reference": 4e8}  # numbers with a state each
LONGEST = {"reference": 126}  # the plain loop launches a dozen kernels a step
MODELS = ("mamba_mel_small", "mamba_mel_medium", "mamba_mel_large", "mamba_mfcc_small", "mamba_light")


def ours(t):
    return partial(selective_scan, **t, delta_softplus=True, layout="bld", backend="triton")


def reference(t):
    return partial(selective_scan, **t, delta_softplus=True, layout="bld", backend="reference")


def authors(t):
    """mamba_ssm's CUDA kernel in its own layout: no transposes are counted against it."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return partial(selective_scan_fn, **channels_first(t), delta_softplus=True)


SCANS = {"kwslib": ours, "mamba_ssm": authors, "mambapy": mambapy_scan, "reference": reference}


def arguments(shape, dtype, grad):
    """A scan's arguments on the GPU: sequences of `dtype`, the rest float32, as autocast leaves them."""
    t = inputs(shape["batch"], shape["length"], shape["channels"])
    return {k: v.cuda().to(dtype if v.dim() == 3 else torch.float32).requires_grad_(grad) for k, v in t.items()}


def spread(took):
    """Median and quartiles of milliseconds, and of how many calls."""
    low, median, high = np.percentile(took, (25, 50, 75))
    return {"ms": float(median), "quartiles": [float(low), float(high)], "calls": len(took)}


def benchmark_shapes(scans, shapes, budget, show=None):
    """One row {batch, length, channels, mode, dtype, times: {name: spread}, missing: {name: why}} for each shape."""
    rows, device = [], torch.device("cuda")
    for shape, mode, dtype in itertools.product(shapes, ("forward", "both"), (torch.float32, torch.bfloat16)):
        row = {**shape, "mode": mode, "dtype": str(dtype).split(".")[1], "times": {}, "missing": {}}
        for name, make in scans.items():
            size = shape["batch"] * shape["length"] * shape["channels"] * 16
            if size > MOST[name] or shape["length"] > LONGEST.get(name, size):
                row["missing"][name] = "not run: too large or too slow"
                continue
            if name == "mambapy" and dtype is not torch.float32:
                row["missing"][name] = "not run: it takes one dtype for all arguments"
                continue
            with torch.set_grad_enabled(mode == "both"):
                t = arguments(shape, dtype, mode == "both")
                run = make(t)
                run = backward_too(run, leaves_of(run, t)) if mode == "both" else run
                row["times"][name] = spread(timings(run, device, budget))
        rows.append(row)
        if show:
            show(row)
    return rows


def differences(scans):
    """Largest difference of each scan's output from the plain loop in float64, over the largest output; float32."""
    t = arguments({"batch": 2, "length": 126, "channels": 128}, torch.float32, False)
    exact = reference({k: v.double() for k, v in t.items()})()
    found = {}
    for name, make in scans.items():
        y = make(t)()
        y = y if y.shape == exact.shape else y.mT
        found[name] = float((y.double() - exact).abs().max() / exact.abs().max())
    return found


def train_step(model, x, lengths):
    """Features to gradients, without an optimizer."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(x, lengths).float().logsumexp(1).sum()
    loss.backward()
    for p in model.parameters():
        p.grad = None


def benchmark_steps(names, budget, scans, batch=64):
    """{model: {way: spread}} of one training step from features to gradients."""
    found, device = {}, torch.device("cuda")
    for name in names:
        x = torch.randn(batch, 63, 128 if features_of(name) == "mel" else 40, device=device)
        x = x[..., :64] if name == "mamba_light" else x
        lengths = torch.full((batch,), 63, device=device)

        torch.manual_seed(0)
        model = build(name).to(device).train()
        found[name] = {"launched": spread(timings(partial(train_step, model, x, lengths), device, budget))}
        if "mamba_ssm" in scans:
            with use_backend("mamba_ssm"):
                found[name]["mamba_ssm"] = spread(timings(partial(train_step, model, x, lengths), device, budget))
        found[name]["graph"] = spread(
            timings(partial(train_step, Graphed(model, True).train(), x, lengths), device, budget)
        )
    return found


def benchmark_gpu(out=None, small=False, budget=0.03, show=None):
    """The whole benchmark: gpu.json's content, also written to `out`."""
    if not torch.cuda.is_available():
        raise KwsError("PyTorch sees no GPU here; this benchmark needs one, paper.benchmark_scan is for processors")
    probe = arguments({"batch": 1, "length": 2, "channels": 4}, torch.float32, False)
    scans, missing = available(SCANS, probe)
    grid = itertools.product((2,), (128,), (31,)) if small else itertools.product(BATCHES, CHANNELS, LENGTHS)
    shapes = [{"batch": b, "channels": c, "length": n} for b, c, n in grid]
    result = {
        "machine": machine(),
        "triton": sys.modules["triton"].__version__,
        "missing": missing,
        "difference": differences(scans),
        "scan": benchmark_shapes(scans, shapes, budget, show),
        "models": benchmark_steps(MODELS[:1] if small else MODELS, 4 * budget, scans),
    }
    if out:
        write_json(out, result)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    a = parser.parse_args(argv)
    benchmark_gpu(a.out, a.small, show=lambda row: print(row, flush=True))


if __name__ == "__main__":
    cli(main)
