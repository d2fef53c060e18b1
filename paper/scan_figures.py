"""Figures of the scan's benchmark (benchmark_scan.py), from results/scan/scan.json alone."""

from __future__ import annotations

import numpy as np

from paper.figure_style import BELOW, PAGE, new_figure
from paper.results import short_of
from paper.scan_report import MODES, NAMES, most_threads, plain, row_of, scan_timed_on, speedups

# How each implementation is drawn: colour, hatch, marker.
STYLES = {
    "kwslib": ("#0072B2", "", "o"),
    "mambapy": ("0.65", "////", "s"),
    "transformers": ("white", "....", "^"),
    "mamba_ssm": ("0.85", "xxxx", "D"),
}
SHADES = ("#0072B2", "#E69F00", "0.8", "#009E73", "#56B4E9", "#CC79A7", "0.6", "0.3", "white")
HATCHES = ("", "////", "", "....", "++++", "xxxx", "----", "", "\\\\\\\\")
BAR = {"edgecolor": "black", "linewidth": 0.5}


def draw_scan(result):
    """name -> (Figure, caption)."""
    on = scan_timed_on(result)
    return {
        "scan_speed": (
            speed_figure(result),
            f"The selective scan at length 31, 128 channels, state {result['state']}, and training with it. As "
            "published: "
            f"plain scan, float32, features clip by clip in DataLoader workers. {on}",
        ),
        "scan_shapes": (shapes_figure(result), f"The fastest peer's time over kwslib's, at every shape. {on}"),
        "scan_length": (
            length_figure(result),
            f"One sequence of {result['length']['channels']} channels against its length. Peers stop where they get "
            "too "
            f"large or too slow. {on}",
        ),
        "step_profile": (step_figure(result), f"Where the time of a training step goes. {on}"),
    }


def speed_figure(result):
    """The picture of the README: the scan of a training step, of one clip, and whole models in training."""
    fig, (step, clip, models) = new_figure(PAGE, 2.5, 1, 3, width_ratios=(1, 1, 1.25))
    n = most_threads(result)
    scan_bars(step, result, "both", 64, n, f"forward + backward, 64 clips\nthreads: {n}")
    scan_bars(clip, result, "forward", 1, "1", "forward, one clip\nthreads: 1")
    training_bars(models, result["models"])
    for ax in (step, clip, models):
        plain_logarithm(ax)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    return fig


def scan_bars(ax, result, mode, batch, threads, title):
    """The time of each implementation at one shape, the fastest first, with its ratio to kwslib's."""
    row = row_of(result, mode, batch=batch, length=31, channels=128) or row_of(result, mode)
    ms = row["ms"][threads]
    names = sorted(ms, key=ms.get)
    for i, name in enumerate(names):
        colour, hatch, _ = STYLES[name]
        ax.barh(i, ms[name], 0.7, color=colour, hatch=hatch, **BAR)
        ratio = "" if name == "kwslib" else f", × {plain(ms[name] / ms['kwslib'], 2)}"
        ax.text(ms[name], i, f" {plain(ms[name], 2)} ms{ratio}", va="center", fontsize=6)
    labels = [NAMES[name].replace(" (this work)", "").replace(", ", ",\n") for name in names]
    ax.set_yticks(range(len(names)), labels)
    ax.set(xscale="log", xlabel="time (ms)", title=title, xlim=(min(ms.values()) / 2, max(ms.values()) * 30))


def training_bars(ax, models):
    """Clips a second in training of each model, with kwslib and as published."""
    parts = (
        (-0.19, "clips_per_second", STYLES["kwslib"], "kwslib"),
        (0.19, "plain_clips_per_second", STYLES["mambapy"], "as published"),
    )
    for shift, key, (colour, hatch, _), label in parts:
        rates = [m[key] for m in models.values()]
        ax.barh(np.arange(len(models)) + shift, rates, 0.36, color=colour, hatch=hatch, label=label, **BAR)
    for i, m in enumerate(models.values()):
        gain = plain(m["clips_per_second"] / m["plain_clips_per_second"], 2)
        ax.text(m["clips_per_second"], i - 0.19, f" × {gain}", va="center", fontsize=6)
    ax.set_yticks(range(len(models)), [short_of(name) for name in models])
    slowest = min(m["plain_clips_per_second"] for m in models.values())
    fastest = max(m["clips_per_second"] for m in models.values())
    ax.set(xscale="log", xlabel="training (clips/s)", title="whole models, training\nbatch 64")
    ax.set_xlim(slowest / 2, 4 * fastest)
    ax.legend(**{**BELOW, "ncols": 2})


def plain_logarithm(ax):
    """Ticks of a logarithmic x axis as ordinary numbers: 0.1, 1, 100."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def shapes_figure(result):
    """How many times slower the fastest peer is, over the size of the sequence tensors, by mode and threads."""
    fig, axes = new_figure(PAGE, 2.6, 1, 2, sharey=True)
    for ax, (mode, title) in zip(axes, MODES.items()):
        for n, marker, colour in zip(sorted(result["peaks"], key=int), "os", ("#0072B2", "#E69F00")):
            points = [
                (row["batch"] * row["length"] * row["channels"], min(speedups(row, n).values()))
                for row in result["scan"]
                if row["mode"] == mode and speedups(row, n)
            ]
            if points:
                ax.plot(*np.array(points).T, marker, color=colour, markerfacecolor="none", label=f"threads: {n}")
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="batch × length × channels", title=title)
    axes[0].set_ylabel("time of the fastest peer\nover kwslib's (×)")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend()
    return fig


def length_figure(result):
    """Time and memory of one sequence against its length: kwslib to 64,000 frames, peers as far as they were run."""
    part = result["length"]
    fig, axes = new_figure(PAGE, 3.3, 1, 2)
    for ax, key, what, unit in zip(axes, ("ms", "mb"), ("time", "memory"), ("ms", "MB")):
        for mode, line in (("forward", "o--"), ("both", "o-")):
            exponent = part[mode][f"exponent_{what}"]
            label = f"kwslib, {MODES[mode]}" + (f": exponent {exponent:.2f}" if exponent is not None else "")
            values = np.array(part[mode][key], float)
            ax.plot(part["lengths"], values, line, color=STYLES["kwslib"][0], label=label)
        for peer, (_, _, marker) in STYLES.items():
            points = [] if peer == "kwslib" else peer_lengths(result, peer, key)
            if points:
                style = {"marker": marker, "color": "0.4", "markerfacecolor": "none", "label": NAMES[peer]}
                ax.plot(*np.array(points).T, ":", **style)
        ax.set(xscale="log", yscale="log", xlabel="length (frames)", ylabel=f"{what} ({unit})")
        ax.legend(**BELOW)
    return fig


def peer_lengths(result, peer, key):
    """(length, ms or MB) of one sequence of a peer, forward and backward, at the lengths of kwslib's curve."""
    part, points = result["length"], []
    for row in result["scan"]:
        same = row["mode"] == "both" and row["batch"] == 1 and row["channels"] == part["channels"]
        value = row["ms"][most_threads(result)].get(peer) if key == "ms" else row["mb"].get(peer)
        if same and row["length"] >= part["lengths"][0] and value:
            points.append((row["length"], value))
    return points


def step_figure(result):
    """Where the time of a training step goes, by kind of work."""
    models = result["models"]
    fig, ax = new_figure(PAGE, 2.4)
    left = np.zeros(len(models))
    for kind, colour, hatch in zip(next(iter(models.values()))["profile"], SHADES, HATCHES):
        values = np.array([100 * m["profile"][kind] for m in models.values()])
        ax.barh(range(len(models)), values, 0.7, left, color=colour, hatch=hatch, label=kind, **BAR)
        left += values
    ax.set_yticks(range(len(models)), [short_of(name) for name in models])
    ax.set(xlabel="share of a training step, batch 64 (%)", xlim=(0, 100))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2)
    return fig
