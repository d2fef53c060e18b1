"""What a model costs: latency, throughput, memory, and how they grow with the length of the audio.

    python -m kwslib.benchmark --model-path checkpoints/quick/mamba_mel_small-0    one checkpoint, as a table
    python -m kwslib.benchmark --models mamba_mfcc_small,kwt_1 --out timed.json    fresh weights cost the same

One-second clips in float32, timed by the wall clock (a GPU: by its events) after a warm-up, on all threads:

    latency        one clip, features to logits, on one thread and on all
    features       one clip, wave to normalised features; wave_to_label goes on to the label
    throughput     clips a second against the batch size, features to logits
    peak memory    of one pass, beyond the weights and the input, which are there before it
    length         time and memory of one pass, one clip of 1 to 64 seconds

Times wander on a shared machine: compare figures of one run, not of two.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, cli, write_json
from kwslib.machine import machine
from kwslib.models.cost import count_macs, count_parameters
from kwslib.models.registry import MODELS, build
from kwslib.spotter import KeywordSpotter, load
from kwslib.training.config import RECIPES, load_config

BATCHES = (1, 8, 64)
SECONDS = (1, 2, 4, 8, 16, 32, 64)
LENGTH_MODELS = ("mamba_mfcc_small", "retnet", "kwt_1")  # a scan, retention in its parallel form, attention
LONGEST = 4  # lengths that an exponent is fitted over
MOST_MEMORY = 4e9  # bytes that one pass of the length benchmark may be expected to take


def spotter_of(model, device="cpu", n_classes=35, features="mel"):
    """A KeywordSpotter: of a model's name, with fresh weights and its recipe's features, or around a module."""
    options = {"kind": features}
    if isinstance(model, str):
        options = frontend_of(load_config(RECIPES / f"{model}.yaml")).options
        model = build(model, n_classes)
    return KeywordSpotter(
        model, {"labels": [], "features": options, "normalisation": {"mean": 0.0, "std": 1.0}}, device
    )


def timings(run, device, seconds_budget, least=5):
    """Milliseconds of each `run()`, repeated for the budget and `least` times; a slow one twice."""
    for _ in range(3):  # warm-up; of a slow one, once
        if stopwatch(run, device) > 250 * seconds_budget:
            break
    took, until, most = [], time.perf_counter() + seconds_budget, 4000 * seconds_budget
    while len(took) < 2 or sum(took) < most and (len(took) < least or time.perf_counter() < until):
        took.append(stopwatch(run, device))
    return np.array(took)


def stopwatch(run, device):
    """Milliseconds of one `run()`; on a GPU by events around it, from when the GPU is idle."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


@contextlib.contextmanager
def threads(count):
    """PyTorch on `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def percentiles(took, which=(50, 95, 99)):
    return {f"p{p}": float(np.percentile(took, p)) for p in which}


def peak_memory(run, device):
    """MB (1e6 bytes) that `run()` takes beyond what is in use before it, or None where that does not show."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would hide growth into it
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    except (OSError, AttributeError, TypeError):  # no such Linux: what exceeds all before
        before = resident("VmHWM")
    run()
    grown = resident("VmHWM") - before
    return grown if grown > 0 else None


def resident(field):
    """MB of resident memory: now (VmRSS), or at most (VmHWM): other systems than Linux tell only that."""
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return 0.0
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


@torch.inference_mode()
def benchmark_model(model, seconds_budget=0.4, batches=BATCHES, features="mel"):
    """The `models` entry of benchmark.json for a KeywordSpotter, or for a module that reads `features`."""
    spotter = model if isinstance(model, KeywordSpotter) else spotter_of(model, features=features)
    device, model = spotter.device, spotter.model
    wave = torch.randn(1, CLIP, generator=torch.Generator().manual_seed(0)) * 0.1
    clip = spotter.normalise(spotter.frontend(wave.to(device)))  # (1, T, F)
    entry = {"parameters": count_parameters(model), "macs": count_macs(model, clip)}
    entry |= {"latency_ms": {}, "repeats": {}, "throughput": {}}
    for count in sorted({1, torch.get_num_threads()}) if device.type == "cpu" else [1]:
        with threads(count):
            took = timings(lambda: model(clip, None), device, seconds_budget)
        entry["latency_ms"][str(count)], entry["repeats"][str(count)] = percentiles(took), len(took)
    for key, run in (
        ("wave_to_label_ms", lambda: spotter.logits(wave).softmax(1).argmax(1).item()),
        ("features_ms", lambda: spotter.normalise(spotter.frontend(wave.to(device)))),
    ):
        entry[key] = percentiles(timings(run, device, seconds_budget / 2), (50, 95))
    for size in batches:
        batch = clip.expand(size, -1, -1).contiguous()
        took = timings(lambda: model(batch, None), device, seconds_budget / 2, least=3)
        entry["throughput"][str(size)] = float(1000 * size / np.median(took))
    entry["peak_mb"], entry["peak_batch"] = peak_memory(lambda: model(batch, None), device), batches[-1]
    return entry


def expected_bytes(name, seconds):
    """Rough memory of one pass: RetNet and plain attention hold frames x frames numbers a head."""
    frames = seconds * SAMPLE_RATE / 256
    per_pair, per_frame = {"retnet": (8 / 2**2, 32 * 128), "kwt_1": (1, 0)}.get(name, (0, 12 * 128))
    return 4 * 3 * (per_pair * frames**2 + per_frame * frames)  # float32; some three such tensors at a time


@torch.inference_mode()
def benchmark_length(names=LENGTH_MODELS, seconds=SECONDS, seconds_budget=0.2, device="cpu"):
    """Time and memory of one pass against the seconds of audio: the `length` entry of benchmark.json.

    The time is the shortest of the passes: what else the machine does only ever adds, and bends a slope.
    A length expected to take more than MOST_MEMORY is not run. What is None has its reason under `missing`.
    """
    result = {"seconds": list(seconds), "threads": torch.get_num_threads(), "models": {}}
    for name in names:
        spotter, entry = spotter_of(name, device), {"ms": [], "mb": [], "missing": {}}
        model, frontend, on = spotter.model, spotter.frontend, spotter.device
        for s in seconds:
            ms = mb = None
            if (expected := expected_bytes(name, s)) > MOST_MEMORY:
                entry["missing"][str(s)] = f"not run: it would take about {expected / 1e9:.1f} GB"
            else:
                x = torch.randn(1, frontend.frames(s * SAMPLE_RATE), frontend.n_features, device=on)
                ms = float(timings(lambda: model(x, None), on, seconds_budget, least=3).min())
                mb = peak_memory(lambda: model(x, None), on)
                entry["missing"] |= {str(s): "memory: the system shows none"} if mb is None else {}
            entry["ms"].append(ms)
            entry["mb"].append(mb)
        entry["exponent_time"] = fit_exponent(seconds, entry["ms"])
        entry["exponent_memory"] = fit_exponent(seconds, entry["mb"])
        entry["fitted_over"] = [s for s, ms in zip(seconds, entry["ms"]) if ms][-LONGEST:]
        result["models"][name] = entry
    return result


def fit_exponent(seconds, values, longest=LONGEST):
    """Slope of log(value) over log(seconds), by least squares: 1 is linear growth, 2 quadratic.

    Over the `longest` lengths that have a value: at short ones, fixed costs hide the growth. None below two.
    """
    points = [(s, v) for s, v in zip(seconds, values) if v is not None and v > 0][-longest:]
    return float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0]) if len(points) > 1 else None


def run(names="all", out=None, n_classes=35, seconds_budget=0.4, small=False, model_path=None, show=None):
    """Benchmark on the CPU, and on a GPU if there is one: benchmark.json's content, also written to `out`.

    names: "all", or a list or comma-separated text of kwslib.models.MODELS, with fresh weights. small: in
    seconds, to see that it works. model_path: a checkpoint to time instead, without the length.
    show(title, entry) is called after every model. Raises KwsError for an unknown model.
    """
    names = list(MODELS) if names == "all" else names.split(",") if isinstance(names, str) else list(names)
    if unknown := [n for n in names if n not in MODELS]:
        raise KwsError(f"model {unknown[0]!r} is unknown; choose 'all' or some of {', '.join(MODELS)}")
    if n_classes < 1 or not seconds_budget > 0:
        raise KwsError(f"n_classes is {n_classes} and the budget {seconds_budget} s; both must be above 0")
    make = {name: partial(spotter_of, name, n_classes=n_classes) for name in names}
    lengths = [n for n in LENGTH_MODELS if n in names or not small]
    if model_path is not None:
        card = load(model_path).card
        make, n_classes, lengths = {card["model"]: partial(load, model_path)}, len(card["labels"]), []
    budget, batches, seconds = (0.02, (1, 2), (1, 2, 4)) if small else (seconds_budget, BATCHES, SECONDS)
    result = {"machine": machine(), "n_classes": n_classes, "models": {}, "gpu": None, "length": None}
    parts = {"cpu": result}
    if torch.cuda.is_available():
        parts["cuda"] = result["gpu"] = {"models": {}, "length": None}
    for device, part in parts.items():
        for name, spotter in make.items():
            part["models"][name] = benchmark_model(spotter(device=device), budget, batches)
            if show:
                show(f"{name} on {device}", part["models"][name])
        if lengths:
            part["length"] = benchmark_length(lengths, seconds, budget / 2, device)
    if out:
        write_json(out, result)
    return result


def table(title, entry):
    """One entry of benchmark.json as lines of text."""
    times = {f"latency, threads: {n} (ms)": ms for n, ms in entry["latency_ms"].items()}
    times |= {"wave to label (ms)": entry["wave_to_label_ms"], "features alone (ms)": entry["features_ms"]}
    rows = [(title, "p50", "p95", "p99"), *((k, *map("{:.2f}".format, t.values())) for k, t in times.items())]
    rows += [(f"throughput, batch {n} (clips/s)", f"{x:,.1f}") for n, x in entry["throughput"].items()]
    rows += [
        (f"peak memory, batch {entry['peak_batch']} (MB)", f"{entry['peak_mb'] or float('nan'):.1f}"),
        ("parameters", f"{entry['parameters']:,}"),
        ("multiply-accumulates", f"{entry['macs']:,}"),
    ]
    return "\n".join(f"{label:34}" + "".join(f"{cell:>13}" for cell in cells) for label, *cells in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model-path", help="checkpoint to time, a file or its folder")
    what.add_argument("--models", default="all", help="'all', or names with commas between; fresh weights")
    parser.add_argument("--n-classes", type=int, default=35, help="of --models (default 35)")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds a measurement (default 0.4)")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    parser.add_argument("--out", help="JSON file to write")
    a = parser.parse_args(argv)
    run(a.models, a.out, a.n_classes, a.budget, a.small, a.model_path, lambda *m: print(table(*m) + "\n"))


if __name__ == "__main__":
    cli(main)
