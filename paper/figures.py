"""The paper's figures, drawn from result files: one function a figure, each returns a matplotlib Figure.

A family of models keeps its colour and marker, a size within it its line style: all is told apart in grey
too. Measured accuracy is filled, with its interval; published results are hollow and the paper's claims are
crosses, in a panel of their own unless the test set is the published one. `draw_all` adds captions.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kwslib.io import SAMPLE_RATE, replacing
from paper import tables

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
}
FAMILIES = {
    "mamba_mel": ("#0072B2", "o", "Mamba-Mel"),
    "mamba_mfcc": ("#E69F00", "s", "Mamba-MFCC"),
    "retnet": ("#009E73", "^", "RetNet"),
    "mobilenet_v2": ("#AA4499", "D", "MobileNetV2"),
    "kwt": ("#D55E00", "v", "KWT"),
    "mamba_light": ("#000000", "*", "Mamba-Light"),
    "bc_resnet": ("#56B4E9", "X", "BC-ResNet"),
    "matchboxnet": ("#8C564B", "h", "MatchboxNet"),
    "ds_cnn": ("#999933", "p", "DS-CNN"),
    "keyword_cnn": ("#777777", "P", "CNN"),
}
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "handlelength": 3}  # a legend off the data
FAR = 20  # points of accuracy: what lies further below the best is named at the axis's end
LINES = {"small": "-", "medium": "--", "large": ":", "075": "--", "035": ":", "1": "-."}


def family_of(model):
    return next((family for family in FAMILIES if model.startswith(family)), "keyword_cnn")


def look(model, claims):
    """Label, colour, marker and line style of a model: keyword arguments of Axes.plot."""
    colour, marker, _ = FAMILIES[family_of(model)]
    return {
        "label": claims["models"].get(model, {}).get("short", model),
        "color": colour,
        "marker": marker,
        "linestyle": LINES.get(model.rsplit("_", 1)[-1], "-"),
    }


def figure(width, height, rows=1, columns=1, **options):
    """A Figure of width x height inches and its axes in the common style, without pyplot (and a display)."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update(RC)
    fig = Figure(figsize=(width, height))
    return fig, fig.subplots(rows, columns, **options)


def save(fig, folder, name):
    """Write <folder>/<name>.pdf and .png (150 dots per inch), the same bytes every time."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # settled: both files get the same layout, and it is searched for once
    for kind, absent in (("pdf", "CreationDate"), ("png", "Software")):
        with replacing(Path(folder) / f"{name}.{kind}") as scratch:
            fig.savefig(scratch, format=kind, dpi=150, metadata={absent: None})


def learning_curves(runs, claims):
    """Validation accuracy (above) and training loss (below) against the epoch; bands span the seeds."""
    groups = {"Mamba-Mel": {}, "Mamba-MFCC": {}, "other models": {}}
    order = [*claims["models"], *(run["model"] for run in runs)]
    for run in sorted(runs, key=lambda run: order.index(run["model"])):
        group = groups.get(FAMILIES[family_of(run["model"])][2], groups["other models"])
        group.setdefault(run["model"], []).append(run["history"])
    groups = {title: models for title, models in groups.items() if models}
    fig, axes = figure(PAGE, 4.6, 2, len(groups), sharex=True, sharey="row", squeeze=False)
    for column, (title, models) in zip(axes.T, groups.items()):
        for i, (model, seeds) in enumerate(models.items()):
            length = min(map(len, seeds))
            epochs = [row["epoch"] for row in seeds[0][:length]]
            step, style = max(1, length // 5), look(model, claims)
            for ax, key, scale in zip(column, ("validation_accuracy", "training_loss"), (100, 1)):
                values = scale * np.array([[row[key] for row in seed[:length]] for seed in seeds])
                ax.plot(epochs, values.mean(0), markevery=(i * step // len(models), step), **style)
                ax.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.15)
        column[0].set_title(title)
        column[1].set_xlabel("epoch")
        column[1].legend(**BELOW)
    fig.suptitle(tables.corpus_name(runs), fontsize=8)
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[1, 0].set_ylabel("training loss (nats)")
    return fig


def confusion_matrix(run):
    """Share of each spoken word (rows) taken for each (columns); counts in cells up to 12 classes."""
    from matplotlib.colors import PowerNorm

    counts, labels = np.array(run["test"]["confusion"]), run["labels"]
    share, few = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1), len(labels) <= 12
    fig, ax = figure(COLUMN if few else PAGE, COLUMN * 0.88 if few else PAGE * 0.86)
    image = ax.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # a square root shows rare mistakes
    ax.set_xticks(range(len(labels)), labels, rotation=90)
    ax.set_yticks(range(len(labels)), labels)
    ax.grid(False)
    ax.set(xlabel="predicted word", ylabel="spoken word", title=tables.corpus_name([run]))
    for row, column in np.argwhere(counts > 0) if few else ():
        ax.text(
            column,
            row,
            counts[row, column],
            ha="center",
            va="center",
            fontsize=6,
            color="white" if share[row, column] > 35 else "black",
        )
    fig.colorbar(image, ax=ax, label="share of the spoken word (%)", shrink=0.85)
    return fig


def parsed(text):
    """Value of a printed number: "404K" -> 404000.0, "~96.5" -> 96.5, "96.95 ± 0.14" -> 96.95."""
    value, unit = re.match(r"~?([\d.]+)\s*([KM]?)", text).groups()
    return float(value) * {"": 1, "K": 1e3, "M": 1e6}[unit]


def label_points(ax, points):
    """Write the text of each (x, y, text, colour) beside it, clear of all points and of the other labels."""
    from matplotlib.transforms import Bbox

    ax.figure.draw_without_rendering()  # settles the layout, on which the search relies
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
            inside = ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1)
            if inside and not box.count_overlaps(taken):
                break
        taken += [box] if text else []


def accuracy_against(runs, claims, quantity="parameters"):
    """Test accuracy against "parameters" or "macs": measured (filled), published (hollow), claimed (crosses).

    A measured accuracy far below the best is an arrow with its number.

    No MACs are published: published and claimed figures then stand at the MACs counted here, if run here.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    same = is_v2_35(runs, claims)
    fig, axes = figure(PAGE, 4.4 if same else 3.2, 1, 1 if same else 2, squeeze=False)
    ours, theirs, facts = axes[0, 0], axes[0, -1], tables.collect(runs, None, claims)
    marks, points, measured = [], [], []  # points that carry a label; measured ones are told by colour and marker
    for family, (colour, marker, name) in FAMILIES.items():
        own = sorted(
            (f[quantity], 100 * f["test.accuracy"], *(100 * end for end in f["interval"]))
            for model, f in facts.items()
            if family_of(model) == family and "test.accuracy" in f
        )
        if own:
            x, y, low, high = np.array(own).T
            ours.errorbar(x, y, np.abs([y - low, high - y]), color=colour, fmt=marker, capsize=2)
            ours.plot(x, y, color=colour, linewidth=0.6, alpha=0.6)
            marks.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=f"{name}, measured"))
            points += [(point[0], level, "", colour) for point in own for level in point[1:] if same]
            measured += [(*point[:2], name, colour) for point in own]
    for model, entry in claims["models"].items():
        claimed, x = entry["claimed"] or {}, facts[model].get("macs")
        if quantity == "parameters":  # where no count is claimed, the true one
            x = parsed(claimed.get("parameters") or str(entry.get("true_parameters", {}).get(35, 0)))
        if claimed.get("accuracy") and x:
            style = look(model, claims)
            points.append((x, parsed(claimed["accuracy"]), style["label"], style["color"]))
            theirs.plot(*points[-1][:2], "x", color=style["color"], markeredgewidth=1.3)
    for rival in claims["rivals"]:
        macs = facts.get(rival.get("implemented"), {}).get("macs")
        x = parsed(rival["parameters"]) if quantity == "parameters" else macs
        if rival["v2_35"] and x:
            points.append((x, parsed(rival["v2_35"]), rival.get("short", rival["model"]), "0.3"))
            theirs.plot(*points[-1][:2], "o", color="0.3", markerfacecolor="none")
    for ax in axes.flat:
        ax.set(xscale="log", xlabel="parameters" if quantity == "parameters" else "MACs per second of audio")
        ax.margins(0.15)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    floor = max((m[1] for m in measured), default=0) - FAR
    if not same and any(m[1] < floor for m in measured):  # who lies far below would press all others together
        ours.set_ylim(floor, 101)
        for x, y, name, colour in (m for m in measured if m[1] < floor):
            ours.annotate(
                f"{name} {y:.1f}",
                (x, floor),
                (0, 16),
                textcoords="offset points",
                ha="center",
                fontsize=6,
                color=colour,
                arrowprops={"arrowstyle": "->", "color": colour},
            )
    grey = {"color": "0.3", "linestyle": "", "markerfacecolor": "none"}
    marks += [
        Line2D([], [], marker="o", label="published, V2-35 test", **grey),
        Line2D([], [], marker="x", label="claimed, V2-35 validation", **grey),
    ]
    theirs.set(ylabel="stated accuracy (%)\nSpeech Commands V2-35", title="published and claimed")
    ours.set(ylabel=f"accuracy (%)\n{tables.corpus_name(runs)}", title="" if same else "measured here, test")
    fig.legend(handles=marks, loc="outside lower center", ncols=4)
    label_points(theirs, points)
    return fig


def is_v2_35(runs, claims):
    """Whether the runs were tested on the published V2-35 test set: same classes, same number of clips."""
    size = (claims["v2_35"]["classes"], claims["v2_35"]["test_clips"])
    return not runs[0]["corpus"]["synthetic"] and (len(runs[0]["labels"]), runs[0]["test"]["n"]) == size


def latency_and_throughput(benchmark, claims, device="models"):
    """Median latency of one clip by threads (whisker: p95), throughput by batch; device "models" or "gpu"."""
    models = benchmark[device].get("models", benchmark[device])
    models = {m: models[m] for m in dict.fromkeys((*claims["models"], *models)) if m in models}
    threads = sorted({key for b in models.values() for key in b["latency_ms"]}, key=int)
    fig, (bars, lines) = figure(PAGE, 3.3, 1, 2)
    for i, key in enumerate(threads):
        p50, p95 = (np.array([b["latency_ms"][key][p] for b in models.values()]) for p in ("p50", "p95"))
        bars.barh(
            np.arange(len(models)) + 0.8 * (i + 0.5) / len(threads),
            p50,
            0.8 / len(threads),
            xerr=[0 * p50, p95 - p50],
            capsize=1.5,
            edgecolor="black",
            linewidth=0.5,
            color=("0.7", "white", "0.4")[i % 3],
            hatch=(None, "////", "....")[i % 3],
            error_kw={"linewidth": 0.7},
            label=f"threads: {key}" if device == "models" else "GPU",
        )
    bars.set_yticks(np.arange(len(models)) + 0.4, [look(model, claims)["label"] for model in models])
    bars.set(xlabel="latency of one clip (ms), whisker: p95", ylim=(len(models), -0.2))
    bars.grid(axis="y", visible=False)
    bars.legend()
    for model, b in models.items():
        sizes = sorted(map(int, b["throughput"]))
        lines.plot(sizes, [b["throughput"][str(size)] for size in sizes], **look(model, claims))
    lines.set_xscale("log", base=2)
    lines.set(yscale="log", xlabel="batch size (clips)", ylabel="throughput (clips/s)")
    lines.set_xticks(sizes, sizes)
    lines.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3)
    return fig


def length_scaling(benchmark, claims):
    """Time and memory of one pass against the length of the audio; the legend holds the fitted exponents."""
    seconds = benchmark["length"]["seconds"]
    fig, axes = figure(PAGE, 3.2, 1, 2)
    for ax, key, what, unit in zip(axes, ("ms", "mb"), ("time", "memory"), ("ms", "MB")):
        for model, values in benchmark["length"]["models"].items():
            style = look(model, claims)
            if (exponent := values[f"exponent_{what}"]) is not None:
                style["label"] += f": exponent {exponent:.2f} over {tables.fitted(values)} s"
            ax.plot(seconds, np.array(values[key], float), **style)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel="length of the audio (s)", ylabel=f"{what} ({unit})")
        ax.set_xticks(seconds, seconds)
        ax.legend(**BELOW)
    return fig


def arrow(ax, start, end):
    style = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "facecolor": "black"}
    ax.annotate("", end, start, arrowprops=style)


def chain(ax, bottom, boxes, shapes, gap=0.34, height=0.8):
    """Draw (text, colour) boxes left to right, shapes of the data above the arrows; returns the centres."""
    from matplotlib.patches import FancyBboxPatch

    width, middle = (PAGE - gap * len(shapes)) / len(boxes), bottom + height / 2
    for i, shape in enumerate(shapes):
        arrow(ax, (x := i * (width + gap), middle), (x + gap, middle))
        ax.text(x + gap / 2, bottom + height + 0.06, shape, ha="center", fontsize=6)
    centres = [gap + width / 2 + i * (width + gap) for i in range(len(boxes))]
    for x, (text, colour) in zip(centres, boxes):
        ax.add_patch(
            FancyBboxPatch((x - width / 2, bottom), width, height, "round,pad=0,rounding_size=0.05", facecolor=colour)
        )
        ax.text(x, middle, text, ha="center", va="center", fontsize=6)
    return centres


def architecture(d_model, n_layers, n_mels=128, frames=63, n_classes=35, kind="mel"):
    """A Mamba variant and its block, data shapes at the arrows; kind: "mel" or "mfcc" (of n_mels)."""
    front, body, head = "#DCEAF7", "#FBE5C8", "#DDF0E3"
    d, e, t, width, stem, shapes = d_model, 2 * d_model, frames, n_mels, [], [f"(B, {frames}, {n_mels})"]
    if kind == "mel":  # two convolutional blocks; the first halves time, both halve frequency
        t, width = frames // 2, 64 * (n_mels // 4)
        stem = [
            (f"2 × Conv 3×3\n→ {c} channels\nBN, SiLU\nmax-pool {pool}", front)
            for c, pool in ((32, "2×2"), (64, "1×2"))
        ]
        shapes += [f"(B, 32, {t}, {n_mels // 2})", f"(B, {t}, {width})"]
    fig, ax = figure(PAGE, 2.9, subplot_kw={"frame_on": False, "xticks": (), "yticks": (), "aspect": "equal"})
    ax.set(xlim=(-0.3, PAGE + 0.3), ylim=(-0.45, 2.6))
    chain(
        ax,
        1.55,
        [
            *stem,
            (f"Linear\n{width} → {d}\nLayerNorm\nSiLU, dropout", front),
            (f"Mamba block\n× {n_layers}", body),
            ("LayerNorm\nmean over\nvalid frames\ndropout", head),
            (f"Linear {d} → {d // 2}\nSiLU, dropout\nLinear {d // 2} → {n_classes}", head),
        ],
        [*shapes, f"(B, {t}, {d})", f"(B, {t}, {d})", f"(B, {d})", f"(B, {n_classes})"],
    )
    block = (
        "LayerNorm",
        f"Linear\n{d} →\n2 × {e}",
        "causal\nConv1d\nwidth 4\nSiLU",
        "selective\nscan\n16 states",
        "× SiLU(z)",
        f"Linear\n{e} → {d}\ndropout",
        "+",
    )
    x = chain(ax, 0.2, [(text, body) for text in block], [f"(B, {t}, {n})" for n in (d, d, e, e, e, e, d, d)])
    ax.text(-0.25, 1.25, "one Mamba block", fontsize=7, fontweight="bold")
    for start, top, end, depth, name in (
        (x[1], 0.2, x[4], 0, f"z: (B, {t}, {e})"),
        (0.1, 0.6, x[6], -0.25, "residual"),
    ):
        ax.plot([start, start, end], [top, depth, depth], color="black", linewidth=1)
        arrow(ax, (end, depth), (end, 0.2))
        ax.text((x[2] + x[3]) / 2, depth - 0.03, name, ha="center", va="top", fontsize=6)
    return fig


def feature_pipeline(wave, power, mel_db, normalised, masked, hop_length=256):
    """One clip on its way to the model: wave (samples,), then (frames, bins) arrays, spectrum to masks."""
    fig, axes = figure(PAGE, 3.4, 2, 4, height_ratios=(1, 2))
    for ax in axes[0]:
        ax.remove()
    strip = fig.add_subplot(axes[0, 0].get_gridspec()[0, :])
    strip.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, color="black", linewidth=0.4)
    strip.set(xlabel="time (s)", ylabel="amplitude", xlim=(0, len(wave) / SAMPLE_RATE), title="wave")
    level = 10 * np.log10(np.maximum(power, 1e-10 * np.max(power)) / np.max(power))
    scale, bands = np.abs(normalised).max(), len(mel_db[0])
    panels = (
        (level, "power spectrum", "dB from peak", -80, 0, SAMPLE_RATE / 2000, "frequency (kHz)"),
        (mel_db, "mel", "dB", None, None, bands, "band"),
        (normalised, "normalised", "standard deviations", -scale, scale, bands, "band"),
        (masked, "masked (training)", "standard deviations", -scale, scale, bands, "band"),
    )
    for ax, (values, title, unit, low, high, top, name) in zip(axes[1], panels):
        image = ax.imshow(
            np.asarray(values).T,
            origin="lower",
            aspect="auto",
            vmin=low,
            vmax=high,
            extent=(0, len(values) * hop_length / SAMPLE_RATE, 0, top),
        )
        ax.set(title=title, xlabel="time (s)", ylabel=name)
        ax.grid(False)
        fig.colorbar(image, ax=ax, location="bottom", label=unit)
    return fig


def draw_all(runs, benchmark, claims):
    """name -> (Figure, caption) of all that the results allow."""
    about, timed, best = tables.describe(runs), tables.timed_on(benchmark), tables.chosen_run(runs)
    small, drawn = claims["models"]["mamba_mel_small"], {}
    drawn["architecture"] = (
        architecture(small["d_model"], small["n_layers"]),
        (f"{small['name']} (above), its block (below), and the data's shape at the arrows: B clips of 1 s."),
    )
    for quantity, name in (("parameters", "parameters"), ("macs", "MACs")) if runs else ():
        drawn[f"accuracy_{quantity}"] = (
            accuracy_against(runs, claims, quantity),
            (
                f"Accuracy against {name}. Filled, with intervals: measured (an arrow: far below); lines join the sizes of a family. "
                f"{about} Hollow: test accuracy on V2-35, published. Crosses: validation accuracy on V2-35, as "
                f"claimed. Neither was measured here{'; the MACs were counted here' * (name == 'MACs')}."
            ),
        )
    if with_history := [run for run in runs if run["history"]]:
        drawn["learning_curves"] = (
            learning_curves(with_history, claims),
            (
                f"Validation accuracy (n = {runs[0]['validation']['n']:,} clips) and training loss against the "
                f"epoch; bands span the seeds. {tables.source(runs)}"
            ),
        )
    if best:
        name = claims["models"].get(best["model"], {}).get("name", best["model"])
        drawn["confusion"] = (
            confusion_matrix(best),
            (f"Confusions of {name}, seed {best['seed']}, best on validation. {tables.describe([best])}"),
        )
    for name, device in (("latency", "models"), ("latency_gpu", "gpu")):
        if (benchmark or {}).get(device):
            drawn[name] = (
                latency_and_throughput(benchmark, claims, device),
                (f"Latency (batch 1, features to logits), throughput. {timed}"),
            )
    if (benchmark or {}).get("length"):
        drawn["length"] = (
            length_scaling(benchmark, claims),
            (f"Cost of one pass against the length of audio; exponents hold for the lengths named. {timed}"),
        )
    return drawn
