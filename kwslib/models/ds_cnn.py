"""DS-CNN (Zhang et al. 2017, "Hello Edge"), as its authors' code has it (ARM-software/ML-KWS-for-MCU)."""

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.models.layers import masked, masked_mean
from kwslib.models.registry import register


@register("ds_cnn", features="mfcc", label="DS-CNN-L", short="DS-CNN")
class DSCNN(nn.Module):
    """DS-CNN Large (Zhang et al. 2017, "Hello Edge", table 8): 276 channels; 10 MFCC of 40 ms every 20 ms.

    The published 497.6 KB are a byte for each of 410,700 weights at 12 classes (batch norm folded into biases)
    and for the two largest neighbouring maps of a second, 276 × 25 × 10 and 276 × 13 × 5. As TensorFlow's slim has
    them, convolutions have a bias, and batch norm moves by 0.04, with an eps of 1e-3 and no scale."""

    def __init__(self, n_classes=35, channels=276):
        super().__init__()

        def layer(c_in, kernel, stride=1, groups=1):
            conv = nn.Conv2d(c_in, channels, kernel, stride, groups=groups)
            norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.04)
            del norm.weight  # ones, and no parameter: without any, cuDNN has no backward pass
            norm.register_buffer("weight", torch.ones(channels), persistent=False)
            return nn.Sequential(conv, norm, nn.ReLU())

        self.stem = layer(1, (10, 4), (2, 1))
        self.depthwise = nn.ModuleList(layer(channels, 3, stride, channels) for stride in (2, 1, 1, 1, 1))
        self.pointwise = nn.ModuleList(layer(channels, 1) for _ in range(5))
        self.classify = nn.Linear(channels, n_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, inputs, lengths=None):
        x = inputs[:, None].contiguous(memory_format=torch.channels_last)  # (B, 1, T, F)
        # padded as TensorFlow pads 49 frames and 10 cepstra: 25 and 10 are left, then 13 and 5
        x = self.stem(F.pad(masked(x, lengths), (1, 2, 4, 5)))
        lengths = None if lengths is None else (lengths + 1) // 2
        for depthwise, pointwise in zip(self.depthwise, self.pointwise):
            first = 0 if depthwise[0].stride[0] == 2 else 1
            x = pointwise(depthwise(F.pad(masked(x, lengths), (first, 1, 1, 1))))
            lengths = None if lengths is None else (lengths - 1) // depthwise[0].stride[0] + 1
        return self.classify(masked_mean(x.mean(3).transpose(1, 2), lengths))
