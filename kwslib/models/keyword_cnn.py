"""KeywordCNN: defined in the paper's package, never trained there."""

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.models.layers import masked, masked_mean
from kwslib.models.registry import register


@register("keyword_cnn", features="mel", label="KeywordCNN", short="CNN")
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
        for conv, norm, pool in zip(self.convs, self.norms, ((1, 2), (2, 2), None)):
            x = F.relu(norm(conv(masked(x, lengths))))
            x = F.max_pool2d(x, pool) if pool else x
            lengths = lengths // 2 if lengths is not None and pool == (2, 2) else lengths
        return self.classify(masked_mean(x.mean(3).transpose(1, 2), lengths))
