"""MatchboxNet (Majumdar & Ginsburg 2020), written from its paper."""

import torch.nn.functional as F
from torch import nn

from kwslib.models.layers import masked_mean, valid_mask
from kwslib.models.registry import register


class MatchboxBlock(nn.Module):
    """`repeats` depthwise-separable convolutions over time beside a 1×1 path (Majumdar & Ginsburg 2020, section 2)."""

    def __init__(self, c_in, c_out, kernel, repeats=1, dilation=1, residual=False, separable=True, dropout=0.1):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i in range(repeats):
            c = c_in if i == 0 else c_out
            padding = dilation * (kernel - 1) // 2
            depthwise = (
                [nn.Conv1d(c, c, kernel, padding=padding, dilation=dilation, groups=c, bias=False)] if separable else []
            )
            self.convs.append(nn.Sequential(*depthwise, nn.Conv1d(c, c_out, 1, bias=False)))
            self.norms.append(nn.BatchNorm1d(c_out))
        self.residual = (
            nn.Sequential(nn.Conv1d(c_in, c_out, 1, bias=False), nn.BatchNorm1d(c_out)) if residual else None
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):  # (B, C, T)
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if i:
                y = self.dropout(F.relu(y))
            y = norm(conv(y if mask is None else y * mask.to(y.dtype)))
        return self.dropout(F.relu(y if self.residual is None else y + self.residual(x)))


@register("matchboxnet", features="mfcc", label="MatchboxNet-3×2×64", short="MatchboxNet")
class MatchboxNet(nn.Module):
    """MatchboxNet-3×2×64 (Majumdar & Ginsburg 2020, table 1): 93K parameters with 35 classes. 64 MFCC."""

    def __init__(self, n_classes=35, n_features=64, repeats=2, width=64):
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                MatchboxBlock(n_features, 128, 11),
                MatchboxBlock(128, width, 13, repeats, residual=True),
                MatchboxBlock(width, width, 15, repeats, residual=True),
                MatchboxBlock(width, width, 17, repeats, residual=True),
                MatchboxBlock(width, 128, 29, dilation=2),
                MatchboxBlock(128, 128, 1, separable=False),
            ]
        )
        self.classify = nn.Linear(128, n_classes)

    def forward(self, inputs, lengths=None):
        mask = None if lengths is None else valid_mask(inputs, lengths).transpose(1, 2)
        x = inputs.transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        return self.classify(masked_mean(x.transpose(1, 2), lengths))
