"""The selective scan against everything else that runs on a processor, and what it does for whole models.

    python -m paper.benchmark_scan --out results/scan/scan.json      (a quarter of an hour; --small: seconds)

    scan      kwslib's scan, mamba_ssm's selective_scan_ref, mambapy's parallel scan and transformers' scan without
              CUDA: forward, and forward + backward, on one thread and on all; time and peak memory
    length    time and memory of one sequence against its length, with the fitted exponent
    models    training (clips/s) and latency of whole models, against the same model on the plain scan, fed by
              DataLoader workers clip by clip in float32, as the paper's code does it
    profile   where the time of a training step goes
    peaks     what the machine can do, measured in the same run, and the share of it that the scan reaches

Peers are optional (`make peers`); one that does not import is named under `missing`, with the reason. The rest is
computed the same way whoever is there. Figures of one run are comparable, figures of two are not.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import sys
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F

from kwslib.io import KwsError, cli, write_json
from kwslib.machine import keep_memory, machine, threads
from kwslib.scan import selective_scan
from paper.benchmark_models import fit_exponent
from paper.benchmark_training import MODELS, benchmark_training
from paper.memory import peak_memory
from paper.timing import timings

CPU = torch.device("cpu")
STATE = 16
BATCHES, CHANNELS, LENGTHS = (1, 16, 64, 256), (128, 256, 384), (31, 63, 101, 1000, 16_000)
LONG = (1000, 2000, 4000, 8000, 16_000, 32_000, 64_000)
MOST_OURS = 40_000_000  # numbers (batch x length x channels) in one sequence tensor: eight such take 1.3 GB
MOST_PEER = 27_000_000  # numbers with a state each, of which a peer keeps about ten tensors: 1.1 GB
# Loops over PyTorch operations: backward writes a whole gradient for each step; its time is quadratic in the length.
LOOPS, MOST_SQUARED = ("mamba_ssm", "transformers"), 6_200_000_000
# Vector instructions per number with a state, counted in kwslib/scan/cpu_kernels.py and cpu_math.py. Forward: 1 for ΔA,
# 13 for 2**x, 4 for the recurrence and the read-out. Backward: those again, and 8. What is per channel alone (softplus,
# gate) costs 55 forward and 110 backward, over STATE states.
INSTRUCTIONS = {"forward": 18 + 55 / STATE, "both": 18 + 18 + 8 + (55 + 110) / STATE}
# Numbers that must cross the memory bus, per batch x length x channels: u, Δ, z and y; then these three and
# grad y read, and three gradients written. B, C and the kept states are small beside them.
TRAFFIC = {"forward": 4, "both": 4 + 4 + 3}


def inputs(batch, length, channels, state=STATE, grad=False):
    """Arguments of a scan by name, in layout "bld", of the size that a fresh Mamba gives them."""
    g = torch.Generator().manual_seed(0)
    made = {k: torch.randn(batch, length, channels, generator=g) for k in ("u", "delta", "z")}
    made |= {k: torch.randn(batch, length, state, generator=g) for k in ("B", "C")}
    made["A"] = -torch.arange(1, state + 1.0).repeat(channels, 1)
    made |= {"D": torch.ones(channels), "delta_bias": torch.rand(channels, generator=g) - 4}
    return {k: v.requires_grad_(grad) for k, v in made.items()}


def ours(t):
    return partial(selective_scan, **t, delta_softplus=True, layout="bld")


def mamba_ssm_reference(t):
    """mamba_ssm's plain PyTorch; its package asks for its CUDA extension when imported, which a stand-in answers."""
    standing_in = "selective_scan_cuda" not in sys.modules
    if standing_in:
        sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    try:
        scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    finally:
        if standing_in:
            del sys.modules["selective_scan_cuda"]
    run = partial(scan, **channels_first(t), delta_softplus=True)
    return lambda: run().mT


def channels_first(t):
    """The same arguments with sequences (batch, channels, length), each in memory of its own."""
    return {k: v.detach().mT.contiguous().requires_grad_(v.requires_grad) if v.dim() == 3 else v for k, v in t.items()}


def mambapy_scan(t):
    """mambapy's parallel scan, with the softplus before it and the gate behind it as its block has them."""
    scan = partial(importlib.import_module("mambapy.mamba").MambaBlock.selective_scan, None)

    def run():
        delta = F.softplus(t["delta"] + t["delta_bias"])
        return scan(t["u"], delta, t["A"], t["B"], t["C"], t["D"]) * F.silu(t["z"])

    return run


def transformers_scan(t):
    """transformers' loop, from under the wrapper that looks for CUDA kernels."""
    scan = inspect.unwrap(importlib.import_module("transformers.models.mamba.modeling_mamba").mamba_selective_scan)
    t = channels_first(t)
    run = partial(scan, t.pop("u"), t.pop("delta"), **t, delta_softplus=True)
    return lambda: run().mT


SCANS = {"kwslib": ours, "mamba_ssm": mamba_ssm_reference, "mambapy": mambapy_scan, "transformers": transformers_scan}


def available(implementations, *arguments):
    """Those that import, and for the others the reason."""
    works, missing = {}, {}
    for name, make in implementations.items():
        try:
            make(*arguments)()
            works[name] = make
        except (ImportError, AttributeError, TypeError) as e:
            missing[name] = f"{type(e).__name__}: {str(e).splitlines()[0]}"
    return works, missing


def backward_too(run, leaves):
    """`run` followed by the gradients of its result's sum for all `leaves`."""
    leaves = [t for t in leaves if t.requires_grad]

    def both():
        y = run()
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return both


def benchmark_shapes(makers, shapes, budget, show):
    """Rows of {shape, mode, threads, name: {ms, mb}} for every shape; what is too large has `missing` instead."""
    rows = []
    for shape, mode in itertools.product(shapes, ("forward", "both")):
        counts = sorted({1, torch.get_num_threads()})
        row = {**shape, "mode": mode, "ms": {str(n): {} for n in counts}, "mb": {}, "missing": {}}
        for name, make in makers.items():
            size = shape["batch"] * shape["length"] * shape["channels"] * (1 if name == "kwslib" else STATE)
            if size > (MOST_OURS if name == "kwslib" else MOST_PEER):
                row["missing"][name] = f"not run: tensors of {4 * size / 1e6:,.0f} MB"
                continue
            if mode == "both" and name in LOOPS and size * shape["length"] > MOST_SQUARED:
                row["missing"][name] = "not run: its backward pass takes time quadratic in the length"
                continue
            run = scan_run(make, shape, mode)
            with torch.set_grad_enabled(mode == "both"):
                for n in counts:
                    with threads(n):
                        row["ms"][str(n)][name] = float(timings(run, CPU, budget, least=3).min())
                row["mb"][name] = peak_memory(run, CPU)
        rows.append(row)
        if show:
            show(row)
    return rows


def scan_run(make, shape, mode):
    t = inputs(shape["batch"], shape["length"], shape["channels"], grad=mode == "both")
    run = make(t)
    return backward_too(run, leaves_of(run, t)) if mode == "both" else run


def leaves_of(run, t):
    """Leaves of the graph that `run` makes: a peer with another layout has its own copies of the sequences."""
    y, leaves, seen = run(), [], set()
    todo = [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        todo += [n for n, _ in node.next_functions]
    return leaves


def differences(makers):
    """Largest difference of each output from the plain loop in float64, at one shape, over the largest output."""
    t = inputs(2, 63, 128)
    exact = ours({k: v.double() for k, v in t.items()})()
    return {name: float((make(t)() - exact).abs().max() / exact.abs().max()) for name, make in makers.items()}


def peaks(budget):
    """What the machine does: float32 multiply-adds in a matrix product, and memory traffic in a copy, by threads."""
    found, a, b = {}, torch.randn(2048, 2048), torch.randn(2048, 2048)
    source, target = torch.randn(64_000_000), torch.empty(64_000_000)
    for n in sorted({1, torch.get_num_threads()}):
        with threads(n):
            product = timings(lambda: torch.mm(a, b, out=a.new_empty(2048, 2048)), CPU, budget).min()
            copy = timings(lambda: target.copy_(source), CPU, budget).min()
        found[str(n)] = {"fma_per_second": 2048**3 / product * 1000, "bytes_per_second": 2 * 4 * 64e6 / copy * 1000}
    return found


def shares(rows, peak):
    """kwslib's vector instructions a second over a matrix product's multiply-adds, and its share of the bandwidth.

    The first may pass 1: the product does not fill the units, and not every instruction is a multiply-add.
    """
    for row in rows:
        size = row["batch"] * row["length"] * row["channels"]
        row["share"] = {
            n: {
                "fma": INSTRUCTIONS[row["mode"]] * size * STATE / (ms["kwslib"] / 1000) / peak[n]["fma_per_second"],
                "memory": 4 * TRAFFIC[row["mode"]] * size / (ms["kwslib"] / 1000) / peak[n]["bytes_per_second"],
            }
            for n, ms in row["ms"].items()
            if "kwslib" in ms
        }
    return rows


def benchmark_length(lengths, budget, channels=128):
    """Time and memory of one sequence, forward and both, and the exponents of each over all `lengths`."""
    part = {"lengths": list(lengths), "channels": channels}
    for mode in ("forward", "both"):
        values = {"ms": [], "mb": []}
        for length in lengths:
            run = scan_run(ours, {"batch": 1, "length": length, "channels": channels}, mode)
            with torch.set_grad_enabled(mode == "both"):
                values["ms"].append(float(timings(run, CPU, budget, least=5).min()))
                values["mb"].append(peak_memory(run, CPU))
        for key, what in (("ms", "time"), ("mb", "memory")):
            values[f"exponent_{what}"] = fit_exponent(lengths, values[key], len(lengths))
        part[mode] = values
    return part


def benchmark_scan(out=None, small=False, budget=0.1, show=None):
    """The whole benchmark: scan.json's content, also written to `out`. small: in seconds, to see that it works."""
    if not budget > 0:
        raise KwsError(f"the budget is {budget} s; it must be above 0")
    keep_memory()
    scans, missing = available(SCANS, inputs(1, 2, 4))
    grid = itertools.product((1, 2), (128,), (31,)) if small else itertools.product(BATCHES, CHANNELS, LENGTHS)
    shapes = [{"batch": b, "channels": c, "length": n} for b, c, n in grid]
    budget = 0.01 if small else budget
    peak = peaks(max(budget, 0.5))  # long enough to meet a quiet moment of the machine
    result = {
        "machine": machine(),
        "state": STATE,
        "peaks": peak,
        "missing": missing,
        "difference": differences(scans),
        "instructions": INSTRUCTIONS,
        "traffic": TRAFFIC,
        "scan": shares(benchmark_shapes(scans, shapes, budget, show), peak),
        "length": benchmark_length(LONG[:3] if small else LONG, budget),
        "models": benchmark_training(MODELS[3:4] if small else MODELS, 1 if small else 16, 2 * budget, show),
    }
    if out:
        write_json(out, result)
    return result


def progress_line(row):
    if "model" in row:
        return (
            f"{row['model']}: training {row['clips_per_second']:.0f} against {row['plain_clips_per_second']:.1f} "
            f"clips/s, one clip {row['latency_ms']:.2f} against {row['plain_latency_ms']:.2f} ms"
        )
    times = "; ".join(
        f"{n} threads: " + ", ".join(f"{k} {v:.3g} ms" for k, v in ms.items()) for n, ms in row["ms"].items()
    )
    return f"{row['batch']} x {row['length']} x {row['channels']} {row['mode']}: {times}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    a = parser.parse_args(argv)
    benchmark_scan(a.out, a.small, show=lambda row: print(progress_line(row), flush=True))


if __name__ == "__main__":
    cli(main)
