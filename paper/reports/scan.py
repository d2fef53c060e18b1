"""Tables, figures and findings of the scan's benchmark (benchmark_scan.py), from results/scan/scan.json alone."""

from __future__ import annotations

import numpy as np
from pandas import DataFrame

from paper.benchmarks.training import BATCH
from paper.results import label_of, timed_on
from paper.writing import significant

NAMES = {
    "kwslib": "kwslib (this work)",
    "cpp": "C++ extension, ours",
    "mamba_ssm": "mamba_ssm, reference",
    "mambapy": "mambapy, parallel scan",
    "transformers": "transformers, loop",
    "associative_scan": "PyTorch, associative_scan",
    "compiled_loop": "plain loop, compiled",
    "compiled_mambapy": "mambapy, compiled",
    "compiled_associative_scan": "associative_scan, compiled",
}
PACKAGES = ("mamba_ssm", "mambapy", "transformers", "associative_scan")  # what a reader could install instead
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
    """The few numbers that say how fast it is: name -> value. A ratio is a peer's median time over kwslib's; `shapes`
    counts the rows, and those where a package or a compiled version was timed; `scan` is the gain of the fused scan.
    """
    numbers, n = {}, most_threads(result)
    one_clip = [row for row in result["scan"] if (row["mode"], row["batch"], row["length"]) == ("forward", 1, 31)]
    compiled = [r for row in one_clip for peer, r in speedups(row, n).items() if peer.startswith("compiled_")]
    numbers |= {"one.compiled.least": min(compiled)} if compiled else {}
    sets = {
        "training": [speedups(row, n) for row in training_rows(result)],
        "clip": [speedups(row, "1") for row in one_clip],
    }
    for name, rows in sets.items():
        packages, compiled = (
            [{peer: ratio for peer, ratio in ratios.items() if among(peer)} for ratios in rows]
            for among in (PACKAGES.__contains__, lambda peer: peer.startswith("compiled_"))
        )
        found = {peer: [ratios[peer] for ratios in rows if peer in ratios] for peer in ("cpp", "mamba_ssm")}
        found["fastest_peer"] = [min(ratios.values()) for ratios in rows if ratios]
        found["fastest_package"] = [min(ratios.values()) for ratios in packages if ratios]
        found["compiled"] = [min(ratios.values()) for ratios in compiled if ratios]
        shapes = {"": rows, "packages.": [r for r in packages if r], "compiled.": [r for r in compiled if r]}
        numbers |= {f"{name}.{among}shapes": len(timed) for among, timed in shapes.items()}
        for peer, values in found.items():
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
        ways = list(m["training"].values())
        numbers[f"{name}.clips_per_second"] = 1000 * BATCH / ways[-1]["p50"]
        numbers[f"{name}.latency"] = m["latency"]["reference"]["p50"] / m["latency"]["kwslib"]["p50"]
        if len(ways) > 1:
            numbers[f"{name}.training"] = ways[0]["p50"] / ways[-1]["p50"]
            numbers[f"{name}.scan"] = ways[0]["p50"] / ways[1]["p50"]
    numbers |= {
        f"ms.{mode}.{b}.{length}.{c}": row["ms"][n]["kwslib"]
        for mode, b, length, c in (("both", 64, 31, 128), ("both", 64, 63, 256), ("forward", 1, 31, 128))
        if (row := row_of(result, mode, batch=b, length=length, channels=c))
    }
    return numbers


def scan_timed_on(result):
    """Caption part: the machine, whether it was busy, and the peers that were not run."""
    missing = "; ".join(f"{NAMES[name]}: not run ({why})" for name, why in result["missing"].items())
    return f"Medians. {timed_on(result)} {missing + '.' if missing else ''}".strip()


def scan_tables(result):
    """name -> (DataFrame, caption): every shape, every side at a few shapes, whole models, and their training."""
    return {
        "scan": scan_table(result),
        "scan_sides": sides_table(result),
        "scan_models": models_table(result),
        "scan_training": training_table(result),
    }


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
            "kwslib (ms)": significant(ms["kwslib"]),
            "kwslib, 1 thread (ms)": significant(row["ms"]["1"]["kwslib"]),
        }
        for peer in NAMES:
            if peer != "kwslib" and not peer.startswith("compiled"):  # these have a table of their own
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


def sides_table(result):
    """Every side at the shapes where all were run: medians with quartiles, calls, seconds of compiling, differences."""
    rows = [
        row for row in result["scan"] if any(name.startswith("compiled") for name in row["ms"][most_threads(result)])
    ]
    rows = rows or [row for row in (row_of(result, mode, batch=1) for mode in MODES) if row]
    found = [
        {
            "pass": MODES[row["mode"]],
            "batch × length × channels": f"{row['batch']} × {row['length']} × {row['channels']}",
            "threads": n,
            "side": NAMES[name],
            "median (ms)": significant(ms),
            "quartiles (ms)": " to ".join(map(significant, row["quartiles"][n][name])),
            "calls": str(row["calls"][n]),
            "compiling (s)": f"{row['compile_s'][n][name]:.0f}" if name in row["compile_s"][n] else "–",
            "largest difference from kwslib": f"{row['difference'][name][0]:.1e}",
        }
        for row in rows
        for n in row["ms"]
        for name, ms in sorted(row["ms"][n].items(), key=lambda side: side[1])
    ]
    built = "".join(f" The C++ extension took {s:.0f} s to build." for s in result["compile_s"].values())
    return DataFrame(found), (
        "Every side at a few shapes, the fastest first. All are called equally often, in turns; the times are without "
        "compiling. The difference is the largest of any number, in the output or, with backward, in a gradient."
        f"{built} {scan_timed_on(result)}"
    )


def models_table(result):
    """Whole models: training with kwslib, latency with the plain scan over that with ours, parts of a training step."""
    rows = [
        {
            "model": label_of(name),
            "training, clips/s": f"{1000 * BATCH / list(m['training'].values())[-1]['p50']:.0f}",
            "one clip, plain scan (×)": f"{m['latency']['reference']['p50'] / m['latency']['kwslib']['p50']:.1f}",
            **{f"{kind}, % of a step": f"{100 * share:.0f}" for kind, share in m["profile"].items()},
        }
        for name, m in result["models"].items()
    ]
    return DataFrame(rows), (
        f"Whole models: the training loop at batch {BATCH}; how many times as long one clip takes with the plain "
        "PyTorch scan as with kwslib's, on one thread, in float32; and where the time of a training step goes. "
        f"{scan_timed_on(result)}"
    )


def ablations(result):
    """model -> {way: quartiles} of those that were trained in more than one way."""
    return {name: m["training"] for name, m in result["models"].items() if len(m["training"]) > 1}


def training_table(result):
    """One change to the training after the other: the time of a step, and what the change gains."""
    rows = []
    for name, ways in ablations(result).items():
        before = first = next(iter(ways.values()))
        for way, found in ways.items():
            rows.append({
                "model": label_of(name),
                "way": way,
                "a step (ms)": significant(found["p50"]),
                "quartiles (ms)": f"{significant(found['p25'])} to {significant(found['p75'])}",
                "steps": str(found["calls"]),
                "faster than the way above (×)": f"{before['p50'] / found['p50']:.2f}",
                "faster than the first way (×)": f"{first['p50'] / found['p50']:.2f}",
            })  # fmt: skip
            before = found
    return DataFrame(rows), (
        f"Training, batch {BATCH}: from the plain PyTorch scan in float32, with features clip by clip in DataLoader "
        "workers, to kwslib's loop, one change on top of the other. The ways take turns in rounds; start-up and "
        f"warm-up are not timed. {scan_timed_on(result)}"
    )


def scan_findings(result):
    """What the benchmark shows, in Markdown sentences. "Fastest" is said of what was measured."""
    numbers, lines, n = headline_numbers(result), [], most_threads(result)
    peers = {
        "cpp": "our C++ extension",
        "fastest_package": "the fastest of the packages, not compiled,",
        "mamba_ssm": "mamba_ssm's reference",
    }
    for what, title in (("training", "Forward and backward at training shapes"), ("clip", "Forward on one clip")):
        for peer, name in peers.items():
            if f"{what}.{peer}.median" in numbers:
                least, middle, most = (numbers[f"{what}.{peer}.{key}"] for key in ("least", "median", "most"))
                lines.append(
                    f"{title}, {name} takes {significant(least, 2)} to {significant(most, 2)} times as long as kwslib "
                    f"(median {significant(middle, 2)})."
                )
    compared = [row["ms"][n] for row in result["scan"] if len(row["ms"].get(n, {})) > 1]
    first = [min(ms, key=ms.get) for ms in compared]
    if compared:
        won = ", ".join(f"{NAMES[name]} in {first.count(name)}" for name in NAMES if name in first)
        lines.append(f"Of the sides that were measured, the fastest in each of {len(compared)} rows: {won}.")
    else:
        lines.append("No peer was run, so there is nothing to compare with.")
    time, memory = (numbers[f"length.both.{what}"] for what in ("time", "memory"))
    start, end = result["length"]["lengths"][0], result["length"]["lengths"][-1]
    lines.append(
        f"From {start:,} to {end:,} frames, the time of forward and backward grows with exponent {time:.2f}"
        + (f" and the memory with exponent {memory:.2f}." if memory is not None else ".")
    )
    for name, ways in ablations(result).items():
        times = [found["p50"] for found in ways.values()]
        steps = (
            f"{way.removeprefix('+ ')} × {significant(a / b, 2)}" for way, a, b in zip(list(ways)[1:], times, times[1:])
        )
        lines.append(
            f"A training step of {label_of(name)} is {significant(times[0] / times[-1], 2)} times as fast as with the "
            f"plain PyTorch scan in float32, fed clip by clip: {', '.join(steps)}."
        )
    return "\n".join(f"- {line}" for line in lines)
