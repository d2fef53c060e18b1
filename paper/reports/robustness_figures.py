"""Beyond clean clips, from result files alone: figures of robustness, confidence and streaming."""

from __future__ import annotations

import numpy as np

from paper.figure_style import PAGE, look, new_figure, plain_ticks
from paper.reports.robustness import NOISES, WAYS, task_of
from paper.results import source

FEW = 20  # clips: a bin of a reliability diagram with fewer is not drawn


def robustness_figures(found):
    """name -> (Figure, caption): conditions, confidence; streaming where a stream was heard."""
    entries, streams = found["robustness"], found["streaming"]
    about = f"{source(entries)} n = {entries[0]['clean']['n']:,} test clips; one seed of each model."
    figures = {
        "conditions": (
            conditions_figure(entries),
            f"Accuracy under changed conditions; the table says which noises were in a model's training. {about}",
        ),
        "confidence": (
            confidence_figure(entries),
            f"Reliability, in bins of at least {FEW} clips, as trained and with the "
            "temperature that fits validation; and rejection, by confidence, of words that were not in the training. "
            f"{about}",
        ),
    }
    if any("curve" in way for stream in streams for way in stream["ways"].values()):
        figures["streaming"] = (
            streaming_figure(streams),
            f"Synthetic streams of {streams[0]['hours']:g} h, test speakers; points: the threshold that the validation "
            f"stream chose. {source(streams)}",
        )
    return figures


def accuracy_lines(ax, entries, values, xlabel, title):
    """A line for each model: accuracy against the keys of values(entry), {number: {accuracy}}."""
    for entry in entries:
        found = values(entry)
        ax.plot(list(map(float, found)), [100 * p["accuracy"] for p in found.values()], **look(entry["model"]))
    ax.set(xlabel=xlabel, title=title)


def legend_below(fig, ax):
    """`fig` with the legend of one of its axes below all of them."""
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def conditions_figure(entries):
    """Accuracy against SNR in up to three noises, time shift, and how much of the clip is left."""
    fig, axes = new_figure(PAGE, 4.6, 2, 3, sharey="row")
    for ax in (*axes[0, len(entries[0]["snr"]) :], axes[1, 2]):
        ax.set_axis_off()
    for ax, kind in zip(axes[0], entries[0]["snr"]):
        accuracy_lines(ax, entries, lambda e, k=kind: e["snr"][k], "SNR (dB)", NOISES[kind])
    accuracy_lines(axes[1, 0], entries, lambda e: e["shift"], "shift (ms)", "time shift")

    def masked(entry):
        return {seconds: cut["masked"] for seconds, cut in entry["cut"].items()}

    accuracy_lines(axes[1, 1], entries, masked, "loudest part kept (s)", "cut short, masked")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    return legend_below(fig, axes[1, 0])


def confidence_figure(entries):
    """Reliability diagrams, before and after a temperature, and rejection of unknown words."""
    fig, axes = new_figure(PAGE, 2.9, 1, 3)
    for ax, key, title in zip(axes, ("diagram", "diagram_scaled"), ("as trained", "with the temperature")):
        ax.plot([0, 100], [0, 100], color="0.6", lw=0.8)
        for e in entries:
            bins = [b for b in e["calibration"][key] if b["n"] >= FEW]
            x, y = ([100 * b[what] for b in bins] for what in ("confidence", "accuracy"))
            ax.plot(x, y, **look(e["model"]))
        ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", title=title)
    for e in entries:
        if "open_set" in e:
            x, y = (100 * np.array(e["open_set"][f"{kind}_accepted"]) for kind in ("unknown", "known"))
            axes[2].plot(x, y, **look(e["model"]) | {"marker": None})
    axes[2].set(xlabel="unknown words accepted (%)", ylabel="keywords accepted (%)", title="rejection", ylim=(50, 101))
    return legend_below(fig, axes[0])


def streaming_figure(streams):
    """Misses against false alarms an hour, a panel for each task; the marked point is the operating point."""
    tasks = sorted({task_of(s) for s in streams}, key=len)
    fig, axes = new_figure(PAGE, 3.0, 1, len(tasks), sharey=True, squeeze=False)
    for s in streams:
        ax, style = axes[0, tasks.index(task_of(s))], look(s["model"])
        for way, w in s["ways"].items():
            if "curve" not in w:
                continue
            alarms, missed = ([p[key] for p in w["curve"]] for key in ("alarms_per_hour", "miss_rate"))
            ax.plot(
                np.maximum(alarms, 0.1),
                100 * np.array(missed),
                color=style["color"],
                linestyle={"windows": "-", "carried": "--"}[way],
                label=f"{style['label']}, {WAYS[way]}",
            )
            point = max(w["test"]["alarms_per_hour"], 0.1), 100 * w["test"]["miss_rate"]
            ax.plot(*point, style["marker"], color=style["color"], clip_on=False)
    for ax, task in zip(axes[0], tasks):
        ax.set(xscale="log", xlabel="false alarms an hour (none: 0.1)", title=f"trained on {task}", ylim=(0, 100))
        plain_ticks(ax.xaxis)
        ax.legend(loc="lower left")
    axes[0, 0].set_ylabel("keywords missed (%)")
    return fig
