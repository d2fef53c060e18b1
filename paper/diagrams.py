"""Diagrams that need no results: a Mamba variant and its block, and the way from wave to features."""

from __future__ import annotations

import numpy as np

from kwslib.io import SAMPLE_RATE
from paper.figure_style import PAGE, new_figure


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
    fig, ax = new_figure(PAGE, 2.9, subplot_kw={"frame_on": False, "xticks": (), "yticks": (), "aspect": "equal"})
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
    fig, axes = new_figure(PAGE, 3.4, 2, 4, height_ratios=(1, 2))
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
