"""The selective scan on a GPU: Triton's kernel against the authors' CUDA kernel, and what each does for whole models.

    python -m paper.benchmarks.gpu --out results/scan/gpu.json      (a minute or two; --small: seconds)

    scan     forward, and forward + backward: kwslib's Triton kernel, mamba_ssm's CUDA kernel, mambapy's parallel scan
             and the plain loop, each in the layout and on the dtype that it is written for: rows as scan.py
             makes them, and the largest difference from the plain loop in float64
    models   a training step of the Mamba models, batch 64, bf16: as recorded CUDA graphs, launched kernel by kernel,
             and on the authors' kernel

Peers are optional; one that does not import is named under `missing`, with the reason. Every side gets as many calls.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial

import torch

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, KwsError, cli, write_json
from kwslib.machine import machine
from kwslib.models.registry import build
from kwslib.scan import use_backend
from kwslib.training.graphs import Graphed
from paper.benchmarks.scan import benchmark_shapes, differences
from paper.benchmarks.scan_peers import STATE, available, inputs, kwslib_scan, mamba_ssm_cuda, mambapy_scan, plain_loop
from paper.benchmarks.timing import quartiles, rounds, watch_load
from paper.benchmarks.training import recipe

BATCHES, CHANNELS, LENGTHS = (1, 64, 256), (128,), (31, 63, 126, 1000, 16_000)
MOST = {"kwslib": 1e9, "mamba_ssm_cuda": 1e9, "mambapy": 4e8, "reference": 4e8}  # numbers with a state each
LONGEST = {"reference": 126}  # the plain loop launches a dozen kernels a step
MODELS = ("mamba_mel_small", "mamba_mel_medium", "mamba_mel_large", "mamba_mfcc_small", "mamba_light")
SCANS = {
    "kwslib": partial(kwslib_scan, backend="triton"),
    "mamba_ssm_cuda": mamba_ssm_cuda,
    "mambapy": mambapy_scan,
    "reference": plain_loop,
}


def skipped(name, row):
    """Why this scan is not run at this row's shape and dtype, or None."""
    size = row["batch"] * row["length"] * row["channels"] * STATE
    if size > MOST[name] or row["length"] > LONGEST.get(name, size):
        return "not run: too large or too slow"
    if name == "mambapy" and row["dtype"] != "float32":
        return "not run: it takes one dtype for all arguments"
    return None


def train_step(model, x, lengths):
    """Features to gradients, without an optimizer."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(x, lengths).float().logsumexp(1).sum()
    loss.backward()
    for p in model.parameters():
        p.grad = None


def benchmark_steps(names, budget, scans, batch=64):
    """{model: {way: quartiles}} of one training step from features to gradients."""
    found, device = {}, torch.device("cuda")
    for name in names:
        frontend = frontend_of(recipe(name))
        frames = frontend.frames(CLIP)
        x = torch.randn(batch, frames, frontend.n_features, device=device)
        lengths = torch.full((batch,), frames, device=device)
        torch.manual_seed(0)
        model = build(name).to(device).train()
        launched = partial(train_step, model, x, lengths)

        def on_mamba_ssm(step=launched):
            with use_backend("mamba_ssm"):
                step()

        ways = {"launched": launched} | ({"mamba_ssm": on_mamba_ssm} if "mamba_ssm_cuda" in scans else {})
        ways["graph"] = partial(train_step, Graphed(model, True).train(), x, lengths)
        found[name] = {way: quartiles(ms) for way, ms in rounds(ways, device, budget * len(ways)).items()}
    return found


def benchmark_gpu(out=None, small=False, budget=0.03, show=None):
    """The whole benchmark: gpu.json's content, also written to `out`."""
    if not torch.cuda.is_available():
        raise KwsError("PyTorch sees no GPU here; this benchmark needs one, paper.benchmarks.scan is for processors")
    device = torch.device("cuda")
    scans, missing = available(SCANS, inputs(1, 2, 4, device=device))
    grid = itertools.product((2,), (128,), (31,)) if small else itertools.product(BATCHES, CHANNELS, LENGTHS)
    shapes = [{"batch": b, "channels": c, "length": n} for b, c, n in grid]
    with watch_load() as load:
        result = {
            "machine": machine(),
            "triton": sys.modules["triton"].__version__,
            "missing": missing,
            "difference": differences(scans, device),
            "scan": benchmark_shapes(
                scans, shapes, budget, show, skipped, device, dtypes=(torch.float32, torch.bfloat16)
            ),
            "models": benchmark_steps(MODELS[:1] if small else MODELS, 4 * budget, scans),
        }
    result |= load
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
