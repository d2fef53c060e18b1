"""The paper's figures, drawn from result files: one function a figure, each returns a matplotlib Figure.

Measured accuracy is filled, with its interval; published results are hollow and the paper's claims are crosses, in a
panel of their own unless the test set is the published one. `paper_figures` and `timing_figures` add captions.
"""

from __future__ import annotations

import re

import numpy as np

from paper.diagrams import architecture
from paper.facts import collect_facts
from paper.figure_style import (
    BELOW,
    COLUMN,
    PAGE,
    families,
    family_of,
    label_points,
    look,
    mark_far,
    new_figure,
    plain_ticks,
)
from paper.results import by_model, chosen_run, corpus_name, describe, label_of, source, timed_on
from paper.tables import fitted_range

FAR = 20  # points of accuracy: a model further below the best is named at the end of the axis
QUANTITIES = {"parameters": "parameters", "macs": "MACs per second of audio"}
GREY = {"color": "0.3", "linestyle": "", "markerfacecolor": "none"}  # of published results


def paper_figures(runs, claims):
    """name -> (Figure, caption) of all that the results allow."""
    small = claims["models"]["mamba_mel_small"]
    drawn = {
        "architecture": (
            architecture(small["d_model"], small["n_layers"]),
            f"{label_of('mamba_mel_small')} (above), its block (below), and the shape of the data at the arrows: "
            "B clips of 1 s.",
        )
    }
    if runs:
        for quantity, name in (("parameters", "parameters"), ("macs", "MACs")):
            caption = (
                f"Accuracy against {name}. Filled, with intervals: measured (arrow: far below); lines join the "
                f"sizes of a family. {describe(runs)} Hollow: test accuracy on V2-35, published. Crosses: validation "
                f"accuracy on V2-35, as claimed. Neither was measured here"
                f"{'; the MACs were counted here' if name == 'MACs' else ''}."
            )
            drawn[f"accuracy_{quantity}"] = accuracy_against(runs, claims, quantity), caption
        best = chosen_run(runs)
        drawn["confusion"] = (
            confusion_matrix(best),
            f"Confusions of {label_of(best['model'])}, seed {best['seed']}, the best run on validation. "
            f"{describe([best])}",
        )
    if with_history := [run for run in runs if run["history"]]:
        drawn["learning_curves"] = (
            learning_curves(with_history),
            f"Validation accuracy (n = {runs[0]['validation']['n']:,} clips) and training loss against the epoch; "
            f"bands span the seeds. {source(runs)}",
        )
    return drawn


def timing_figures(benchmark):
    """name -> (Figure, caption) of what depends on the machine; empty where nothing has been timed (None)."""
    drawn, benchmark = {}, benchmark or {}
    for name, device in (("latency", benchmark), ("latency_gpu", benchmark.get("gpu"))):
        if device:
            caption = f"Latency (batch 1, features to logits) and throughput. {timed_on(benchmark)}"
            drawn[name] = latency_and_throughput(device["models"], gpu=name == "latency_gpu"), caption
    if length := benchmark.get("length"):
        caption = "Cost of one pass against the length of the audio; exponents hold for the lengths given. "
        caption += timed_on(benchmark)
        drawn["length"] = length_scaling(length), caption
    return drawn


def learning_curves(runs):
    """Validation accuracy (above) and training loss (below) against the epoch; bands span the seeds."""
    groups = {"Mamba-Mel": {}, "Mamba-MFCC": {}, "other models": {}}
    for model, own in by_model(runs).items():
        named = {"mamba_mel": "Mamba-Mel", "mamba_mfcc": "Mamba-MFCC"}.get(family_of(model), "other models")
        groups[named][model] = [run["history"] for run in own]
    groups = {title: models for title, models in groups.items() if models}
    fig, axes = new_figure(PAGE, 4.6, 2, len(groups), sharex=True, sharey="row", squeeze=False)
    for column, (title, models) in zip(axes.T, groups.items()):
        for i, model in enumerate(sorted(models, key=registry_order)):
            curve_with_band(column, models[model], look(model), i / len(models))
        column[0].set_title(title if len(groups) > 1 else "")
        column[1].set_xlabel("epoch")
        column[1].xaxis.get_major_locator().set_params(integer=True)
    lines = [line for ax in axes[0] for line in ax.lines]
    fig.legend(handles=lines, loc="outside lower center", ncols=5, handlelength=3)
    fig.suptitle(corpus_name(runs), fontsize=8)
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[1, 0].set_ylabel("training loss (nats)")
    return fig


def registry_order(model):
    """Sorts models: as in the registry, unknown ones last."""
    known = [name for own in families().values() for name in own]
    return known.index(model) if model in known else len(known), model


def curve_with_band(axes, seeds, style, offset):
    """Accuracy and loss of one model in two axes: the mean over the seeds' histories, and their range.

    Markers are at every fifth of the epochs, moved by `offset` (a share of that), so that those of several models do
    not cover each other.
    """
    length = min(map(len, seeds))
    epochs, step = [row["epoch"] for row in seeds[0][:length]], max(1, length // 5)
    for ax, key, scale in zip(axes, ("validation_accuracy", "training_loss"), (100, 1)):
        values = scale * np.array([[row[key] for row in seed[:length]] for seed in seeds])
        ax.plot(epochs, values.mean(0), markevery=(int(offset * step), step), **style)
        ax.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.15)


def confusion_matrix(run):
    """Share of each spoken word (rows) taken for each (columns); counts in cells up to 12 classes."""
    from matplotlib.colors import PowerNorm

    counts, labels = np.array(run["test"]["confusion"]), run["labels"]
    share, few = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1), len(labels) <= 12
    fig, ax = new_figure(COLUMN if few else PAGE, COLUMN * 0.88 if few else PAGE * 0.86)
    image = ax.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # a square root shows rare mistakes
    ax.set_xticks(range(len(labels)), labels, rotation=90)
    ax.set_yticks(range(len(labels)), labels)
    ax.grid(False)
    ax.set(xlabel="predicted word", ylabel="spoken word", title=corpus_name([run]))
    for row, column in np.argwhere(counts > 0) if few else ():
        colour = "white" if share[row, column] > 35 else "black"
        ax.text(column, row, counts[row, column], ha="center", va="center", fontsize=6, color=colour)
    fig.colorbar(image, ax=ax, label="share of the spoken word (%)", shrink=0.85)
    return fig


def parsed(text):
    """Value of a printed number: "404K" -> 404000.0, "~96.5" -> 96.5, "96.95 ± 0.14" -> 96.95."""
    value, unit = re.match(r"~?([\d.]+)\s*([KM]?)", text).groups()
    return float(value) * {"": 1, "K": 1e3, "M": 1e6}[unit]


def is_v2_35(runs, claims):
    """Whether the runs were tested on the published V2-35 test set: same classes, same number of clips."""
    size = (claims["v2_35"]["classes"], claims["v2_35"]["test_clips"])
    return not runs[0]["corpus"]["synthetic"] and (len(runs[0]["labels"]), runs[0]["test"]["n"]) == size


def accuracy_against(runs, claims, quantity="parameters"):
    """Test accuracy against "parameters" or "macs": measured (filled), published (hollow), claimed (crosses).

    A measured accuracy far below the best is an arrow with its number. No MACs are published: published and claimed
    accuracies then stand at the MACs counted here, if the model was run here.
    """
    from matplotlib.lines import Line2D

    same, facts = is_v2_35(runs, claims), collect_facts(runs, None, claims)
    fig, axes = new_figure(PAGE, 4.4 if same else 3.2, 1, 1 if same else 2, squeeze=False)
    ours, theirs = axes[0, 0], axes[0, -1]
    measured, marks = draw_measured(ours, facts, quantity)
    stated = draw_claimed(theirs, facts, claims, quantity) + draw_published(theirs, facts, claims, quantity)
    for ax in axes.flat:
        logarithmic_sizes(ax, QUANTITIES[quantity])
    marks += [
        Line2D([], [], marker="o", label="published, V2-35 test", **GREY),
        Line2D([], [], marker="x", label="claimed, V2-35 validation", **GREY),
    ]
    theirs.set(ylabel="stated accuracy (%)\nSpeech Commands V2-35", title="published and claimed")
    if not stated and not same:
        theirs.text(
            0.5, 0.5, "nothing is stated\nof these models", transform=theirs.transAxes, ha="center", va="center"
        )
        theirs.set(xticks=[], yticks=[])
        theirs.minorticks_off()
    ours.set(ylabel=f"accuracy (%)\n{corpus_name(runs)}", title="" if same else "measured here, test")
    fig.legend(handles=marks, loc="outside lower center", ncols=5)
    if not same:  # a model far below would press all the others together
        mark_far(ours, measured, max((accuracy for _, accuracy, *_ in measured), default=0) - FAR)
    label_points(theirs, stated + ([(x, y, "", colour) for x, y, _, colour in measured] if same else []))
    return fig


def draw_measured(ax, facts, quantity):
    """The measured accuracies with their intervals, the sizes of a family joined.

    Returns the points as (x, accuracy, name, colour), and the legend's entry of each model.
    """
    from matplotlib.lines import Line2D

    groups, points, marks = {}, [], []
    for model in sorted(facts, key=registry_order):
        if "test.accuracy" in facts[model]:
            groups.setdefault(family_of(model), []).append(model)
    for models in groups.values():
        line = sorted((facts[model][quantity], 100 * facts[model]["test.accuracy"]) for model in models)
        ax.plot(*np.array(line).T, color=look(models[0])["color"], linewidth=0.6, alpha=0.6)
        for model in models:
            style, own = look(model), facts[model]
            point = own[quantity], 100 * own["test.accuracy"]
            spread = [[abs(100 * end - point[1])] for end in own["interval"] or ()] or None
            ax.errorbar(*point, spread, color=style["color"], fmt=style["marker"], capsize=2)
            mark = {key: style[key] for key in ("color", "marker", "label")}
            marks.append(Line2D([], [], linestyle="", **mark))
            points.append((*point, style["label"], style["color"]))
    return points, marks


def draw_claimed(ax, facts, claims, quantity):
    """A cross for each claimed accuracy; returns the points as (x, accuracy, name, colour)."""
    points = []
    for model, entry in claims["models"].items():
        claimed, x = entry["claimed"], facts[model].get("macs")
        if quantity == "parameters":  # where no count is claimed, the true one
            x = parsed(claimed["parameters"] or str(entry["true_parameters"].get(35, 0)))
        if claimed["accuracy"] and x:
            style = look(model)
            points.append((x, parsed(claimed["accuracy"]), style["label"], style["color"]))
            ax.plot(*points[-1][:2], "x", color=style["color"], markeredgewidth=1.3)
    return points


def draw_published(ax, facts, claims, quantity):
    """A hollow circle for each published test accuracy; returns the points as (x, accuracy, name, colour)."""
    points = []
    for rival in claims["rivals"]:
        macs = facts.get(rival.get("implemented"), {}).get("macs")
        x = parsed(rival["parameters"]) if quantity == "parameters" else macs
        if rival["v2_35"] and x:
            points.append((x, parsed(rival["v2_35"]), rival.get("short", rival["model"]), GREY["color"]))
            ax.plot(*points[-1][:2], marker="o", **GREY)
    return points


def logarithmic_sizes(ax, label):
    """A logarithmic x axis with ticks such as 30 k and 1 M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    ax.set(xscale="log", xlabel=label)
    ax.margins(0.15)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(EngFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())


def latency_and_throughput(timings, gpu=False):
    """Median latency of one clip by threads (whisker: p95), and throughput by batch, of `timings`: model -> entry."""
    timings = {model: timings[model] for model in sorted(timings, key=registry_order)}
    threads = sorted({key for entry in timings.values() for key in entry["latency_ms"]}, key=int)
    fig, (bars, lines) = new_figure(PAGE, 3.3, 1, 2)
    for i, key in enumerate(threads):
        p50, p95 = (np.array([entry["latency_ms"][key][p] for entry in timings.values()]) for p in ("p50", "p95"))
        bars.barh(
            np.arange(len(timings)) + 0.8 * (i + 0.5) / len(threads),
            p50,
            0.8 / len(threads),
            xerr=[0 * p50, p95 - p50],
            capsize=1.5,
            edgecolor="black",
            linewidth=0.5,
            color=("0.7", "white", "0.4")[i % 3],
            hatch=(None, "////", "....")[i % 3],
            error_kw={"linewidth": 0.7},
            label="GPU" if gpu else f"threads: {key}",
        )
    bars.set_yticks(np.arange(len(timings)) + 0.4, [look(model)["label"] for model in timings])
    bars.set(xlabel="latency of one clip (ms), whisker: p95", ylim=(len(timings), -0.2))
    bars.grid(axis="y", visible=False)
    bars.legend()
    for model, entry in timings.items():
        sizes = sorted(map(int, entry["throughput"]))
        lines.plot(sizes, [entry["throughput"][str(size)] for size in sizes], **look(model))
    lines.set_xscale("log", base=2)
    lines.set(yscale="log", xlabel="batch size (clips)", ylabel="throughput (clips/s)")
    plain_ticks(lines.yaxis, (1, 2, 5))
    lines.set_xticks(sizes, sizes)
    lines.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3)
    return fig


def length_scaling(length):
    """Time and memory of one pass against the length of the audio; the legend holds the fitted exponents."""
    seconds = length["seconds"]
    fig, axes = new_figure(PAGE, 3.2, 1, 2)
    for ax, key, what, unit in zip(axes, ("ms", "mb"), ("time", "memory"), ("ms", "MB")):
        for model, values in length["models"].items():
            style = look(model)
            if (exponent := values[f"exponent_{what}"]) is not None:
                style["label"] += f": exponent {exponent:.2f} over {fitted_range(values)} s"
            ax.plot(seconds, np.array(values[key], float), **style)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel="length of the audio (s)", ylabel=f"{what} ({unit})")
        plain_ticks(ax.yaxis)
        ax.set_xticks(seconds, seconds)
        ax.legend(**BELOW)
    return fig
