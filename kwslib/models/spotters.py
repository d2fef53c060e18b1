"""The paper's Mamba spotters, and Mamba-Light, our own."""

from __future__ import annotations

from kwslib.models.layers import ConvFrontEnd, Head, LinearFrontEnd, SequenceKWS, StridedFrontEnd
from kwslib.models.mamba import MambaBlock


def mamba_kws(kind, d_model, n_layers, n_classes):
    frontend = ConvFrontEnd(d_model) if kind == "mel" else LinearFrontEnd(d_model)
    blocks = [MambaBlock(d_model, max(0.02, 0.05 - 0.005 * i)) for i in range(n_layers)]
    return SequenceKWS(frontend, blocks, Head(d_model, n_classes))


def mamba_mel_small(n_classes=35):
    """Mamba-Mel Small: d 64, 8 layers; 462,147 parameters at 35 classes."""
    return mamba_kws("mel", 64, 8, n_classes)


def mamba_mel_medium(n_classes=35):
    """Mamba-Mel Medium: d 128, 10 layers; 1,506,051 parameters at 35 classes."""
    return mamba_kws("mel", 128, 10, n_classes)


def mamba_mel_large(n_classes=35):
    """Mamba-Mel Large: d 192, 12 layers; 3,504,323 parameters at 35 classes."""
    return mamba_kws("mel", 192, 12, n_classes)


def mamba_mfcc_small(n_classes=35):
    """Mamba-MFCC Small: d 64, 8 layers; 268,259 parameters at 35 classes."""
    return mamba_kws("mfcc", 64, 8, n_classes)


def mamba_mfcc_medium(n_classes=35):
    """Mamba-MFCC Medium: d 128, 10 layers; 1,183,651 parameters at 35 classes."""
    return mamba_kws("mfcc", 128, 10, n_classes)


def mamba_mfcc_large(n_classes=35):
    """Mamba-MFCC Large: d 192, 12 layers; 3,053,411 parameters at 35 classes."""
    return mamba_kws("mfcc", 192, 12, n_classes)


def mamba_light(n_classes=35):
    """Our own: a strided front-end, then 5 blocks of d 96 at 26 frames a second; reads 64 mel bands every 10 ms."""
    blocks = [MambaBlock(96, max(0.02, 0.05 - 0.005 * i)) for i in range(5)]
    return SequenceKWS(StridedFrontEnd(96), blocks, Head(96, n_classes))
