"""Shapes of Mamba-Light that were tried and are not in the library, as models for `paper.search`.

    python -m paper.candidates profiles/search/shapes.yaml both_ways

They read what Mamba-Light reads, but for `light_broadcast`, which takes BC-ResNet's 40 mel bands.
"""

from __future__ import annotations

from torch import nn

from kwslib.io import cli
from kwslib.models.bc_resnet import BCResBlock
from kwslib.models.layers import Head, SequenceKWS, StridedFrontEnd, projection, valid_mask
from kwslib.models.mamba import Mamba, MambaBlock
from kwslib.models.registry import register
from paper import search


class BothWays(nn.Module):
    """Residual block of two mixers, one of which hears the frames backwards (Zhu et al. 2024, algorithm 1, with
    projections of its own for each): (B, T, d) -> the same.
    """

    def __init__(self, d_model, dropout):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(d_model), nn.Dropout(dropout)
        self.forwards, self.backwards = Mamba(d_model), Mamba(d_model)

    def forward(self, x):
        y = self.norm(x)
        return x + self.dropout(self.forwards(y) + self.backwards(y.flip(1)).flip(1))


@register("light_both_ways", features="mel", label="Mamba-Light, both ways")
def light_both_ways(n_classes=35, d_model=96, n_layers=5, n_features=64):
    """Mamba-Light with blocks that read in both directions."""
    blocks = [BothWays(d_model, 0.05) for _ in range(n_layers)]
    return SequenceKWS(StridedFrontEnd(d_model, n_features), blocks, Head(d_model, n_classes))


class BroadcastFrontEnd(nn.Module):
    """Log-mel (B, T, F) -> (B, T // 2, d): BC-ResNet's stem and first two stages, then pairs of frames are averaged."""

    def __init__(self, d_model, n_features, tau):
        super().__init__()
        wide, first, second = 16 * tau, 8 * tau, 12 * tau
        self.stem = nn.Sequential(nn.Conv2d(1, wide, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
        self.blocks = nn.ModuleList(
            [BCResBlock(wide, first, 1), BCResBlock(first, first, 1)]
            + [BCResBlock(first, second, 2, stride=2), BCResBlock(second, second, 2)]
        )
        self.project = projection(second * (n_features // 4), d_model)

    def forward(self, x, lengths):
        mask = None if lengths is None else valid_mask(x, lengths).transpose(1, 2)[:, None]  # (B, 1, 1, T)
        x = self.stem(x.transpose(1, 2)[:, None])  # (B, channels, F, T)
        for block in self.blocks:
            x = block(x, mask)
        x = nn.functional.avg_pool2d(x, (1, 2))
        return self.project(x.permute(0, 3, 1, 2).flatten(2)), None if lengths is None else lengths // 2


@register("light_broadcast", features="mel", label="Mamba-Light after BC-ResNet's first stages")
def light_broadcast(n_classes=35, d_model=96, n_layers=3, n_features=40, tau=3):
    """BC-ResNet's first half, and fewer Mamba blocks."""
    blocks = [MambaBlock(d_model, 0.05) for _ in range(n_layers)]
    return SequenceKWS(BroadcastFrontEnd(d_model, n_features, tau), blocks, Head(d_model, n_classes))


class Squeezed(nn.Module):
    """A layer of StridedFrontEnd, and squeeze-and-excitation of its channels (Hu et al. 2018, section 3)."""

    def __init__(self, layer):
        super().__init__()
        width = layer[0].out_channels
        self.layer = layer
        self.excite = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid())

    def __getitem__(self, i):  # the front-end asks its layers for their strides
        return self.layer[i]

    def forward(self, x):
        x = self.layer(x)
        return x * self.excite(x.mean((2, 3)))[:, :, None, None]


@register("light_squeeze", features="mel", label="Mamba-Light with squeeze-and-excitation")
def light_squeeze(n_classes=35, d_model=96, n_layers=5, n_features=64):
    """Mamba-Light whose front-end weighs its channels by the clip."""
    frontend = StridedFrontEnd(d_model, n_features)
    frontend.layers = nn.ModuleList(map(Squeezed, frontend.layers))
    return SequenceKWS(frontend, [MambaBlock(d_model, 0.05) for _ in range(n_layers)], Head(d_model, n_classes))


if __name__ == "__main__":
    cli(search.main)
