"""Tables and figures of the scan's benchmark (benchmark_scan.py), drawn from results/scan/scan.json alone."""

from __future__ import annotations

import numpy as np
from pandas import DataFrame

from paper.figures import BELOW, PAGE, figure, look

NAMES = {
    "kwslib": "kwslib (this work)",
    "mamba_ssm": "mamba_ssm, reference",
    "mambapy": "mambapy, parallel scan",
    "transformers": "transformers, loop",
}
COLOURS = {
    "kwslib": ("#0072B2", "", "o"),
    "mambapy": ("0.65", "////", "s"),
    "transformers": ("white", "....", "^"),
    "mamba_ssm": ("0.85", "xxxx", "D"),
}
SHADES = ("#0072B2", "#E69F00", "0.8", "#009E73", "#56B4E9", "#CC79A7", "0.6", "0.3", "white")
HATCHES = ("", "////", "", "....", "++++", "xxxx", "----", "", "\\\\\\\\")


def most(result):
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


def training_rows(result):
    """Forward + backward at the shapes that training has: batches of 16 or more, clips of up to 101 frames."""
    return [row for row in result["scan"] if row["mode"] == "both" and row["batch"] >= 16 and row["length"] <= 101]


def headline(result):
    """The few numbers that say how fast it is: name -> value. A ratio is a peer's time over kwslib's."""
    numbers, n = {}, most(result)
    sets = {
        "training": [speedups(row, n) for row in training_rows(result)],
        "clip": [
            speedups(row, "1")
            for row in result["scan"]
            if (row["mode"], row["batch"], row["length"]) == ("forward", 1, 31)
        ],
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
        rows = [row for row in result["scan"] if row["mode"] == mode and row["batch"] >= 16 and row["length"] <= 101]
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


def timed_on(result):
    m, missing = result["machine"], "; ".join(f"{name} not run ({why})" for name, why in result["missing"].items())
    return f"Timed on {m['cpu']}, {m['cores']} cores, PyTorch {m['torch']}. {missing}".strip()


def scan_table(result):
    """One row for each shape and mode: milliseconds, how many times slower each peer is, memory, rates."""
    rows, n = [], most(result)
    for row in result["scan"]:
        ms, ratios = row["ms"].get(n, {}), speedups(row, n)
        if "kwslib" not in ms:
            continue
        rows.append(
            {
                "pass": {"both": "forward + backward"}.get(row["mode"], row["mode"]),
                "batch": str(row["batch"]),
                "length": f"{row['length']:,}",
                "channels": str(row["channels"]),
                "kwslib (ms)": f"{ms['kwslib']:.3g}",
                "kwslib, 1 thread (ms)": f"{row['ms']['1']['kwslib']:.3g}",
                **{f"{NAMES[p]} (×)": f"{ratios[p]:.1f}" if p in ratios else "not run" for p in NAMES if p != "kwslib"},
                "kwslib (MB)": f"{row['mb']['kwslib'] or 0:.1f}",
                "instructions, of a matrix product's FMA rate (%)": f"{100 * row['share'][n]['fma']:.0f}",
                "share of memory bandwidth (%)": f"{100 * row['share'][n]['memory']:.0f}",
            }
        )
    return DataFrame(rows), (
        f"The selective scan, state {result['state']}, {n} threads unless named otherwise; × is a peer's time over kwslib's; not run: "
        "too large, or too slow (scan.json says which). Instructions are the vector instructions of the scan's arithmetic, counted, "
        "over the multiply-adds that PyTorch's matrix product did a second; over 100 %, because that product does not fill the units, and "
        f"because not all instructions are multiply-adds. {timed_on(result)}"
    )


def models_table(result):
    rows = [
        {
            "model": look(name, {"models": {}})["label"].replace("_", " "),
            "training, clips/s": f"{m['clips_per_second']:.0f}",
            "before, clips/s": f"{m['plain_clips_per_second']:.1f}",
            "training, ×": f"{m['clips_per_second'] / m['plain_clips_per_second']:.1f}",
            "one clip, ms": f"{m['latency_ms']:.2f}",
            "before, ms": f"{m['plain_latency_ms']:.2f}",
            "one clip, ×": f"{m['plain_latency_ms'] / m['latency_ms']:.1f}",
            **{f"{kind}, % of a step": f"{100 * share:.0f}" for kind, share in m["profile"].items()},
        }
        for name, m in result["models"].items()
    ]
    return DataFrame(rows), (
        "Whole models: the training loop at batch 64, and the latency of one clip on one thread, beside the same model as the paper's code "
        f"runs it (plain scan, float32, clip-by-clip features in DataLoader workers); where a training step goes. {timed_on(result)}"
    )


def speed(result, claims):
    """The one picture: a training step's scan, one clip's scan, and whole models in training."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    fig, (step, clip, models) = figure(PAGE, 2.5, 1, 3, width_ratios=(1, 1, 1.25))
    for ax, mode, batch, n, title in (
        (step, "both", 64, most(result), f"forward + backward, 64 clips\nthreads: {most(result)}"),
        (clip, "forward", 1, "1", "forward, one clip\nthreads: 1"),
    ):
        row = row_of(result, mode, batch=batch, length=31, channels=128) or row_of(result, mode)
        ms = row["ms"][n]
        names = sorted(ms, key=ms.get)
        for i, name in enumerate(names):
            colour, hatch, _ = COLOURS[name]
            ax.barh(i, ms[name], 0.7, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
            ratio = "" if name == "kwslib" else f"  × {ms[name] / ms['kwslib']:.0f}"
            ax.text(ms[name], i, f" {ms[name]:.2g} ms{ratio}", va="center", fontsize=6)
        ax.set_yticks(
            range(len(names)), [NAMES[name].replace(" (this work)", "").replace(", ", ",\n") for name in names]
        )
        ax.set(xscale="log", xlabel="time (ms)", title=title)
        ax.set_xlim(min(ms.values()) / 2, max(ms.values()) * 20)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    found = result["models"]
    for i, m in enumerate(found.values()):
        for shift, key, (colour, hatch, _), label in (
            (-0.19, "clips_per_second", COLOURS["kwslib"], "kwslib"),
            (0.19, "plain_clips_per_second", COLOURS["mambapy"], "as published"),
        ):
            models.barh(
                i + shift,
                m[key],
                0.36,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.5,
                label=label if i == 0 else None,
            )
        models.text(
            m["clips_per_second"],
            i - 0.19,
            f" × {m['clips_per_second'] / m['plain_clips_per_second']:.0f}",
            va="center",
            fontsize=6,
        )
    models.set_yticks(range(len(found)), [look(name, claims)["label"] for name in found])
    models.set(xscale="log", xlabel="training (clips/s)", title="whole models, training\nbatch 64")
    slow, fast = (
        pick(m[key] for m in found.values())
        for pick, key in ((min, "plain_clips_per_second"), (max, "clips_per_second"))
    )
    models.set_xlim(slow / 2, 4 * fast)
    models.xaxis.set_major_formatter(ScalarFormatter())
    models.xaxis.set_minor_formatter(NullFormatter())
    models.invert_yaxis()
    models.grid(axis="y", visible=False)
    models.legend(**{**BELOW, "ncols": 2})
    return fig


def shapes(result):
    """How many times slower the fastest peer is, over the size of the sequence tensors, by mode and threads."""
    fig, axes = figure(PAGE, 2.6, 1, 2, sharey=True)
    for ax, mode in zip(axes, ("forward", "both")):
        for n, marker, colour in zip(sorted(result["peaks"], key=int), "os", ("#0072B2", "#E69F00")):
            points = [
                (row["batch"] * row["length"] * row["channels"], min(speedups(row, n).values()))
                for row in result["scan"]
                if row["mode"] == mode and speedups(row, n)
            ]
            if points:
                ax.plot(*np.array(points).T, marker, color=colour, markerfacecolor="none", label=f"threads: {n}")
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="batch × length × channels",
            title={"both": "forward + backward"}.get(mode, mode),
        )
    axes[0].set_ylabel("time of the fastest peer\nover kwslib's (×)")
    axes[0].legend()
    return fig


def growth(result):
    """Time and memory of one sequence against its length: kwslib to 64,000 frames, peers as far as they were run."""
    part = result["length"]
    fig, axes = figure(PAGE, 3.0, 1, 2)
    for ax, key, what, unit in zip(axes, ("ms", "mb"), ("time", "memory"), ("ms", "MB")):
        for mode, style in (("forward", "--"), ("both", "-")):
            exponent = part[mode][f"exponent_{what}"]
            name = {"both": "forward + backward"}.get(mode, mode)
            ax.plot(
                part["lengths"],
                np.array(part[mode][key], float),
                "o" + style,
                color=COLOURS["kwslib"][0],
                label=f"kwslib, {name}" + (f": exponent {exponent:.2f}" if exponent is not None else ""),
            )
        for peer in (p for p in NAMES if p != "kwslib"):
            rows = [
                row
                for row in result["scan"]
                if row["mode"] == "both"
                and row["batch"] == 1
                and row["channels"] == part["channels"]
                and row["length"] >= part["lengths"][0]
            ]
            values = [
                (row["length"], row["ms"][most(result)].get(peer) if key == "ms" else row["mb"].get(peer))
                for row in rows
            ]
            if values := [v for v in values if v[1]]:
                ax.plot(
                    *np.array(values).T,
                    ":",
                    marker=COLOURS[peer][2],
                    color="0.4",
                    markerfacecolor="none",
                    label=NAMES[peer],
                )
        ax.set(xscale="log", yscale="log", xlabel="length (frames)", ylabel=f"{what} ({unit})")
        ax.legend(**BELOW)
    return fig


def step_shares(result, claims):
    """Where the time of a training step goes, by kind of work."""
    found = result["models"]
    fig, ax = figure(PAGE, 2.4)
    left = np.zeros(len(found))
    for kind, colour, hatch in zip(next(iter(found.values()))["profile"], SHADES, HATCHES):
        values = np.array([100 * m["profile"][kind] for m in found.values()])
        ax.barh(
            range(len(found)),
            values,
            0.7,
            left,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.5,
            label=kind,
        )
        left += values
    ax.set_yticks(range(len(found)), [look(name, claims)["label"] for name in found])
    ax.set(xlabel="share of a training step, batch 64 (%)", xlim=(0, 100))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2)
    return fig


def draw_all(result, claims):
    """name -> (figure, caption)."""
    on = timed_on(result)
    return {
        "scan_speed": (
            speed(result, claims),
            f"The selective scan at length 31, 128 channels, state {result['state']}, and training with it. As published: "
            f"plain scan, float32, features clip by clip in DataLoader workers. {on}",
        ),
        "scan_shapes": (shapes(result), f"The fastest peer's time over kwslib's, at every shape. {on}"),
        "scan_length": (
            growth(result),
            f"One sequence of {result['length']['channels']} channels against its length. Peers stop where they get too large or too slow. {on}",
        ),
        "step_profile": (step_shares(result, claims), f"Where the time of a training step goes. {on}"),
    }
