"""What the models cost, as the paper reports it: times, memory, and the growth with the length of the audio.

    python -m paper.benchmarks.models --out results/quick/benchmark.json

Peak memory is that of one pass of the largest batch, beyond the weights and the input, which are there before it.

The length part measures time and memory of one pass over a clip of 1 to 64 seconds, for a scan, for retention in its
parallel form and for attention.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch

from kwslib.io import CLIP, SAMPLE_RATE, cli, write_json
from paper.benchmarks.memory import peak_memory
from paper.benchmarks.timing import BATCHES, benchmark_models, print_entry, rounds, spotter_of, watch_load
from paper.results import label_of

SECONDS = (1, 2, 4, 8, 16, 32, 64)
LENGTH_MODELS = ("mamba_mfcc_small", "retnet", "kwt_1")  # a scan, retention in its parallel form, attention
LONGEST = 4  # lengths that an exponent is fitted over
MOST_MEMORY = 4e9  # bytes that one pass may be expected to take


def benchmark_paper(names="all", out=None, n_classes=35, seconds_budget=0.4, small=False, show=None):
    """benchmark.json's content, also written to `out`: `benchmark_models`, memory, and the `length` part.

    Arguments are those of paper.benchmarks.timing.benchmark_models. Raises KwsError for an unknown model.
    """
    with watch_load() as load:
        seconds, budget, most = ((1, 2, 4), 0.01, 2) if small else (SECONDS, seconds_budget / 2, max(BATCHES))
        memory = partial(memory_of, size=most)
        result = benchmark_models(names, n_classes, seconds_budget, small, show=show, more=memory)
        models = [name for name in LENGTH_MODELS if name in result["models"] or not small]
        for device, part in (("cpu", result), ("cuda", result["gpu"])):
            if part is not None:
                part["length"] = benchmark_length(models, seconds, budget, device) if models else None
    result |= load
    if out:
        write_json(out, result)
    return result


@torch.inference_mode()
def memory_of(spotter, size):
    """peak_mb: MB that one pass of `size` clips takes, None where the system shows none; peak_batch: `size`."""
    batch = torch.randn(size, spotter.frontend.frames(CLIP), spotter.frontend.n_features, device=spotter.device)
    return {"peak_mb": peak_memory(lambda: spotter.model(batch, None), spotter.device), "peak_batch": size}


def expected_bytes(name, seconds):
    """Rough memory of one pass: RetNet and plain attention hold frames x frames numbers a head."""
    frames = seconds * SAMPLE_RATE / 256
    per_pair, per_frame = {"retnet": (8 / 2**2, 32 * 128), "kwt_1": (1, 0)}.get(name, (0, 12 * 128))
    return 4 * 3 * (per_pair * frames**2 + per_frame * frames)  # float32; some three such tensors at a time


@torch.inference_mode()
def benchmark_length(names=LENGTH_MODELS, seconds=SECONDS, seconds_budget=0.2, device="cpu"):
    """Time and memory of one pass against the seconds of audio: the `length` entry of benchmark.json.

    The time is the shortest of the passes: what else the machine does only ever adds, and bends a slope. All models and
    lengths take turns. A length expected to take more than MOST_MEMORY is not run. What is None has its reason under
    `missing`.
    """
    device, entries, passes = torch.device(device), {}, {}
    for name in names:
        spotter, entries[name] = spotter_of(name, device), {"ms": [], "mb": [], "missing": {}}
        frontend = spotter.frontend
        for s in seconds:
            if (needed := expected_bytes(name, s)) > MOST_MEMORY:
                entries[name]["missing"][str(s)] = f"not run: it would take about {needed / 1e9:.1f} GB"
                continue
            x = torch.randn(1, frontend.frames(s * SAMPLE_RATE), frontend.n_features, device=device)
            passes[name, s] = partial(spotter.model, x, None)
    took = rounds(passes, device, seconds_budget * len(passes))
    for name, entry in entries.items():
        for s in seconds:
            run = passes.get((name, s))
            entry["ms"].append(min(took[name, s]) if run else None)
            entry["mb"].append(peak_memory(run, device) if run else None)
            if run and entry["mb"][-1] is None:
                entry["missing"][str(s)] = "memory: the system shows none"
        entry["exponent_time"] = fit_exponent(seconds, entry["ms"])
        entry["exponent_memory"] = fit_exponent(seconds, entry["mb"])
        entry["fitted_over"] = [s for s, ms in zip(seconds, entry["ms"]) if ms][-LONGEST:]
    return {"seconds": list(seconds), "threads": torch.get_num_threads(), "models": entries}


def fit_exponent(seconds, values, longest=LONGEST):
    """Slope of log(value) over log(seconds), by least squares: 1 is linear growth, 2 quadratic.

    Over the `longest` lengths that have a value: at short ones, fixed costs hide the growth. None below two.
    """
    points = [(s, v) for s, v in zip(seconds, values) if v is not None and v > 0][-longest:]
    return float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0]) if len(points) > 1 else None


def cost_findings(result):
    """Sentences, in Markdown, on what benchmark.json holds: the fastest models, and the growth with the length."""
    models, lines = result["models"], []
    one_clip = {model: entry["latency_ms"]["1"]["p50"] for model, entry in models.items()}
    quick, slow = min(one_clip, key=one_clip.get), max(one_clip, key=one_clip.get)
    lines.append(
        f"On one thread of {result['machine']['cpu']}, {label_of(quick)} is the fastest at one clip, with a median "
        f"latency of {one_clip[quick]:.2f} ms; {label_of(slow)} is the slowest, with {one_clip[slow]:.2f} ms."
    )
    batch = max(models[quick]["throughput"], key=int)
    rates = {model: entry["throughput"][batch] for model, entry in models.items()}
    most = max(rates, key=rates.get)
    lines.append(f"In batches of {batch}, {label_of(most)} has the highest throughput, {rates[most]:,.0f} clips/s.")
    for model, values in ((result.get("length") or {}).get("models", {})).items():
        if values["exponent_time"] is not None:
            memory, fitted = values["exponent_memory"], values["fitted_over"]
            lines.append(
                f"From {fitted[0]} to {fitted[-1]} s of audio, the time of {label_of(model)} grows with exponent "
                f"{values['exponent_time']:.2f}"
                + (f" and its memory with exponent {memory:.2f}." if memory is not None else ".")
            )
    return "\n".join(f"- {line}" for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="all", help="'all' (default), or names with commas between; fresh weights")
    parser.add_argument("--n-classes", type=int, default=35, help="classes of each model (default 35)")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds a measurement (default 0.4)")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    parser.add_argument("--out", required=True, help="JSON file to write")
    a = parser.parse_args(argv)
    benchmark_paper(a.models, a.out, a.n_classes, a.budget, a.small, show=print_entry)


if __name__ == "__main__":
    cli(main)
