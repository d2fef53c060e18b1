"""The selective scan on a GPU: Triton's kernel against the authors' CUDA kernel, and what each does for whole models.

    python -m paper.benchmarks.gpu --out results/scan/gpu.json      (a minute or two; --small: seconds)

    scan     forward, and forward + backward: kwslib's Triton kernel, mamba_ssm's CUDA kernel, mambapy's parallel scan
             and the plain loop, each in the layout and on the dtype that it is written for: rows as scan.py
             makes them, and the largest difference from the plain loop in float64
    models   a training step of the Mamba models, batch 64, bf16: as recorded CUDA graphs, launched kernel by kernel,
             and on the authors' kernel

gpu.md beside it is its table. Peers are optional; one that does not import is named under `missing`, with the reason.
Every side gets as many calls.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, KwsError, cli, replacing, write_json
from kwslib.machine import machine
from kwslib.models.registry import MODELS, build
from kwslib.scan import use_backend
from kwslib.training.graphs import Graphed
from paper.benchmarks.scan import benchmark_shapes, differences
from paper.benchmarks.scan_peers import STATE, available, inputs, kwslib_scan, mamba_ssm_cuda, mambapy_scan, plain_loop
from paper.benchmarks.timing import quartiles, rounds, watch_load
from paper.benchmarks.training import recipe
from paper.writing import captioned, significant

BATCHES, CHANNELS, LENGTHS = (1, 64, 256), (128,), (31, 63, 126, 1000, 16_000)
MOST = {"kwslib": 1e9, "mamba_ssm_cuda": 1e9, "mambapy": 4e8, "reference": 4e8}  # numbers with a state each
LONGEST = {"reference": 126}  # the plain loop launches a dozen kernels a step
STEPS = ("mamba_mel_small", "mamba_mel_medium", "mamba_mel_large", "mamba_mfcc_small", "mamba_light")
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
            "models": benchmark_steps(STEPS[:1] if small else STEPS, 4 * budget, scans),
        }
    result |= load
    if out:
        write_json(out, result)
        with replacing(Path(out).with_suffix(".md")) as scratch:
            scratch.write_text(table(result), encoding="utf-8")
    return result


def table(result):
    """Markdown: the scan in bf16 at each shape, and the training steps, ours beside the authors' kernel."""

    def row(task, ours, theirs, steps):
        times = f"{theirs / ours:.2f}" if theirs else "–"
        return [task, *(significant(ms) if ms else "–" for ms in (ours, theirs)), times, steps]

    rows = []
    for r in result["scan"]:
        if r["dtype"] == "bfloat16" and "kwslib" in (ms := r["ms"]["gpu"]):
            task = {"forward": "scan", "both": "scan and gradients"}[r["mode"]]
            shape = f"{task}, {r['batch']} × {r['length']:,} × {r['channels']}"
            rows.append(row(shape, ms["kwslib"], ms.get("mamba_ssm_cuda"), "–"))
    for name, ways in result["models"].items():
        ms = {way: found["p50"] for way, found in ways.items()}
        task = f"training step, {MODELS[name].label}"
        rows.append(row(task, ms["launched"], ms.get("mamba_ssm"), significant(ms["graph"])))
    caption = (
        "The selective scan in bf16 (clips × steps × channels, 16 states), and training steps of 64 clips: kwslib's "
        "Triton kernel beside mamba_ssm's CUDA kernel, both launched from Python, medians; the last column is our "
        f"step as one recorded CUDA graph. Timed on {result['machine']['gpu']}, PyTorch {result['machine']['torch']}."
    )
    names = ["Task", "kwslib (ms)", "mamba_ssm (ms)", "mamba_ssm's time, kwslib's = 1", "kwslib, recorded (ms)"]
    return captioned(pd.DataFrame(rows, columns=names), caption)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    a = parser.parse_args(argv)
    benchmark_gpu(a.out, a.small, show=lambda row: print(row, flush=True))


if __name__ == "__main__":
    cli(main)
