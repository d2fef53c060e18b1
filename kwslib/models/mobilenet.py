"""MobileNetV2, the convolutional baseline that the paper trained."""

import torch
from torch import nn

from kwslib.models.registry import register


@register("mobilenet_v2_075", features="mel", label="MobileNetV2 0.75")
@register("mobilenet_v2_075_as_run", features="mel", label="MobileNetV2 0.75, as run", short="MobileNetV2 as run")
@register("mobilenet_v2_035", features="mel", label="MobileNetV2 0.35", width=0.35)
class MobileNetV2KWS(nn.Module):
    """torchvision's MobileNetV2 on a one-channel image, (B, T, F) or (B, 1, F, T) as `collate_image` gives it.

    Of width 0.75 (trained for the paper, 1,399,827 parameters at 35 classes) or 0.35 (440,675)."""

    def __init__(self, n_classes=35, width=0.75, dropout=0.2):
        super().__init__()
        from torchvision.models import mobilenet_v2  # lazily: the Mamba models run without torchvision

        self.net = mobilenet_v2(width_mult=width)
        # the paper puts these two in place of torchvision's, so they start as PyTorch starts them, not as torchvision
        stem = self.net.features[0][0]
        self.net.features[0][0] = nn.Conv2d(1, stem.out_channels, 3, stride=2, padding=1, bias=False)
        self.net.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.net.last_channel, n_classes))

    def forward(self, inputs, lengths=None):
        image = inputs if inputs.dim() == 4 else inputs.transpose(1, 2)[:, None]
        return self.net(image.contiguous(memory_format=torch.channels_last))


mobilenet_v2_kws = MobileNetV2KWS  # its name in the paper's package
