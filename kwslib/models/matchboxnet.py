"""MatchboxNet (Majumdar & Ginsburg 2020), as its authors' code has it (NVIDIA/NeMo, matchboxnet_3x1x64_v2.yaml)."""

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.models.registry import register


def centred(x, lengths, frames):
    """(B, T, F) -> (B, frames, F): each clip's valid frames in the middle of zeros; of a longer clip its middle."""
    lengths = (torch.full(x.shape[:1], x.shape[1]) if lengths is None else lengths).to(x.device)[:, None]
    place = torch.arange(frames, device=x.device) - (frames - lengths) // 2  # (B, frames), where each comes from
    inside = (place >= 0) & (place < lengths)
    index = place.clamp(0, x.shape[1] - 1)[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, index) * inside[:, :, None]


class MatchboxBlock(nn.Module):
    """`repeats` depthwise-separable convolutions over time beside a 1×1 path (Majumdar & Ginsburg 2020, section 2)."""

    def __init__(self, c_in, c_out, kernel, repeats=1, dilation=1, residual=False, separable=True):
        super().__init__()

        def layer(c, depthwise):
            padding = dilation * (kernel - 1) // 2
            first = nn.Conv1d(c, c, kernel, padding=padding, dilation=dilation, groups=c, bias=False)
            convs = [first] * depthwise + [nn.Conv1d(c, c_out, 1, bias=False)]
            return nn.Sequential(*convs, nn.BatchNorm1d(c_out, eps=1e-3))

        self.layers = nn.ModuleList(layer(c_in if i == 0 else c_out, separable) for i in range(repeats))
        self.residual = layer(c_in, False) if residual else None

    def forward(self, x):  # (B, C, T)
        y = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(F.relu(y))
        return F.relu(y if self.residual is None else y + self.residual(x))


@register("matchboxnet", features="mfcc", label="MatchboxNet-3×2×64", short="MatchboxNet")
class MatchboxNet(nn.Module):
    """MatchboxNet-3×2×64 (Majumdar & Ginsburg 2020, table 1): 93K parameters with 35 classes. 64 MFCC.

    Clips are laid in the middle of `frames` frames, zeros around them; the mean is over all of these. No dropout."""

    def __init__(self, n_classes=35, n_features=64, repeats=2, width=64, frames=128):
        super().__init__()
        self.frames = frames
        self.blocks = nn.Sequential(
            MatchboxBlock(n_features, 128, 11),
            MatchboxBlock(128, width, 13, repeats, residual=True),
            MatchboxBlock(width, width, 15, repeats, residual=True),
            MatchboxBlock(width, width, 17, repeats, residual=True),
            MatchboxBlock(width, 128, 29, dilation=2),
            MatchboxBlock(128, 128, 1, separable=False),
        )
        self.classify = nn.Linear(128, n_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, inputs, lengths=None):
        x = centred(inputs, lengths, self.frames).transpose(1, 2)
        return self.classify(self.blocks(x).mean(2))
