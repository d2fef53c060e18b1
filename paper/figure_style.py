"""The common style of the figures: sizes, fonts, and how each model looks. A new model gets a look by being registered.

A family of models (those whose names differ in the size alone, or in "as run") keeps its hue; a size within it has its
own marker, line style and shade. So models differ in grey, too, and no two have the same colour and marker.
"""

from __future__ import annotations

import functools
import re
import zlib
from pathlib import Path

import numpy as np

from kwslib.io import replacing
from kwslib.models.registry import MODELS
from paper.results import short_of

COLUMN, PAGE = 3.4, 7.0  # widths in inches: single and double column
RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "pdf.fonttype": 42,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.05,
    "figure.constrained_layout.w_pad": 0.07,
}
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "handlelength": 3}  # a legend below the axes

# Eleven and thirteen have no common divisor: 143 families come before a colour and a marker are together again.
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#AA4499",
    "#777777",
    "#D55E00",
    "#56B4E9",
    "#8C564B",
    "#999933",
    "#000000",
    "#CC79A7",
)
MARKERS = ("o", "s", "^", "D", "P", "v", "X", "h", "p", "*", "<", ">", "d")
LINES = ("-", "--", ":", "-.")
# Models that are not registered, in results of somebody else's code: colours and a line of their own.
UNKNOWN_COLOURS, UNKNOWN_LINE = (
    ("#332288", "#CC3311", "#117733", "#882255", "#44AA99", "#AA7700", "#EE3377"),
    (0, (5, 1, 1, 1)),
)


def family_of(model):
    """A model's name without its size: "mamba_mel" of "mamba_mel_small_as_run", "bc_resnet" of "bc_resnet_1"."""
    return re.sub(r"(_(small|medium|large|\d+))?(_as_run)?$", "", model)


@functools.cache
def families():
    """family -> its registered models, in the order of the registry, those "as run" last."""
    found = {}
    for model in sorted(MODELS, key=lambda name: name.endswith("_as_run")):
        found.setdefault(family_of(model), []).append(model)
    return found


def look(model):
    """Label, colour, marker and line style of a model: keyword arguments of Axes.plot."""
    family = family_of(model)
    if model not in families().get(family, ()):
        place = zlib.crc32(model.encode())  # the same in every process
        colour = UNKNOWN_COLOURS[place % len(UNKNOWN_COLOURS)]
        return {"label": model, "color": colour, "marker": MARKERS[place % len(MARKERS)], "linestyle": UNKNOWN_LINE}
    place, size = list(families()).index(family), families()[family].index(model)
    return {
        "label": short_of(model),
        "color": shade(COLOURS[place % len(COLOURS)], size),
        "marker": MARKERS[(place + 5 * size) % len(MARKERS)],
        "linestyle": LINES[size % len(LINES)],
    }


def shade(colour, size):
    """A hexadecimal colour for the sizes of a family: as it is, darker, lighter, much darker."""
    towards, share = ((0, 0.0), (0, 0.5), (255, 0.25), (0, 0.75))[size % 4]
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (towards - part) * share):02X}" for part in parts)


def new_figure(width, height, rows=1, columns=1, **options):
    """A Figure of width x height inches and its axes in the common style, without pyplot (and a display)."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update(RC)
    fig = Figure(figsize=(width, height))
    return fig, fig.subplots(rows, columns, **options)


def settle(fig):
    """Lay the figure out: the first draw learns how wide the labels are."""
    for _ in range(2):
        fig.draw_without_rendering()


def save_figure(fig, folder, name):
    """Write <folder>/<name>.pdf and .png (150 dots per inch), the same bytes every time."""
    settle(fig)
    fig.set_layout_engine("none")  # settled: both files get the same layout, and it is searched for once
    for kind, absent in (("pdf", "CreationDate"), ("png", "Software")):
        with replacing(Path(folder) / f"{name}.{kind}") as scratch:
            fig.savefig(scratch, format=kind, dpi=150, metadata={absent: None})


def label_points(ax, points):
    """Write the text of each (x, y, text, colour) beside it, clear of all points and of the other labels."""
    from matplotlib.transforms import Bbox

    settle(ax.figure)
    taken = [Bbox([ax.transData.transform(point[:2])] * 2).padded(5) for point in points]
    for x, y, text, colour in points:
        note = ax.annotate(
            text, (x, y), (0, 0), textcoords="offset points", color=colour, fontsize=6, va="center", in_layout=False
        )
        for step in range(60 if text else 0):  # a widening spiral of twelve directions
            radius, angle = 6 + 4 * (step // 12), step * np.pi / 6
            dx, dy = radius * np.cos(angle), radius * np.sin(angle)
            note.set(position=(dx, dy), ha="left" if dx > 1 else "right" if dx < -1 else "center")
            box = note.get_window_extent()
            inside = ax.bbox.contains(box.x0 - 4, box.y0) and ax.bbox.contains(box.x1 + 4, box.y1)
            if inside and not box.count_overlaps(taken):
                break
        taken += [box] if text else []


def mark_far(ax, points, floor, top=101):
    """Cut the y axis at `floor`; each (x, y, text, colour) below it becomes an arrow with its number, written upright:
    neighbours do not cover each other."""
    far = [point for point in points if point[1] < floor]
    if not far:
        return
    ax.set_ylim(floor, top)
    for x, y, name, colour in far:
        ax.annotate(
            f"{name} {y:.1f}",
            (x, floor),
            (0, 14),
            textcoords="offset points",
            ha="center",
            rotation=90,
            fontsize=6,
            color=colour,
            arrowprops={"arrowstyle": "->", "color": colour, "shrinkB": 0, "relpos": (0.5, 0)},
        )


def plain_ticks(axis, subs=(1,)):
    """Ticks of a logarithmic axis (ax.xaxis or ax.yaxis) as plain numbers: 0.1, 10, 1,000."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
