"""BC-ResNet (Kim et al. 2021), layer for layer as its authors' code has it (Qualcomm-AI-research/bcresnet)."""

import torch.nn.functional as F
from torch import nn

from kwslib.models.layers import masked_mean, valid_mask
from kwslib.models.registry import register


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
    frequencies. A transition block (c_in != c_out) changes the width, and has no identity path."""

    def __init__(self, c_in, c_out, dilation, stride=1):
        super().__init__()
        self.transition = None
        if c_in != c_out:
            self.transition = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
        self.f2 = nn.Sequential(
            nn.Conv2d(c_out, c_out, (3, 1), (stride, 1), (1, 0), groups=c_out, bias=False), SubSpectralNorm(c_out)
        )
        self.f1 = nn.Sequential(
            nn.Conv2d(c_out, c_out, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=c_out, bias=False),
            nn.BatchNorm2d(c_out),
            nn.SiLU(),
            nn.Conv2d(c_out, c_out, 1, bias=False),
            nn.Dropout2d(0.1),
        )

    def forward(self, x, mask):
        y = self.f2(x if self.transition is None else self.transition(x))
        mean = y.mean(2, keepdim=True)
        z = y + self.f1(mean if mask is None else mean * mask.to(mean.dtype))
        return F.relu(z if self.transition else z + x)


@register("bc_resnet_1", features="mel", label="BC-ResNet-1", short="BC-1")
@register("bc_resnet_3", features="mel", label="BC-ResNet-3", short="BC-3", tau=3)
@register("bc_resnet_8", features="mel", label="BC-ResNet-8", short="BC-8", tau=8)
class BCResNet(nn.Module):
    """BC-ResNet-τ (Kim et al. 2021, table 1): with 12 classes 9.2K parameters at τ = 1, 321K at τ = 8. 40 mel bands."""

    def __init__(self, n_classes=35, tau=1):
        super().__init__()
        widths = [round(tau * c) for c in (16, 8, 12, 16, 20, 32)]
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 5, (2, 1), 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        for i, (depth, stride) in enumerate(((2, 1), (2, 2), (4, 2), (4, 1))):
            self.blocks.append(BCResBlock(widths[i], widths[i + 1], 2**i, stride))
            self.blocks += [BCResBlock(widths[i + 1], widths[i + 1], 2**i) for _ in range(depth - 1)]
        self.depthwise = nn.Conv2d(widths[4], widths[4], 5, padding=(0, 2), groups=widths[4], bias=False)
        self.pointwise = nn.Sequential(
            nn.Conv2d(widths[4], widths[5], 1, bias=False), nn.BatchNorm2d(widths[5]), nn.ReLU()
        )
        self.classify = nn.Linear(widths[5], n_classes)

    def forward(self, inputs, lengths=None):
        mask = None if lengths is None else valid_mask(inputs, lengths).transpose(1, 2)[:, None]  # (B, 1, 1, T)
        x = self.stem(inputs.transpose(1, 2)[:, None])
        for block in self.blocks:
            x = block(x, mask)
        x = self.pointwise(self.depthwise(x if mask is None else x * mask.to(x.dtype)))  # one frequency is left
        return self.classify(masked_mean(x[:, :, 0].transpose(1, 2), lengths))
