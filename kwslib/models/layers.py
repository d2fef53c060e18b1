"""Layers that several models share: padding masks, front-ends, the classifier.

B clips    T frames    F mel bands or cepstra    d  d_model"""

import torch
import torch.nn.functional as F
from torch import nn


def valid_mask(x, lengths):
    """(B, T, 1) of 1 for valid frames and 0 for padding, in x's dtype; x is (B, T, …)."""
    frames = torch.arange(x.shape[1], device=x.device)
    return (frames < lengths.to(x.device)[:, None]).to(x.dtype)[:, :, None]


def masked(x, lengths):
    """Images (B, channels, T, F), with zeros for padding; all of them is valid where lengths is None."""
    return x if lengths is None else x * valid_mask(x.transpose(1, 2), lengths)[:, None]


def masked_mean(x, lengths):
    """Mean of (B, T, d) over the valid frames; at least one frame counts."""
    if lengths is None:
        return x.mean(1)
    mask = valid_mask(x, lengths.clamp(min=1))
    return (x * mask).sum(1) / mask.sum(1)


def projection(n_in, d_model):
    return nn.Sequential(nn.Linear(n_in, d_model), nn.LayerNorm(d_model), nn.SiLU(), nn.Dropout(0.1))


class ConvFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, T // 2, d): two double 3×3 convolutions; time is halved once, frequency twice."""

    def __init__(self, d_model, n_features=128):
        super().__init__()
        self.stages = nn.ModuleList()
        for c_in, c_out in ((1, 32), (32, 64)):
            first, second = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
            self.stages.append(nn.ModuleList([first, nn.BatchNorm2d(c_out), second, nn.BatchNorm2d(c_out)]))
        self.project = projection(64 * (n_features // 4), d_model)
        self.stages.to(memory_format=torch.channels_last)  # and so the activations

    def forward(self, x, lengths):
        x = x[:, None]  # (B, channels, T, F), in channels-last memory: what the CPU's and tensor cores' kernels want
        for stage, pool in zip(self.stages, ((2, 2), (1, 2))):
            for conv, norm in (stage[:2], stage[2:]):
                x = F.silu(norm(conv(masked(x, lengths))))
            x = F.max_pool2d(x, pool)
            lengths = None if lengths is None else lengths // pool[0]  # valid where both of a pair's frames are
        return self.project(x.permute(0, 2, 1, 3).flatten(2)), lengths


class StridedFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, ceil(T / 4), d): strides, not pooling, at a twentieth of ConvFrontEnd's work."""

    def __init__(self, d_model, n_features=64, widths=(16, 32, 64), kernels=(5, 3, 3), strides=(2, 1, 2)):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, k, (stride, 2), k // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU())
            for a, b, k, stride in zip((1, *widths), widths, kernels, strides)
        ).to(memory_format=torch.channels_last)
        bands = -(-n_features // 2 ** len(widths))  # each layer halves them, rounding up
        self.project = projection(widths[-1] * bands, d_model)

    def forward(self, x, lengths):
        x = x[:, None]  # (B, channels, T, bands)
        for layer in self.layers:
            x = layer(masked(x, lengths))
            lengths = None if lengths is None else (lengths - 1) // layer[0].stride[0] + 1
        return self.project(x.permute(0, 2, 1, 3).flatten(2)), lengths


class LinearFrontEnd(nn.Module):
    """MFCC (B, T, F) -> (B, T, d), frame by frame."""

    def __init__(self, d_model, n_features=40):
        super().__init__()
        self.project = projection(n_features, d_model)

    def forward(self, x, lengths):
        return self.project(x), lengths


class Head(nn.Module):
    """(B, T, d) -> (B, classes): LayerNorm, mean over valid frames, two-layer classifier."""

    def __init__(self, d_model, n_classes):
        super().__init__()
        self.norm, half = nn.LayerNorm(d_model), d_model // 2
        layers = nn.Dropout(0.1), nn.Linear(d_model, half), nn.SiLU(), nn.Dropout(0.05), nn.Linear(half, n_classes)
        self.classify = nn.Sequential(*layers)

    def forward(self, x, lengths):
        return self.classify(masked_mean(self.norm(x), lengths))


class SequenceKWS(nn.Module):
    """Front-end -> blocks -> masked mean -> classifier: the paper's Mamba and RetNet models. Blocks see no lengths."""

    def __init__(self, frontend, blocks, head):
        super().__init__()
        self.frontend, self.blocks, self.head = frontend, nn.ModuleList(blocks), head

    def forward(self, inputs, lengths=None):
        x, lengths = self.frontend(inputs, lengths)
        for block in self.blocks:
            x = block(x)
        return self.head(x, lengths)
