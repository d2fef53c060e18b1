"""The selective scan against everything else that runs on a processor, and what it does for whole models.

    python -m paper.benchmarks.scan --out results/scan/scan.json      (an hour; --small: seconds)

    scan      kwslib's scan beside those of scan_peers.py: C++, mambapy, mamba_ssm's reference, transformers without
              CUDA, PyTorch's associative_scan: forward, and forward + backward, on one thread and on all; time, memory
    compiled  at COMPILED_AT also what torch.compile makes of the plain loop, mambapy and associative_scan; the seconds
              of compiling are kept apart
    length    time and memory of one sequence against its length, with the fitted exponent
    models    latency of whole models beside the plain scan, where the time of a training step goes, and for two of
              them training as one change after the other is made to it (training.py)
    peaks     what the machine can do, measured in the same run, and the share of it that the scan reaches

All sides of a row are called equally often, in turns; times are medians, with quartiles. Before that their results are
compared with kwslib's: outputs, and gradients where they are computed. A side that differs by more than TOLERANCE is
not timed. Peers are optional (`make peers`); one that does not run is named under `missing`, with the reason. Times of
one run are comparable, times of two are not; `loaded` says whether others used the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time

import torch

from kwslib.io import KwsError, cli, write_json
from kwslib.machine import keep_memory, machine, threads
from paper.benchmarks.memory import peak_memory
from paper.benchmarks.models import fit_exponent
from paper.benchmarks.scan_peers import (
    CHANNELS_FIRST,
    COMPILED,
    SCANS,
    STATE,
    available,
    channels_first,
    cpp_extension,
    fresh_compiler,
    inputs,
    kwslib_scan,
    plain_loop,
    reason,
)
from paper.benchmarks.timing import quartiles, rounds, timings, watch_load
from paper.benchmarks.training import ABLATED, MODELS, benchmark_training

CPU = torch.device("cpu")
BATCHES, CHANNELS, LENGTHS = (1, 16, 64, 256), (128, 256, 384), (31, 63, 101, 1000, 16_000)
LONG = (1000, 2000, 4000, 8000, 16_000, 32_000, 64_000)
COMPILED_AT = ((64, 31, 128), (64, 31, 384), (1, 31, 128))  # batch, length, channels; one takes a minute to compile
LEAN = ("kwslib", "cpp")  # keep no tensor with a state for every step
MOST_LEAN = 40_000_000  # numbers (batch x length x channels) in one sequence tensor: eight such take 1.3 GB
MOST_PEER = 27_000_000  # numbers with a state each, of which a peer keeps about ten tensors: 1.1 GB
# Loops over PyTorch operations: backward writes a whole gradient for each step; its time is quadratic in the length.
LOOPS, MOST_SQUARED = ("mamba_ssm", "transformers"), 6_200_000_000
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of a result's largest number
# Vector instructions per number with a state, counted in kwslib/scan/cpu_kernels.py and cpu_math.py. Forward: 1 for ΔA,
# 13 for 2**x, 4 for the recurrence and the read-out. Backward: those again, and 8. What is per channel alone (softplus,
# gate) costs 55 forward and 110 backward, over STATE states.
INSTRUCTIONS = {"forward": 18 + 55 / STATE, "both": 18 + 18 + 8 + (55 + 110) / STATE}
# Numbers that must cross the memory bus, per batch x length x channels: u, Δ, z and y; then these three and
# grad y read, and three gradients written. B, C and the kept states are small beside them.
TRAFFIC = {"forward": 4, "both": 4 + 4 + 3}


def skipped(name, row):
    """Why this side is not run at this row's shape, or None."""
    size = row["batch"] * row["length"] * row["channels"]
    if name in COMPILED and (row["batch"], row["length"], row["channels"]) not in COMPILED_AT:
        return "not run: compiled at three shapes only"
    if size * (1 if name in LEAN else STATE) > (MOST_LEAN if name in LEAN else MOST_PEER):
        return f"not run: tensors of {4 * size * (1 if name in LEAN else STATE) / 1e6:,.0f} MB"
    if row["mode"] == "both" and name in LOOPS and STATE * size * row["length"] > MOST_SQUARED:
        return "not run: its backward pass takes time quadratic in the length"
    return None


def places(device):
    """name -> context in which to time: every number of threads, or the GPU."""
    if device.type == "cuda":
        return {"gpu": contextlib.nullcontext()}
    return {str(n): threads(n) for n in sorted({1, torch.get_num_threads()})}


def benchmark_shapes(scans, shapes, budget, show=None, skip=skipped, device=CPU, dtypes=(torch.float32,)):
    """One row for every shape, mode and dtype: {batch, length, channels, mode, dtype, calls: {place: calls of each},
    ms, quartiles: {place: {name: …}}, mb, difference: {name: …}, compile_s: {place: {name: …}}, missing: {name: why}}.

    Memory and differences are those of the first place. difference: the largest from kwslib, [absolute, relative].
    """
    rows = []
    for shape, mode, dtype in itertools.product(shapes, ("forward", "both"), dtypes):
        row = {**shape, "mode": mode, "dtype": str(dtype).removeprefix("torch.")}
        row |= {key: {} for key in ("calls", "ms", "quartiles", "mb", "difference", "compile_s", "missing")}
        row["missing"] = {name: why for name in scans if (why := skip(name, row))}
        with torch.set_grad_enabled(mode == "both"):
            for place, here in places(device).items():
                with here:
                    time_row(row, place, scans, budget, device, dtype)
        rows.append(row)
        if show:
            show(row)
    return rows


def time_row(row, place, scans, budget, device, dtype):
    """Compare and time all `scans` at one row's shape, in one place."""
    shape, grad = (row["batch"], row["length"], row["channels"]), row["mode"] == "both"
    row["ms"][place], row["quartiles"][place], row["compile_s"][place] = {}, {}, {}
    names = [name for name in scans if name not in row["missing"]]
    if not names:
        return  # the inputs of such a shape alone may take all memory
    given = inputs(*shape, grad=grad, device=device, dtype=dtype)
    other, runs, exact = channels_first(given), {}, None
    fresh_compiler()
    for name in names:
        t = other if name in CHANNELS_FIRST else given
        started = time.perf_counter()
        try:
            run = whole_pass(scans[name](t), t, grad)
            found = [x.mT if name in CHANNELS_FIRST and x.dim() == 3 else x for x in run()]
        except RuntimeError as error:
            row["missing"][name] = reason(error)
            continue
        if name in COMPILED:
            row["compile_s"][place][name] = time.perf_counter() - started
        exact = exact or found
        gap = difference(found, exact)
        row["difference"].setdefault(name, gap)
        if not gap[1] <= TOLERANCE[dtype]:
            row["missing"][name] = f"not run: its results differ from kwslib's by {gap[1]:.1e} of the largest"
            continue
        runs[name] = run
    took = {name: quartiles(ms) for name, ms in rounds(runs, device, budget * len(runs)).items()}
    for name, found in took.items():
        row["calls"][place] = found["calls"]
        row["ms"][place][name], row["quartiles"][place][name] = found["p50"], [found["p25"], found["p75"]]
        if name not in row["mb"]:
            row["mb"][name] = peak_memory(runs[name], device)


def whole_pass(run, t, grad):
    """A function that returns [y], or [y and the gradients of its sum for all of `t`]; none of them may be missing."""

    def both():
        y = run()
        return [y.detach(), *torch.autograd.grad(y, list(t.values()), torch.ones_like(y))]

    return both if grad else lambda: [run()]


def difference(found, exact):
    """The largest difference of any number: absolute, and over the largest number of its tensor; inf for NaN."""
    gaps = [(a.double() - b.double()).abs().max() for a, b in zip(found, exact, strict=True)]
    relative = [gap / b.double().abs().max() for gap, b in zip(gaps, exact)]
    return [float(torch.stack(x).max().nan_to_num(torch.inf)) for x in (gaps, relative)]


def differences(scans, device=CPU):
    """Largest difference of each output from the plain loop in float64, at one shape, over the largest output."""
    t = inputs(2, 63, 128, device=device)
    exact, other, found = plain_loop({k: v.double() for k, v in t.items()})(), channels_first(t), {}
    for name, make in scans.items():
        if name not in COMPILED:
            y = make(other)().mT if name in CHANNELS_FIRST else make(t)()
            found[name] = difference([y], [exact])[1]
    return found


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
        values = {"ms": [], "quartiles": [], "mb": []}
        for length in lengths:
            t = inputs(1, length, channels, grad=mode == "both")
            with torch.set_grad_enabled(mode == "both"):
                run = whole_pass(kwslib_scan(t), t, mode == "both")
                took = quartiles(timings(run, CPU, budget))
                values["mb"].append(peak_memory(run, CPU))
            values["ms"].append(took["p50"])
            values["quartiles"].append([took["p25"], took["p75"]])
        for key, what in (("ms", "time"), ("mb", "memory")):
            values[f"exponent_{what}"] = fit_exponent(lengths, values[key], len(lengths))
        part[mode] = values
    return part


def benchmark_scan(out=None, small=False, budget=0.1, show=None, compiled=None):
    """The whole benchmark: scan.json's content, also written to `out`.

    small: in seconds, to see that it works. budget: seconds of each side in a row and place. compiled: whether peers
    that a compiler has to make take part, which costs minutes; None: unless `small`.
    """
    if not budget > 0:
        raise KwsError(f"the budget is {budget} s; it must be above 0")
    keep_memory()
    wanted = SCANS | COMPILED
    if not (compiled if compiled is not None else not small):
        wanted = {name: make for name, make in SCANS.items() if name != "cpp"}
    scans, missing = available(wanted, inputs(1, 2, 4))
    grid = itertools.product((1, 2), (128,), (31,)) if small else itertools.product(BATCHES, CHANNELS, LENGTHS)
    shapes = [{"batch": b, "channels": c, "length": n} for b, c, n in grid]
    budget = 0.01 if small else budget
    with watch_load() as load:
        peak = peaks(max(budget, 0.5))  # long enough to meet a quiet moment of the machine
        result = {
            "machine": machine(),
            "state": STATE,
            "peaks": peak,
            "missing": missing,
            "compile_s": {"cpp": cpp_extension()[1]} if "cpp" in scans else {},
            "difference": differences(scans),
            "instructions": INSTRUCTIONS,
            "traffic": TRAFFIC,
            "scan": shares(benchmark_shapes(scans, shapes, budget, show), peak),
            "length": benchmark_length(LONG[:3] if small else LONG, budget),
            "models": benchmark_training(MODELS[3:4] if small else MODELS, ABLATED, small, 2 * budget, show),
        }
    result |= load
    if out:
        write_json(out, result)
    return result


def progress_line(row):
    if "model" in row:
        ways = "; ".join(f"{way}: {found['p50']:.0f} ms" for way, found in row["training"].items())
        latency = ", ".join(f"{side} {found['p50']:.2f} ms" for side, found in row["latency"].items())
        return f"{row['model']}: a training step, {ways}; one clip, {latency}"
    times = "; ".join(f"{n}: " + ", ".join(f"{k} {v:.3g} ms" for k, v in ms.items()) for n, ms in row["ms"].items())
    shape = f"{row['batch']} x {row['length']} x {row['channels']} {row['mode']} {row['dtype']}"
    return f"{shape}; threads {times}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    parser.add_argument("--compiled", action="store_true", default=None, help="with --small: compiled peers, too")
    a = parser.parse_args(argv)
    benchmark_scan(a.out, a.small, compiled=a.compiled, show=lambda row: print(progress_line(row), flush=True))


if __name__ == "__main__":
    cli(main)
