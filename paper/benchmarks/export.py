"""What an ONNX file costs beside PyTorch: size, and the time of one clip, or of one chunk of a stream, on one thread.

    python -m paper.benchmarks.export --corpus data/subset --out results/export.json      (and results/export.md)

For each pretrained model: PyTorch, ONNX in float32 and in 8 bits, wave to probabilities, timed in turns, so that what
else the machine does meets all of them alike. Of the 8 bits also the accuracy, on validation clips."""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kwslib.checkpoint import find_checkpoint
from kwslib.export import export
from kwslib.export.write import session
from kwslib.io import CLIP, SAMPLE_RATE, cli, write_json
from kwslib.machine import machine, threads
from kwslib.models.registry import MODELS
from kwslib.spotter import load
from paper.benchmarks.timing import watch_load
from paper.results import timed_on
from paper.writing import captioned, write_text

NAMES = ("mamba_light", "mamba_mel_small", "mamba_mfcc_small")


def in_turns(runs, rounds, warm=5):
    """{name: milliseconds (quartiles and median)} of each `run()` of {name: run}, one of each in every round."""
    took = {name: [] for name in runs}
    for i in range(warm + rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if i >= warm:
                took[name].append(1000 * (time.perf_counter() - started))
    return {
        name: dict(zip(("q25", "median", "q75"), np.percentile(t, (25, 50, 75)).tolist())) for name, t in took.items()
    }


def clip(name, corpus, folder, rounds):
    """One second: {"pytorch", "float32", "int8"} with ms, and of the files bytes and what was checked."""
    spotter, wave = load(name), 0.1 * torch.randn(1, CLIP, generator=torch.Generator().manual_seed(0))
    entry, runs = {"pytorch": {"bytes": find_checkpoint(name).stat().st_size}}, {}
    runs["pytorch"] = lambda: spotter.logits(wave).softmax(1)
    for kind in ("float32", "int8"):
        card = export(spotter, folder / f"{name}-{kind}.onnx", int8=kind == "int8", clips=corpus)
        entry[kind] = {key: card[key] for key in ("bytes", "check", "int8") if key in card}
        runs[kind] = once(card["path"], wave=wave.numpy())
    for kind, ms in in_turns(runs, rounds).items():
        entry[kind]["ms"] = ms
    for kind in ("float32", "int8"):
        entry[kind]["times_faster"] = entry["pytorch"]["ms"]["median"] / entry[kind]["ms"]["median"]
    return entry


def chunk(name, corpus, folder, rounds):
    """One chunk of a stream: {"float32", "int8"} as above, with the share of one core that listening takes."""
    spotter, entry, runs = load(name), {}, {}
    for kind in ("float32", "int8"):
        card = export(spotter, folder / f"{name}-{kind}.onnx", streaming=True, int8=kind == "int8", clips=corpus)
        entry[kind] = {key: card[key] for key in ("bytes", "check", "int8", "samples") if key in card}
        wave, state = (np.full((1, card[key]), 0.01, np.float32) for key in ("samples", "state"))
        runs[kind] = once(card["path"], chunk=wave, state=state)
    for kind, ms in in_turns(runs, rounds).items():
        entry[kind]["ms"] = ms
        entry[kind]["share_of_a_core"] = ms["median"] / 1000 * SAMPLE_RATE / entry[kind]["samples"]
    return entry


def once(path, **inputs):
    runs = session(path)
    return lambda: runs.run(None, inputs)


def table(result):
    """The result as a DataFrame of text: a line for each model's clip, and for each model's chunk."""
    lines = []
    for graph in ("clip", "chunk"):
        for name, entry in result[graph].items():
            samples = entry["float32"].get("samples")  # of a chunk
            what = f"{1000 * samples / SAMPLE_RATE:.0f} ms of a stream" if samples else "one second"
            ms = {kind: e["ms"] for kind, e in entry.items()}
            small, bits = entry["float32"], entry["int8"]
            line = {"Model": MODELS[name].label, "What": what}
            for title, kind in (("PyTorch", "pytorch"), ("ONNX, float", "float32"), ("ONNX, 8 bits", "int8")):
                line[f"{title}, ms"] = "{median:.2f} [{q25:.2f}–{q75:.2f}]".format(**ms[kind]) if kind in ms else "–"
            line["Times PyTorch"] = " / ".join(f"{e['times_faster']:.2f}" for e in (small, bits) if "times_faster" in e)
            line["MB, ONNX"] = " / ".join(f"{e['bytes'] / 1e6:.2f}" for e in (small, bits))
            right = [bits["int8"].get(key) for key in ("accuracy_float", "accuracy")]
            line["Accuracy on validation, %"] = " / ".join(f"{100 * r:.2f}" for r in right if r is not None)
            lines.append({key: value or "–" for key, value in line.items()})
    return pd.DataFrame(lines)


def caption(result):
    return (
        f"Trained models in PyTorch and in onnxruntime {result['machine']['onnxruntime']}, from the wave to the "
        f"probabilities: medians and quartiles of {result['rounds']} runs in turns, on one thread. After a slash: in 8 "
        f"bits. {timed_on(result)}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", help="packed corpus, whose validation clips the files are checked on")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--models", default=",".join(NAMES), help="names with commas between")
    parser.add_argument("--rounds", type=int, default=300, help="of each measurement (default 300)")
    a = parser.parse_args()
    result = {
        "machine": machine() | {"onnxruntime": version("onnxruntime")},
        "rounds": a.rounds,
        "clip": {},
        "chunk": {},
    }
    with tempfile.TemporaryDirectory() as folder, threads(1), watch_load() as mark:
        for name in a.models.split(","):
            for kind, measure in (("clip", clip), ("chunk", chunk)):
                entry = result[kind][name] = measure(name, a.corpus, Path(folder), a.rounds)
                times = (f"{k} {e['ms']['median']:.2f} ms, {e['bytes'] / 1e6:.2f} MB" for k, e in entry.items())
                print(f"{name}, {kind}: " + "; ".join(times), flush=True)
    result |= mark
    write_json(a.out, result)
    write_text(Path(a.out).with_suffix(".md"), captioned(table(result), caption(result)))


if __name__ == "__main__":
    cli(main)
