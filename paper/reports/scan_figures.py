"""Figures of the scan's benchmark (benchmark_scan.py), drawn from results/scan/scan.json alone."""

from __future__ import annotations

import numpy as np

from paper.benchmarks.training import BATCH, START
from paper.figure_style import BELOW, PAGE, look, new_figure, plain_ticks
from paper.reports.scan import MODES, NAMES, PACKAGES, ablations, most_threads, row_of, scan_timed_on, speedups
from paper.writing import significant

COLOURS = {
    "kwslib": ("#0072B2", "", "o"),
    "cpp": ("#E69F00", "", "v"),
    "mambapy": ("0.65", "////", "s"),
    "transformers": ("white", "....", "^"),
    "mamba_ssm": ("0.85", "xxxx", "D"),
    "associative_scan": ("0.75", "----", "P"),
    "compiled_loop": ("white", "++++", "X"),
    "compiled_mambapy": ("white", "////", "<"),
    "compiled_associative_scan": ("white", "----", ">"),
}
SHADES = ("#0072B2", "#E69F00", "0.8", "#009E73", "#56B4E9", "#CC79A7", "0.6", "0.3", "white")
HATCHES = ("", "////", "", "....", "++++", "xxxx", "----", "", "\\\\\\\\")
EDGE = {"edgecolor": "black", "linewidth": 0.5}
WHISKER = {"error_kw": {"linewidth": 0.7}, "capsize": 1.5}


def scan_figures(result):
    """name -> (Figure, caption)."""
    on = scan_timed_on(result)
    return {
        "scan_speed": (
            speed_figure(result),
            f"The selective scan at length 31, 128 channels, state {result['state']}, and training with it; × is the "
            "time over kwslib's, or the speed over that of the plain PyTorch scan, float32, with features clip by clip "
            f"in DataLoader workers; whiskers are quartiles. {on}",
        ),
        "scan_shapes": (
            shapes_figure(result),
            f"The time of the fastest package, and of our C++ extension, over kwslib's, at every shape. {on}",
        ),
        "scan_length": (
            length_figure(result),
            f"One sequence of {result['length']['channels']} channels against its length. Peers stop where they become "
            f"too large or too slow. {on}",
        ),
        "scan_training": (
            training_figure(result),
            "A training step, batch 64, as one change after the other is made to it; × is against the first way, and "
            f"whiskers are quartiles. {on}",
        ),
        "step_profile": (step_figure(result), f"Where the time of a training step goes. {on}"),
    }


def speed_figure(result):
    """The scan of a training step, the scan of one clip, and whole models in training."""
    fig, (step, clip, models) = new_figure(PAGE, 3.8, 1, 3, width_ratios=(1, 1, 0.9))
    n = most_threads(result)
    for ax, mode, batch, threads, title in (
        (step, "both", 64, n, f"forward + backward, 64 clips\nthreads: {n}"),
        (clip, "forward", 1, "1", "forward, one clip\nthreads: 1"),
    ):
        row = row_of(result, mode, batch=batch, length=31, channels=128) or row_of(result, mode)
        peer_bars(ax, row["ms"][threads], row["quartiles"][threads])
        ax.set_title(title)
    training_bars(models, ablations(result))
    return fig


def peer_bars(ax, ms, quartiles):
    """A bar for each of `ms` {implementation: milliseconds}, the fastest on top; whiskers between the quartiles."""
    names = sorted(ms, key=ms.get)
    for i, name in enumerate(names):
        colour, hatch, _ = COLOURS[name]
        whisker = np.abs(np.array(quartiles[name])[:, None] - ms[name])
        ax.barh(i, ms[name], 0.7, color=colour, hatch=hatch, xerr=whisker, **WHISKER, **EDGE)
        ratio = "" if name == "kwslib" else f" (× {significant(ms[name] / ms['kwslib'], 2)})"
        ax.text(max(ms[name], quartiles[name][1]), i, f" {significant(ms[name], 2)} ms{ratio}", va="center", fontsize=6)
    labels = (NAMES[name].replace(" (this work)", "").replace("associative_", "assoc. ") for name in names)
    ax.set_yticks(range(len(names)), [label.replace(", ", ",\n") for label in labels])
    ax.tick_params("y", labelsize=6)
    ax.set(xscale="log", xlabel="time (ms)")
    ax.set_xlim(min(ms.values()) / 2, max(ms.values()) * 30)
    plain_ticks(ax.xaxis)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)


def training_bars(ax, models):
    """Two bars for each model: training with kwslib, and as it starts from."""
    slow, fast = ([1000 * BATCH / list(ways.values())[end]["p50"] for ways in models.values()] for end in (0, -1))
    for shift, values, side, label in ((-0.19, fast, "kwslib", "kwslib"), (0.19, slow, "mambapy", START)):
        colour, hatch, _ = COLOURS[side]
        ax.barh(np.arange(len(models)) + shift, values, 0.36, color=colour, hatch=hatch, label=label, **EDGE)
    for i, (ours, theirs) in enumerate(zip(fast, slow)):
        ax.text(ours, i - 0.19, f" × {significant(ours / theirs, 2)}", va="center", fontsize=6)
    ax.set_yticks(range(len(models)), [look(name)["label"] for name in models], rotation=90, va="center")
    ax.set(xscale="log", xlabel="training (clips/s)", title="whole models, training\nbatch 64")
    ax.set_xlim(min(slow) / 2, 4 * max(fast))
    plain_ticks(ax.xaxis)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(**BELOW)


def training_figure(result):
    """A panel for each model that was trained in several ways: a bar for a step of each."""
    models = ablations(result)
    fig, axes = new_figure(PAGE, 1.9, 1, len(models), squeeze=False)
    for ax, (model, ways) in zip(axes[0], models.items()):
        first = next(iter(ways.values()))["p50"]
        for i, found in enumerate(ways.values()):
            whisker = [[found["p50"] - found["p25"]], [found["p75"] - found["p50"]]]
            colour = COLOURS["kwslib"][0] if i == len(ways) - 1 else "0.8"
            ax.barh(i, found["p50"], 0.7, color=colour, xerr=whisker, **WHISKER, **EDGE)
            ratio = f" (× {significant(first / found['p50'], 2)})" if i else ""
            ax.text(found["p75"], i, f" {significant(found['p50'], 2)} ms{ratio}", va="center", fontsize=6)
        ax.set_yticks(range(len(ways)), [way.replace(", float32", ",\nfloat32") for way in ways])
        ax.set(xlabel="a training step (ms)", title=look(model)["label"])
        ax.set_xlim(0, 1.5 * max(found["p75"] for found in ways.values()))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    return fig


def shapes_figure(result):
    """How many times slower the others are, over the size of the sequence tensors, by mode and threads."""
    fig, axes = new_figure(PAGE, 2.6, 1, 2, sharey=True)
    sides = (("fastest package", PACKAGES, "os"), ("C++ extension", ("cpp",), "x+"))
    for ax, mode in zip(axes, MODES):
        rows = [row for row in result["scan"] if row["mode"] == mode]
        for what, among, markers in sides:
            for n, marker, colour in zip(sorted(result["peaks"], key=int), markers, ("#0072B2", "#E69F00")):
                points = [
                    (row["batch"] * row["length"] * row["channels"], min(found))
                    for row in rows
                    if (found := [ratio for peer, ratio in speedups(row, n).items() if peer in among])
                ]
                if points:
                    style = {"color": colour, "markerfacecolor": "none", "label": f"{what}, threads: {n}"}
                    ax.plot(*np.array(points).T, marker, **style)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="batch × length × channels", title=MODES[mode])
        plain_ticks(ax.yaxis, (1, 2, 5))
    axes[0].set_ylabel("time over kwslib's (×)")
    if axes[0].lines[1:]:
        axes[0].legend(**BELOW | {"ncols": 2, "columnspacing": 1, "handlelength": 1})
    return fig


def length_figure(result):
    """Time and memory of one sequence against its length: kwslib over all lengths, peers as far as they were run."""
    part, n = result["length"], most_threads(result)
    fig, axes = new_figure(PAGE, 3.0, 1, 2)
    for ax, key, what, unit in zip(axes, ("ms", "mb"), ("time", "memory"), ("ms", "MB")):
        for mode, line in (("forward", "--"), ("both", "-")):
            exponent = part[mode][f"exponent_{what}"]
            label = f"kwslib, {MODES[mode]}" + (f": exponent {exponent:.2f}" if exponent is not None else "")
            values = np.array(part[mode][key], float)
            ax.plot(part["lengths"], values, "o" + line, color=COLOURS["kwslib"][0], label=label)
        for peer in NAMES:
            points = [
                (row["length"], row["ms"][n].get(peer) if key == "ms" else row["mb"].get(peer))
                for row in result["scan"]
                if (row["mode"], row["batch"], row["channels"]) == ("both", 1, part["channels"])
                and row["length"] >= part["lengths"][0]
            ]
            points = [point for point in points if point[1]]
            if points and peer != "kwslib":
                style = {"marker": COLOURS[peer][2], "color": "0.4", "markerfacecolor": "none", "linestyle": ":"}
                ax.plot(*np.array(points).T, label=NAMES[peer], **style)
        ax.set(xscale="log", yscale="log", xlabel="length (frames)", ylabel=f"{what} ({unit})")
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        ax.legend(**BELOW)
    return fig


def step_figure(result):
    """Where the time of a training step goes, by kind of work."""
    models = result["models"]
    fig, ax = new_figure(PAGE, 2.4)
    left = np.zeros(len(models))
    for kind, colour, hatch in zip(next(iter(models.values()))["profile"], SHADES, HATCHES):
        values = np.array([100 * m["profile"][kind] for m in models.values()])
        ax.barh(range(len(models)), values, 0.7, left, color=colour, hatch=hatch, label=kind, **EDGE)
        left += values
    ax.set_yticks(range(len(models)), [look(name)["label"] for name in models])
    ax.set(xlabel="share of a training step, batch 64 (%)", xlim=(0, 100))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2)
    return fig
