"""Tables, figures and findings of the scan's benchmark (benchmark_scan.py), from results/scan/scan.json alone."""

from __future__ import annotations

from math import floor, log10

import numpy as np
from pandas import DataFrame

from paper.results import label_of

NAMES = {
    "kwslib": "kwslib (this work)",
    "mamba_ssm": "mamba_ssm, reference",
    "mambapy": "mambapy, parallel scan",
    "transformers": "transformers, loop",
}
MODES = {"forward": "forward", "both": "forward + backward"}


def most_threads(result):
    """The largest number of threads that was timed, as the text that keys it."""
    return max(result["peaks"], key=int)


def row_of(result, mode, **shape):
    """The row of one shape and mode, or None."""
    return next(
        (row for row in result["scan"] if row["mode"] == mode and all(row[k] == v for k, v in shape.items())), None
    )


def speedups(row, threads):
    """Time of each peer over kwslib's, in one row; nothing for one that was not run."""
    ms = row["ms"].get(threads, {})
    return {name: ms[name] / ms["kwslib"] for name in ms if name != "kwslib" and "kwslib" in ms}


def training_rows(result, mode="both"):
    """The rows of one mode at the shapes that training has: batches of 16 or more, clips of up to 101 frames."""
    return [row for row in result["scan"] if row["mode"] == mode and row["batch"] >= 16 and row["length"] <= 101]


def headline_numbers(result):
    """The few numbers that say how fast it is: name -> value. A ratio is a peer's time over kwslib's."""
    numbers, n = {}, most_threads(result)
    one_clip = [row for row in result["scan"] if (row["mode"], row["batch"], row["length"]) == ("forward", 1, 31)]
    sets = {
        "training": [speedups(row, n) for row in training_rows(result)],
        "clip": [speedups(row, "1") for row in one_clip],
    }
    for name, rows in sets.items():
        fastest = [min(ratios.values()) for ratios in rows if ratios]
        reference = [ratios["mamba_ssm"] for ratios in rows if "mamba_ssm" in ratios]
        for peer, values in (("fastest_peer", fastest), ("mamba_ssm", reference)):
            if values:
                numbers |= {
                    f"{name}.{peer}.least": min(values),
                    f"{name}.{peer}.median": float(np.median(values)),
                    f"{name}.{peer}.most": max(values),
                }
    for mode in ("forward", "both"):
        numbers |= {f"length.{mode}.{what}": result["length"][mode][f"exponent_{what}"] for what in ("time", "memory")}
    for mode in ("forward", "both"):
        rows = training_rows(result, mode)
        for unit in ("fma", "memory"):
            if shares := [row["share"][n][unit] for row in rows if n in row.get("share", {})]:
                numbers[f"share.{mode}.{unit}"] = 100 * float(np.median(shares))
    for name, m in result["models"].items():
        numbers |= {
            f"{name}.training": m["clips_per_second"] / m["plain_clips_per_second"],
            f"{name}.latency": m["plain_latency_ms"] / m["latency_ms"],
            f"{name}.clips_per_second": m["clips_per_second"],
        }
    numbers |= {
        f"ms.{mode}.{b}.{length}.{c}": row["ms"][n]["kwslib"]
        for mode, b, length, c in (("both", 64, 31, 128), ("both", 64, 63, 256), ("forward", 1, 31, 128))
        if (row := row_of(result, mode, batch=b, length=length, channels=c))
    }
    return numbers


def scan_timed_on(result):
    """Caption part: the machine, and the peers that were not run."""
    m, missing = result["machine"], "; ".join(f"{name} not run ({why})" for name, why in result["missing"].items())
    return f"Timed on {m['cpu']}, {m['cores']} cores, PyTorch {m['torch']}. {missing}".strip()


def plain(value, digits=3):
    """A positive number with `digits` significant digits and without an exponent: "1,230", "110", "7.53", "0.0210"."""
    for _ in range(2):  # rounding may add a digit
        places = digits - 1 - floor(log10(value)) if value else digits - 1
        value = round(value, places)
    return f"{value:,.{max(0, places)}f}"


def scan_tables(result):
    """name -> (DataFrame, caption): scan, one row for each shape; scan_models, one for each model."""
    return {"scan": scan_table(result), "scan_models": models_table(result)}


def scan_table(result):
    """One row for each shape and mode: milliseconds, how many times slower each peer is, memory, rates."""
    rows, n = [], most_threads(result)
    for row in result["scan"]:
        ms, ratios = row["ms"].get(n, {}), speedups(row, n)
        if "kwslib" not in ms:
            continue
        shown = {
            "pass": MODES[row["mode"]],
            "batch": str(row["batch"]),
            "length": f"{row['length']:,}",
            "channels": str(row["channels"]),
            "kwslib (ms)": plain(ms["kwslib"]),
            "kwslib, 1 thread (ms)": plain(row["ms"]["1"]["kwslib"]),
        }
        for peer in NAMES:
            if peer != "kwslib":
                shown[f"{NAMES[peer]} (×)"] = f"{ratios[peer]:.1f}" if peer in ratios else "not run"
        shown |= {
            "kwslib (MB)": f"{row['mb']['kwslib'] or 0:.1f}",
            "instructions, of a matrix product's FMA rate (%)": f"{100 * row['share'][n]['fma']:.0f}",
            "share of memory bandwidth (%)": f"{100 * row['share'][n]['memory']:.0f}",
        }
        rows.append(shown)
    return DataFrame(rows), (
        f"The selective scan, state {result['state']}, {n} threads unless stated otherwise; × is a peer's time over "
        "kwslib's; not run: too large, or too slow (scan.json says which). Instructions are the vector instructions of "
        "the scan's arithmetic, counted, over the multiply-adds a second of PyTorch's matrix product; they can exceed "
        "100 %, because that product does not fill the units, and because not all instructions are multiply-adds. "
        f"{scan_timed_on(result)}"
    )


def models_table(result):
    """Whole models: training and latency with kwslib and as published, and the parts of a training step."""
    rows = [
        {
            "model": label_of(name),
            "training, clips/s": f"{m['clips_per_second']:.0f}",
            "as published, clips/s": f"{m['plain_clips_per_second']:.1f}",
            "training, ×": f"{m['clips_per_second'] / m['plain_clips_per_second']:.1f}",
            "one clip, ms": f"{m['latency_ms']:.2f}",
            "as published, ms": f"{m['plain_latency_ms']:.2f}",
            "one clip, ×": f"{m['plain_latency_ms'] / m['latency_ms']:.1f}",
            **{f"{kind}, % of a step": f"{100 * share:.0f}" for kind, share in m["profile"].items()},
        }
        for name, m in result["models"].items()
    ]
    return DataFrame(rows), (
        "Whole models: the training loop at batch 64, and the latency of one clip on one thread, beside the same model "
        "as the paper's code runs it (plain scan, float32, clip-by-clip features in DataLoader workers); and where the "
        f"time of a training step goes. {scan_timed_on(result)}"
    )


def scan_findings(result):
    """What the benchmark shows, in Markdown sentences."""
    numbers, lines = headline_numbers(result), []
    for what, title in (("training", "Forward and backward at training shapes"), ("clip", "Forward on one clip")):
        for peer, name in (("fastest_peer", "the fastest peer"), ("mamba_ssm", "mamba_ssm's reference")):
            if f"{what}.{peer}.median" in numbers:
                least, middle, most = (numbers[f"{what}.{peer}.{key}"] for key in ("least", "median", "most"))
                lines.append(
                    f"{title}, {name} takes {plain(least, 2)} to {plain(most, 2)} times as long as kwslib "
                    f"(median {plain(middle, 2)})."
                )
    if not lines:
        lines.append("No peer was run, so there is nothing to compare with.")
    time, memory = (numbers[f"length.both.{what}"] for what in ("time", "memory"))
    first, last = result["length"]["lengths"][0], result["length"]["lengths"][-1]
    lines.append(
        f"From {first:,} to {last:,} frames, the time of forward and backward grows with exponent {time:.2f}"
        + (f" and the memory with exponent {memory:.2f}." if memory is not None else ".")
    )
    gains = {model: numbers[f"{model}.training"] for model in result["models"]}
    least, most = min(gains, key=gains.get), max(gains, key=gains.get)
    lines.append(
        f"Training a whole model is {plain(gains[least], 2)} ({label_of(least)}) to {plain(gains[most], 2)} times "
        f"({label_of(most)}) as fast as with the plain scan fed by the paper's data loading."
    )
    return "\n".join(f"- {line}" for line in lines)
