"""Published small keyword spotters, written from their papers: BC-ResNet, MatchboxNet and DS-CNN.

Called like every model here, `model(inputs, lengths)` with inputs (B, T, F). Padded frames are set to zero
before every convolution over time and left out of every mean over time; each model's output for a clip of
full length is the published network's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.masking import masked_mean, valid_mask


class SubSpectralNorm(nn.Module):
    """Batch norm of `bands` groups of neighbouring frequencies, each on its own (Chang et al. 2021, section 2.2)."""

    def __init__(self, channels, bands=5):
        super().__init__()
        self.bands, self.norm = bands, nn.BatchNorm2d(channels * bands)

    def forward(self, x):  # (B, C, F, T)
        B, C, F_, T = x.shape
        return self.norm(x.reshape(B, C * self.bands, F_ // self.bands, T)).view(B, C, F_, T)


class BCResBlock(nn.Module):
    """Broadcasted residual block (Kim et al. 2021, section 2.2): y = x + f2(x) + broadcast(f1(mean over frequency)).

    f2 is a depthwise convolution over frequency, f1 a depthwise one over time on the mean of all
    frequencies. A transition block (c_in != c_out) changes the width, and has no identity path.
    """

    def __init__(self, c_in, c_out, dilation, stride=1):
        super().__init__()
        self.transition = None
        if c_in != c_out:
            self.transition = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
        self.f2 = nn.Sequential(
            nn.Conv2d(c_out, c_out, (3, 1), (stride, 1), (1, 0), groups=c_out, bias=False), SubSpectralNorm(c_out))
        self.f1 = nn.Sequential(
            nn.Conv2d(c_out, c_out, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=c_out, bias=False),
            nn.BatchNorm2d(c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 1, bias=False), nn.Dropout2d(0.1))

    def forward(self, x, mask):
        y = self.f2(x if self.transition is None else self.transition(x))
        mean = y.mean(2, keepdim=True)
        z = y + self.f1(mean if mask is None else mean * mask.to(mean.dtype))
        return F.relu(z if self.transition else z + x)


class BCResNet(nn.Module):
    """BC-ResNet-τ (Kim et al. 2021, table 1): 9.2K parameters at τ = 1 and 321K at τ = 8, with 12 classes. 40 mel bands."""

    def __init__(self, n_classes=35, tau=1):
        super().__init__()
        widths = [round(tau * c) for c in (16, 8, 12, 16, 20, 32)]
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 5, (2, 1), 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.blocks = nn.ModuleList()
        for i, (depth, stride) in enumerate(((2, 1), (2, 2), (4, 2), (4, 1))):
            self.blocks.append(BCResBlock(widths[i], widths[i + 1], 2**i, stride))
            self.blocks += [BCResBlock(widths[i + 1], widths[i + 1], 2**i) for _ in range(depth - 1)]
        self.depthwise = nn.Conv2d(widths[4], widths[4], 5, padding=(0, 2), groups=widths[4], bias=False)
        self.pointwise = nn.Sequential(nn.Conv2d(widths[4], widths[5], 1, bias=False), nn.BatchNorm2d(widths[5]), nn.ReLU())
        self.classify = nn.Linear(widths[5], n_classes, bias=False)

    def forward(self, inputs, lengths=None):
        mask = None if lengths is None else valid_mask(inputs, lengths).transpose(1, 2)[:, None]  # (B, 1, 1, T)
        x = self.stem(inputs.transpose(1, 2)[:, None])
        for block in self.blocks:
            x = block(x, mask)
        x = self.pointwise(self.depthwise(x if mask is None else x * mask.to(x.dtype)))  # one frequency is left
        return self.classify(masked_mean(x[:, :, 0].transpose(1, 2), lengths))


class MatchboxBlock(nn.Module):
    """`repeats` depthwise-separable convolutions over time beside a 1×1 path (Majumdar & Ginsburg 2020, section 2)."""

    def __init__(self, c_in, c_out, kernel, repeats=1, dilation=1, residual=False, separable=True, dropout=0.1):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i in range(repeats):
            c = c_in if i == 0 else c_out
            padding = dilation * (kernel - 1) // 2
            depthwise = [nn.Conv1d(c, c, kernel, padding=padding, dilation=dilation, groups=c, bias=False)] if separable else []
            self.convs.append(nn.Sequential(*depthwise, nn.Conv1d(c, c_out, 1, bias=False)))
            self.norms.append(nn.BatchNorm1d(c_out))
        self.residual = nn.Sequential(nn.Conv1d(c_in, c_out, 1, bias=False), nn.BatchNorm1d(c_out)) if residual else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):  # (B, C, T)
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if i:
                y = self.dropout(F.relu(y))
            y = norm(conv(y if mask is None else y * mask.to(y.dtype)))
        return self.dropout(F.relu(y if self.residual is None else y + self.residual(x)))


class MatchboxNet(nn.Module):
    """MatchboxNet-3×2×64 (Majumdar & Ginsburg 2020, table 1): 93K parameters with 35 classes. 64 MFCC."""

    def __init__(self, n_classes=35, n_features=64, repeats=2, width=64):
        super().__init__()
        self.blocks = nn.ModuleList([
            MatchboxBlock(n_features, 128, 11),
            MatchboxBlock(128, width, 13, repeats, residual=True),
            MatchboxBlock(width, width, 15, repeats, residual=True),
            MatchboxBlock(width, width, 17, repeats, residual=True),
            MatchboxBlock(width, 128, 29, dilation=2),
            MatchboxBlock(128, 128, 1, separable=False)])
        self.classify = nn.Linear(128, n_classes)

    def forward(self, inputs, lengths=None):
        mask = None if lengths is None else valid_mask(inputs, lengths).transpose(1, 2)
        x = inputs.transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        return self.classify(masked_mean(x.transpose(1, 2), lengths))


class DSCNN(nn.Module):
    """DS-CNN Large (Zhang et al. 2017, "Hello Edge", table 8): 276 channels; 10 MFCC of 40 ms every 20 ms.

    The published 497.6 KB are a byte for each of 410,700 weights at 12 classes (batch norm folded into biases)
    and for the two largest neighbouring maps of a second, 276 × 25 × 10 and 276 × 13 × 5.
    """

    def __init__(self, n_classes=35, channels=276):
        super().__init__()

        def layer(c_in, kernel, stride=1, padding=0, groups=1):
            conv = nn.Conv2d(c_in, channels, kernel, stride, padding, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

        self.stem = layer(1, (10, 4), (2, 1))
        self.depthwise = nn.ModuleList(layer(channels, 3, stride, 1, channels) for stride in (2, 1, 1, 1, 1))
        self.pointwise = nn.ModuleList(layer(channels, 1) for _ in range(5))
        self.classify = nn.Linear(channels, n_classes)

    def forward(self, inputs, lengths=None):
        x = inputs[:, None].contiguous(memory_format=torch.channels_last)  # (B, 1, T, F)
        if lengths is not None:
            x = x * valid_mask(inputs, lengths)[:, None]
        x = self.stem(F.pad(x, (1, 2, 4, 5)))  # as TensorFlow pads: of 49 frames 25 are left, of 10 cepstra 10
        lengths = None if lengths is None else (lengths + 1) // 2
        for depthwise, pointwise in zip(self.depthwise, self.pointwise):
            if lengths is not None:
                x = x * valid_mask(x.transpose(1, 2), lengths)[:, None].to(x.dtype)
            if depthwise[0].stride[0] == 2 and lengths is not None:
                lengths = (lengths + 1) // 2
            x = pointwise(depthwise(x))
        return self.classify(masked_mean(x.mean(3).transpose(1, 2), lengths))
