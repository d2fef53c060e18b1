"""Layers that several models share: padding masks, front-ends, the classifier.

B clips    T frames    F mel bands or cepstra    d  d_model"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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


def carried(layers, x, pasts):
    """A chunk (B, c, T, F) through convolutions and pools whose borders are carried -> (outputs, inputs to keep).

    layers: (function without padding in time, kernel, stride, padding) of each, over time. pasts: what an earlier call
    kept of each layer's inputs, or None at the start, where the padding stands. The outputs are those of the whole
    sequence at once, as far as they depend on no later input; there may be none."""
    kept = []
    for (layer, kernel, stride, padding), past in zip(layers, pasts or [None] * len(layers)):
        x = F.pad(x, (0, 0, padding, 0)) if past is None else torch.cat([past, x], 2)
        n = (x.shape[2] - kernel) // stride + 1
        kept.append(x[:, :, max(n, 0) * stride :])
        if n < 1:
            return None, [*kept, *pasts[len(kept) :]]
        x = layer(x[:, :, : (n - 1) * stride + kernel])
    return x, kept


def undropped(layers):
    """A Sequential in evaluation mode without its dropouts, which do nothing."""
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Dropout)))


def unpadded(conv, norm):
    """x -> silu(norm(conv(x))), in evaluation mode: the norm is folded in, and only frequency is padded."""
    conv = fuse_conv_bn_eval(conv, norm)
    return lambda x: F.silu(F.conv2d(x, conv.weight, conv.bias, conv.stride, (0, conv.padding[1])))


class ConvFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, T // 2, d): two double 3×3 convolutions; time is halved once, frequency twice."""

    stride = 2

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

    def layers_over_time(self):
        """Its layers, as `carried` takes them."""
        for stage, pool in zip(self.stages, ((2, 2), (1, 2))):
            for conv, norm in (stage[:2], stage[2:]):
                yield unpadded(conv, norm), 3, 1, 1
            yield partial(F.max_pool2d, kernel_size=pool), pool[0], pool[0], 0


class StridedFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, ceil(T / 4), d): strides, not pooling, at a twentieth of ConvFrontEnd's work."""

    stride = 4

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

    def layers_over_time(self):
        """Its layers, as `carried` takes them."""
        for conv, norm, _ in self.layers:
            yield unpadded(conv, norm), conv.kernel_size[0], conv.stride[0], conv.padding[0]


class LinearFrontEnd(nn.Module):
    """MFCC (B, T, F) -> (B, T, d), frame by frame."""

    stride = 1

    def __init__(self, d_model, n_features=40):
        super().__init__()
        self.project = projection(n_features, d_model)

    def forward(self, x, lengths):
        return self.project(x), lengths

    def layers_over_time(self):
        return ()


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


class Carried:
    """A SequenceKWS in evaluation mode whose blocks have a state to carry, and so can be fed in chunks."""

    def __init__(self, model):
        self.model, self.layers = model, list(model.frontend.layers_over_time())
        self.project = undropped(model.frontend.project)

    @staticmethod
    def fits(model):
        return isinstance(model, SequenceKWS) and all(hasattr(block, "mixer") for block in model.blocks)

    def __call__(self, inputs, state=None):
        """A chunk of inputs (B, T, F), of any length -> (frames (B, t, d) that the head averages, state: tensors).

        state: what the call before returned; None at the start, when the chunk must be long enough for a frame. All
        chunks together give the frames that the whole sequence gives at once, but those that depend on its end."""
        count = len(self.layers)
        x, pasts = carried(self.layers, inputs[:, None], state and state[:count])
        if x is None:
            return inputs.new_zeros(len(inputs), 0, self.model.head.norm.normalized_shape[0]), pasts + state[count:]
        x = self.project(x.permute(0, 2, 1, 3).flatten(2))
        x, state = self.blocks(x, state and state[count:])
        return self.model.head.norm(x), pasts + state

    def blocks(self, x, state):
        after = []
        for i, block in enumerate(self.model.blocks):
            x, own = block(x, state and state[2 * i : 2 * i + 2], return_state=True)
            after += own
        return x, after
