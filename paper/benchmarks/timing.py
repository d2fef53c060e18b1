"""What a model costs: latency and throughput.

    python -m paper.benchmarks.timing --model-path checkpoints/quick/mamba_mel_small-0    one checkpoint, as a table
    python -m paper.benchmarks.timing --models mamba_mfcc_small,kwt_1 --out timed.json    fresh weights cost the same

One-second clips in float32, timed by the wall clock after a warm-up, on all threads:

    latency        one clip, features to logits, on one thread and on all
    features       one clip, wave to normalised features; wave_to_label goes on to the label
    throughput     clips a second against the batch size, features to logits

Models take turns (`rounds`), since the speed of a shared machine changes within seconds: compare numbers of one run,
not of two. `watch_load` marks the results of a busy one.
"""

import argparse
import contextlib
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, KwsError, cli, write_json
from kwslib.machine import machine, threads
from kwslib.models.cost import count_macs, count_parameters
from kwslib.models.registry import MODELS, build
from kwslib.spotter import KeywordSpotter, load
from kwslib.training.config import RECIPES, load_config

BATCHES = (1, 8, 64)
MOST_LOAD = 0.2  # cores that others may use before, while and after a benchmark runs; above it, its result is marked


def spotter_of(model, device="cpu", n_classes=35, features="mel"):
    """A KeywordSpotter: of a model's name, with fresh weights and its recipe's features, or around a module."""
    options = {"kind": features}
    if isinstance(model, str):
        options = frontend_of(load_config(RECIPES / f"{model}.yaml")).options
        model = build(model, n_classes)
    card = {"labels": [], "features": options, "normalisation": {"mean": 0.0, "std": 1.0}}
    return KeywordSpotter(model, card, device)


def timings(run, device, seconds_budget, least=5):
    """Milliseconds of each `run()`, repeated for the budget and `least` times; a slow one twice."""
    for _ in range(3):  # warm-up; of a slow one, once
        if stopwatch(run, device) > 250 * seconds_budget:
            break
    took, until, most = [], time.perf_counter() + seconds_budget, 4000 * seconds_budget
    while len(took) < 2 or sum(took) < most and (len(took) < least or time.perf_counter() < until):
        took.append(stopwatch(run, device))
    return np.array(took)


def rounds(runs, device, seconds_budget, least=5, turns=10, settle=0):
    """name -> milliseconds of the calls of each of `runs` {name: function}, as many of one as of another.

    They take turns in `least` rounds, so that what else the machine does falls on all alike. A turn is as many calls as
    the budget of all allows, at least one and at most `turns`; `settle` calls before them, which fill the caches, are
    not timed.
    """
    for run in runs.values():
        run()
    once = sum(stopwatch(run, device) for run in runs.values())
    calls = int(min(turns, max(1, 1000 * seconds_budget / (least * once)))) if runs else 0
    took = {name: [] for name in runs}
    for _ in range(least):
        for name, run in runs.items():
            took[name] += [stopwatch(run, device) for _ in range(settle + calls)][settle:]
    return took


def stopwatch(run, device):
    """Milliseconds of one `run()`; on a GPU from when it is idle until it is idle again."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return 1000 * (time.perf_counter() - started)


@torch.inference_mode()
def benchmark_spotters(spotters, seconds_budget=0.4, batches=BATCHES):
    """What each of {name: KeywordSpotter} costs, on their one device: {name: entry}. See the head of this file.

    seconds_budget: of each measurement of each model.
    """
    device = next(iter(spotters.values())).device
    wave = torch.randn(1, CLIP, generator=torch.Generator().manual_seed(0)) * 0.1

    def features(name):
        return spotters[name].normalise(spotters[name].frontend(wave.to(device)))

    def logits(name):
        return spotters[name].model(batch[name], None)

    def timed(share, call):
        runs = {name: partial(call, name) for name in spotters}
        return rounds(runs, device, share * seconds_budget * len(runs), least=10, settle=1)

    batch = clips = {name: features(name) for name in spotters}  # (1, T, F)

    entries = {
        name: {"parameters": count_parameters(spotter.model), "macs": count_macs(spotter.model, clips[name])}
        | {"latency_ms": {}, "repeats": {}, "throughput": {}}
        for name, spotter in spotters.items()
    }
    for count in sorted({1, torch.get_num_threads()}) if device.type == "cpu" else [1]:
        with threads(count):
            took = timed(1, logits)
        for name, entry in entries.items():
            entry["latency_ms"][str(count)] = percentiles(took[name], 50, 95, 99)
            entry["repeats"][str(count)] = len(took[name])
    for key, call in (
        ("wave_to_label_ms", lambda name: spotters[name].logits(wave).softmax(1).argmax(1).item()),
        ("features_ms", features),
    ):
        for name, ms in timed(0.5, call).items():
            entries[name][key] = percentiles(ms, 50, 95)
    for size in batches:
        batch = {name: clip.expand(size, -1, -1).contiguous() for name, clip in clips.items()}
        for name, ms in timed(0.5, logits).items():
            entries[name]["throughput"][str(size)] = float(1000 * size / np.median(ms))
    return entries


def percentiles(took, *which):
    return {f"p{p}": float(np.percentile(took, p)) for p in which}


def quartiles(took):
    return percentiles(took, 25, 50, 75) | {"calls": len(took)}


@contextlib.contextmanager
def watch_load(seconds=0.5):
    """Yields a dict for a result file, which at the end gets `load` and `loaded`: whether the machine was busy.

    load: cores that other programs used in `seconds` before, while the block ran, and in `seconds` after it, and the
    limit, MOST_LOAD. Where there is no /proc/stat: the load average before; None where there is not even that.
    """
    found, mark = {"before": cores_of_others(seconds)}, {}
    since = time.perf_counter(), others()
    yield mark
    found |= {"during": cores_of_others(0, since), "after": None if since[1] is None else cores_of_others(seconds)}
    mark["loaded"] = any(value is not None and value > MOST_LOAD for value in found.values())
    mark["load"] = found | {"limit": MOST_LOAD}
    if mark["loaded"]:
        print(f"the machine is loaded, the times are marked as such: {mark['load']}", file=sys.stderr)


def cores_of_others(seconds, since=None):
    """Cores that others use, over the next `seconds`, or from `since` = (time, others()) on."""
    started, before = since or (time.perf_counter(), others())
    if before is None:
        return os.getloadavg()[0] if since is None and hasattr(os, "getloadavg") else None
    time.sleep(seconds)
    return round(max(0.0, (others() - before) / max(1e-3, time.perf_counter() - started)), 2)


def others():
    """Seconds of processor time that all but this process and its ended children have used since the start, or None.

    Time that a hypervisor gave to other machines counts, too.
    """
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])  # 3, 4: idle


def benchmark_models(names="all", n_classes=35, seconds_budget=0.4, small=False, path=None, show=None, more=None):
    """Time models on the CPU, and on a GPU if there is one: {machine, load, …, models, gpu: None or {models}}.

    names: "all", or a list or comma-separated text of registered models, with fresh weights; path: a checkpoint to time
    instead. seconds_budget: of each measurement of each model. small: in seconds, to see that it works. more(spotter):
    what else is measured of a model, a dict that joins its entry. show(title, entry) is called for every model. Raises
    KwsError for an unknown model.
    """
    names = list(MODELS) if names == "all" else names.split(",") if isinstance(names, str) else list(names)
    if unknown := [n for n in names if n not in MODELS]:
        raise KwsError(f"model {unknown[0]!r} is unknown; choose 'all' or some of {', '.join(MODELS)}")
    if n_classes < 1 or not seconds_budget > 0:
        raise KwsError(f"n_classes is {n_classes} and the budget {seconds_budget} s; both must be above 0")
    make = {name: partial(spotter_of, name, n_classes=n_classes) for name in names}
    if path is not None:
        card = load(path).card
        make, n_classes = {card["model"]: partial(load, path)}, len(card["labels"])
    budget, batches = (0.02, (1, 2)) if small else (seconds_budget, BATCHES)
    result = {"machine": machine(), "n_classes": n_classes, "models": {}, "gpu": None}
    devices = {"cpu": result}
    if torch.cuda.is_available():
        devices["cuda"] = result["gpu"] = {"models": {}}
    with watch_load() as mark:
        for device, part in devices.items():
            spotters = {name: spotter(device=device) for name, spotter in make.items()}
            part["models"] = benchmark_spotters(spotters, budget, batches)
            for name, entry in part["models"].items():
                entry |= more(spotters[name]) if more else {}
                if show:
                    show(f"{name} on {device}", entry)
    return result | mark


def print_entry(title, entry):
    """Print one model's entry."""
    times = {f"latency, threads: {n} (ms)": ms for n, ms in entry["latency_ms"].items()}
    times |= {"wave to label (ms)": entry["wave_to_label_ms"], "features alone (ms)": entry["features_ms"]}
    rows = [(title, "p50", "p95", "p99"), *((k, *map("{:.2f}".format, t.values())) for k, t in times.items())]
    rows += [(f"throughput, batch {n} (clips/s)", f"{x:,.1f}") for n, x in entry["throughput"].items()]
    rows += [("parameters", f"{entry['parameters']:,}"), ("multiply-accumulates", f"{entry['macs']:,}")]
    print(*(f"{label:34}" + "".join(f"{cell:>13}" for cell in cells) for label, *cells in rows), "", sep="\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model-path", help="checkpoint to time: a file, its folder, or the name of a pretrained model")
    what.add_argument("--models", default="all", help="'all', or names with commas between; fresh weights")
    parser.add_argument("--n-classes", type=int, default=35, help="of --models (default 35)")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds a measurement (default 0.4)")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    parser.add_argument("--out", help="JSON file to write")
    a = parser.parse_args(argv)
    result = benchmark_models(a.models, a.n_classes, a.budget, a.small, a.model_path, print_entry)
    if a.out:
        write_json(a.out, result)


if __name__ == "__main__":
    cli(main)
