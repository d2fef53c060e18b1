"""Keyword spotters: the paper's Mamba variants and the baselines it is compared with.

Every model is called `model(inputs, lengths)`: inputs (B, T, F) normalised features, lengths (B,)
valid frames (None: all of them), and returns logits (B, n_classes). Frames beyond a clip's length
change nothing: they are set to zero before every convolution and left out of every mean. Only
MobileNetV2, torchvision's as it is, reads its padding.

    d  d_model     T  frames (63 in a second)     F  mel bands (128) or cepstra (40)
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.io import KwsError
from kwslib.mamba import MambaBlock
from kwslib.masking import masked_mean, valid_mask
from kwslib.retnet import RetNetBlock
from kwslib.rivals import DSCNN, BCResNet, MatchboxNet


class ConvFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, T // 2, d): two double 3×3 convolutions; time is halved once, frequency twice."""

    def __init__(self, d_model, n_features=128):
        super().__init__()
        self.stages = nn.ModuleList()
        for c_in, c_out in ((1, 32), (32, 64)):
            self.stages.append(nn.ModuleList([
                nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out),
                nn.Conv2d(c_out, c_out, 3, padding=1), nn.BatchNorm2d(c_out)]))
        self.project = nn.Sequential(nn.Linear(64 * (n_features // 4), d_model), nn.LayerNorm(d_model),
                                     nn.SiLU(), nn.Dropout(0.1))
        self.stages.to(memory_format=torch.channels_last)  # kernels so stored make the activations so, too

    def forward(self, x, lengths):
        mask = None if lengths is None else valid_mask(x, lengths)[:, None]  # (B, 1, T, 1)
        x = x[:, None]  # (B, channels, T, F), in channels-last memory: what the CPU's and tensor cores' kernels want
        for stage, pool in zip(self.stages, ((2, 2), (1, 2))):
            for conv, norm in (stage[:2], stage[2:]):
                x = F.silu(norm(conv(x if mask is None else x * mask.to(x.dtype))))
            x = F.max_pool2d(x, pool)
            if mask is not None and pool[0] == 2:
                mask = mask[:, :, 1::2]  # a pooled frame is valid where both of its frames are
        lengths = None if lengths is None else lengths // 2
        return self.project(x.permute(0, 2, 1, 3).flatten(2)), lengths


class StridedFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, ceil(T / 4), d) at a twentieth of ConvFrontEnd's work: strides, not pooling, from the start."""

    def __init__(self, d_model, n_features=64, widths=(16, 32, 64), kernels=(5, 3, 3), strides=(2, 1, 2)):
        super().__init__()
        self.layers, bands = nn.ModuleList(), n_features
        for a, b, kernel, stride in zip((1, *widths), widths, kernels, strides):
            conv = nn.Conv2d(a, b, kernel, (stride, 2), kernel // 2, bias=False)
            self.layers.append(nn.Sequential(conv, nn.BatchNorm2d(b), nn.SiLU()))
            bands = (bands + 1) // 2
        self.project = nn.Sequential(nn.Linear(widths[-1] * bands, d_model), nn.LayerNorm(d_model), nn.SiLU(), nn.Dropout(0.1))
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, x, lengths):
        x = x[:, None]  # (B, channels, T, bands)
        for layer in self.layers:
            x = layer(x if lengths is None else x * valid_mask(x.transpose(1, 2), lengths)[:, None].to(x.dtype))
            if lengths is not None:
                lengths = (lengths - 1) // layer[0].stride[0] + 1
        return self.project(x.permute(0, 2, 1, 3).flatten(2)), lengths


class LinearFrontEnd(nn.Module):
    """MFCC (B, T, F) -> (B, T, d), frame by frame."""

    def __init__(self, d_model, n_features=40):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(n_features, d_model), nn.LayerNorm(d_model), nn.SiLU(), nn.Dropout(0.1))

    def forward(self, x, lengths):
        return self.project(x), lengths


class Head(nn.Module):
    """(B, T, d) -> (B, classes): LayerNorm, mean over valid frames, two-layer classifier."""

    def __init__(self, d_model, n_classes):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.classify = nn.Sequential(nn.Dropout(0.1), nn.Linear(d_model, d_model // 2), nn.SiLU(),
                                      nn.Dropout(0.05), nn.Linear(d_model // 2, n_classes))

    def forward(self, x, lengths):
        return self.classify(masked_mean(self.norm(x), lengths))


class SequenceKWS(nn.Module):
    """Front-end -> causal blocks -> masked mean -> classifier: the paper's Mamba and RetNet models."""

    def __init__(self, frontend, blocks, head):
        super().__init__()
        self.frontend, self.blocks, self.head = frontend, nn.ModuleList(blocks), head

    def forward(self, inputs, lengths=None):
        x, lengths = self.frontend(inputs, lengths)
        for block in self.blocks:
            x = block(x)
        return self.head(x, lengths)


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


class RetNetKWS(SequenceKWS):
    """RetNet-KWS: the Mel front-end, 6 retention blocks with 8 heads; 1,626,692 parameters at 36 classes."""

    def __init__(self, n_classes=35, d_model=128, n_layers=6, n_heads=8):
        blocks = [RetNetBlock(d_model, n_heads, max(0.02, 0.03 - 0.003 * i)) for i in range(n_layers)]
        super().__init__(ConvFrontEnd(d_model), blocks, Head(d_model, n_classes))


class MobileNetV2KWS(nn.Module):
    """torchvision's MobileNetV2 on a one-channel image, (B, T, F) or (B, 1, F, T) as `collate_image` gives it."""

    def __init__(self, n_classes=35, width=0.75):
        super().__init__()
        from torchvision.models import mobilenet_v2  # lazily: the Mamba models run without torchvision

        self.net = mobilenet_v2(num_classes=n_classes, width_mult=width, dropout=0.2)
        stem = self.net.features[0][0]
        self.net.features[0][0] = nn.Conv2d(1, stem.out_channels, 3, stride=2, padding=1, bias=False)

    def forward(self, inputs, lengths=None):
        image = inputs if inputs.dim() == 4 else inputs.transpose(1, 2)[:, None]
        return self.net(image.contiguous(memory_format=torch.channels_last))


def mobilenet_v2_kws(n_classes=35, width=0.75):
    """MobileNetV2 of width 0.75 (trained for the paper, 1,399,827 parameters at 35 classes) or 0.35 (440,675)."""
    return MobileNetV2KWS(n_classes, width)


class KeywordCNN(nn.Module):
    """Three plain convolutions and a mean: the floor that a sequence model has to beat."""

    def __init__(self, n_classes=35):
        super().__init__()
        widths = (1, 32, 64, 128)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.classify = nn.Sequential(nn.Dropout(0.2), nn.Linear(widths[-1], n_classes))

    def forward(self, inputs, lengths=None):
        x = inputs[:, None].contiguous(memory_format=torch.channels_last)  # (B, 1, T, F)
        mask = None if lengths is None else valid_mask(inputs, lengths)[:, None]
        for conv, norm, pool in zip(self.convs, self.norms, ((1, 2), (2, 2), None)):
            x = F.relu(norm(conv(x if mask is None else x * mask.to(x.dtype))))
            x = F.max_pool2d(x, pool) if pool else x
            if pool == (2, 2) and lengths is not None:
                mask, lengths = mask[:, :, 1::2], lengths // 2
        return self.classify(masked_mean(x.mean(3).transpose(1, 2), lengths))


class KWT(nn.Module):
    """Keyword Transformer 1 (Berg et al. 2021, table 1): d 64, 12 post-norm layers, one head, a class token.

    Attention compares every pair of frames: the O(T²) model of the length benchmark. Learned positions
    cover `frames` frames; later ones share the last, so that a clip's logits do not depend on its padding.
    """

    def __init__(self, n_classes=35, d_model=64, n_layers=12, n_heads=1, frames=98, n_features=40):
        super().__init__()
        self.project = nn.Linear(n_features, d_model)
        self.token = nn.Parameter(torch.randn(d_model) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + frames, d_model) * 0.02)
        self.layers = nn.ModuleList(TransformerBlock(d_model, n_heads) for _ in range(n_layers))
        self.classify = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, n_classes))

    def forward(self, inputs, lengths=None):
        x = self.project(inputs)
        T = x.shape[1]
        positions = self.positions[1:][torch.arange(T, device=x.device).clamp(max=len(self.positions) - 2)]
        token = (self.token + self.positions[0]).expand(len(x), 1, -1)
        x = torch.cat([token, x + positions], 1)
        mask = None
        if lengths is not None:
            mask = (torch.arange(T + 1, device=x.device) <= lengths[:, None])[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return self.classify(x[:, 0])


class TransformerBlock(nn.Module):
    """Post-norm attention and MLP of ratio 4 (Berg et al. 2021, section 2.1)."""

    def __init__(self, d_model, n_heads, dropout=0.0):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.mlp(x))

    def own_macs(self, frames):
        return 2 * frames**2 * self.out.in_features  # q kᵀ, and the weights with v


MODELS = {
    "mamba_mel_small": mamba_mel_small,
    "mamba_mel_medium": mamba_mel_medium,
    "mamba_mel_large": mamba_mel_large,
    "mamba_mfcc_small": mamba_mfcc_small,
    "mamba_mfcc_medium": mamba_mfcc_medium,
    "mamba_mfcc_large": mamba_mfcc_large,
    "retnet": RetNetKWS,
    "mobilenet_v2_075": mobilenet_v2_kws,
    "mobilenet_v2_035": lambda n_classes=35: mobilenet_v2_kws(n_classes, 0.35),
    "keyword_cnn": KeywordCNN,
    "kwt_1": KWT,
    "bc_resnet_1": BCResNet,
    "bc_resnet_3": functools.partial(BCResNet, tau=3),
    "bc_resnet_8": functools.partial(BCResNet, tau=8),
    "matchboxnet": MatchboxNet,
    "ds_cnn": DSCNN,
    "mamba_light": mamba_light,
}
FEATURES = {"kwt_1": "mfcc", "matchboxnet": "mfcc", "ds_cnn": "mfcc", **{n: "mfcc" for n in MODELS if "mfcc" in n}}


def build(name, n_classes=35):
    """Model `name` of MODELS with fresh weights. Raises KwsError for an unknown name."""
    if name not in MODELS:
        raise KwsError(f"model {name!r} is unknown; it must be one of {', '.join(MODELS)}")
    return MODELS[name](n_classes=n_classes)


def features_of(name):
    """Kind of features, "mel" or "mfcc", that model `name` reads."""
    return FEATURES.get(name, "mel")


def count_parameters(model):
    """Every parameter, the ones inside the scan included: what the paper's count leaves out."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model, inputs):
    """Multiply-accumulates of one forward of `inputs` (1, T, F): every Linear and convolution, and what else multiplies.

    A module whose work is not in such layers says it in `own_macs(frames)`: the scan, retention, attention.
    PyTorch's FlopCounterMode gives the same for matrix products, and takes seconds to import.
    """
    total = 0

    def count(module, args, out):
        nonlocal total
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            total += out.numel() * module.weight[0].numel()
        elif hasattr(module, "own_macs"):
            total += len(args[0]) * module.own_macs(args[0].shape[1])

    hooks, training = [m.register_forward_hook(count) for m in model.modules()], model.training
    try:
        with torch.no_grad():
            model.eval()(inputs, None)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
