"""Figures of robustness, confidence and streaming, from result files alone."""

from __future__ import annotations

import numpy as np

from paper.figure_style import PAGE, look, new_figure
from paper.results import source
from paper.robustness_report import NOISES, WAYS, over_seeds, task_of

FEW = 20  # clips: a bin of a reliability diagram with fewer is not drawn
NONE = 0.1  # false alarms an hour: where a logarithmic axis shows that there were none


def draw_robustness(found):
    """name -> (Figure, caption): conditions, confidence, and streaming if there is a stream."""
    entries, streams = over_seeds(found["robustness"]), found["streaming"]
    counts = {entry["seeds"] for entry in entries}
    if counts == {1}:
        seeds = "one seed"
    else:
        seeds = f"means over {min(counts)} seeds" if len(counts) == 1 else "means over the seeds that the table counts"
    about = f"{source(entries)} n = {entries[0]['clean']['n']:,} test clips; {seeds}."
    figures = {
        "conditions": (
            conditions_figure(entries),
            f"Accuracy under conditions that were not in the training. {about}",
        ),
        "confidence": (
            confidence_figure(entries),
            f"Reliability of each model's first seed, in bins of at least {FEW} clips, as trained and with the "
            f"temperature fitted on validation; and rejection of unknown words by confidence. {about}",
        ),
    }
    if any("curve" in way for stream in streams for way in stream["ways"].values()):
        figures["streaming"] = (
            alarms_figure(streams),
            f"Synthetic streams of {streams[0]['hours']:g} h, test speakers; points: the threshold chosen on the "
            f"validation stream. {source(streams)}",
        )
    return figures


def conditions_figure(entries):
    """Accuracy against the SNR in two noises, the time shift, and the length of what is left of the clip."""
    fig, axes = new_figure(PAGE, 4.8, 2, 2, sharey="row")
    for ax, kind in zip(axes[0], entries[0]["snr"]):
        accuracy_lines(ax, entries, [e["snr"][kind] for e in entries])
        ax.set(xlabel="SNR (dB)", title=NOISES[kind])
    accuracy_lines(axes[1, 0], entries, [e["shift"] for e in entries])
    axes[1, 0].set(xlabel="shift (ms)", title="time shift")
    masked = [{seconds: cut["masked"] for seconds, cut in e["cut"].items()} for e in entries]
    accuracy_lines(axes[1, 1], entries, masked)
    axes[1, 1].set(xlabel="loudest part kept (s)", title="cut short, masked")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    return legend_below(fig, axes[1, 0])


def accuracy_lines(ax, entries, accuracies):
    """One line for each entry; accuracies: for each a dict of place on the x axis -> {accuracy}."""
    for entry, by_place in zip(entries, accuracies):
        places = [float(place) for place in by_place]
        ax.plot(places, [100 * part["accuracy"] for part in by_place.values()], **look(entry["model"]))


def legend_below(fig, ax):
    """`fig` with the legend of one of its axes below all of them."""
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3)
    return fig


def confidence_figure(entries):
    """Reliability diagrams, before and after a temperature, and rejection of unknown words."""
    fig, axes = new_figure(PAGE, 3.0, 1, 3)
    for ax, key, title in zip(axes, ("diagram", "diagram_scaled"), ("as trained", "with the temperature")):
        ax.plot([0, 100], [0, 100], color="0.6", lw=0.8)
        for e in entries:
            bins = [b for b in e["calibration"][key] if b["n"] >= FEW]
            confidence, accuracy = ([100 * b[what] for b in bins] for what in ("confidence", "accuracy"))
            ax.plot(confidence, accuracy, **look(e["model"]))
        ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", title=title)
    for e in entries:
        if "open_set" in e:
            unknown, known = (100 * np.array(e["open_set"][f"{what}_accepted"]) for what in ("unknown", "known"))
            axes[2].plot(unknown, known, **{**look(e["model"]), "marker": None})
    axes[2].set(xlabel="unknown words accepted (%)", ylabel="keywords accepted (%)", title="rejection", ylim=(50, 101))
    return legend_below(fig, axes[0])


def alarms_figure(streams):
    """Misses against false alarms an hour, a panel for each task; the marked point is the operating point."""
    tasks = sorted({task_of(stream) for stream in streams}, key=len)
    fig, axes = new_figure(PAGE, 3.0, 1, len(tasks), sharey=True, squeeze=False)
    for stream in streams:
        ax, style = axes[0, tasks.index(task_of(stream))], look(stream["model"])
        for way, found in stream["ways"].items():
            if "curve" in found:
                alarms_curve(ax, found, style | {"label": f"{style['label']}, {WAYS[way]}"}, way)
    for ax, task in zip(axes[0], tasks):
        ax.set(xscale="log", xlabel=f"false alarms an hour (none: {NONE})", title=f"trained on {task}", ylim=(0, 100))
        ax.legend(loc="lower left")
    axes[0, 0].set_ylabel("keywords missed (%)")
    return fig


def alarms_curve(ax, found, style, way):
    """The curve of one model and way of listening, and its operating point."""
    alarms = [max(point["alarms_per_hour"], NONE) for point in found["curve"]]
    misses = [100 * point["miss_rate"] for point in found["curve"]]
    line = {"windows": "-", "carried": "--"}[way]
    ax.plot(alarms, misses, **{**style, "linestyle": line, "marker": None})
    chosen = found["test"]
    at = max(chosen["alarms_per_hour"], NONE), 100 * chosen["miss_rate"]
    ax.plot(*at, style["marker"], color=style["color"], clip_on=False)
