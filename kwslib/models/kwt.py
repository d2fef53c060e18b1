"""Keyword Transformer (Berg et al. 2021), as its authors' code has it (ARM-software/keyword-transformer)."""

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.models.cost import macs_of
from kwslib.models.registry import register


@register("kwt_1", features="mfcc", label="KWT-1")
class KWT(nn.Module):
    """Keyword Transformer 1 (Berg et al. 2021, table 1): d 64, 12 post-norm layers, one head, a class token.

    Attention compares every pair of frames: the O(T²) model of the length benchmark. Learned positions cover `frames`
    frames, all that a second gives without padding at its ends; later ones share the last, so that a clip's logits do
    not depend on its padding. Every weight starts from a normal of deviation 0.02 cut at two, every bias at 0."""

    def __init__(self, n_classes=35, d_model=64, n_layers=12, n_heads=1, frames=98, n_features=40):
        super().__init__()
        self.project = nn.Linear(n_features, d_model)
        self.token, self.positions = (nn.Parameter(torch.empty(n, d_model)) for n in (1, 1 + frames))
        self.layers = nn.ModuleList(TransformerBlock(d_model, n_heads) for _ in range(n_layers))
        self.classify = nn.Linear(d_model, n_classes)
        linears = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        for weight in (self.token, self.positions, *(layer.weight for layer in linears)):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
        for layer in linears:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, inputs, lengths=None):
        x, places = self.project(inputs), torch.arange(1 + inputs.shape[1], device=inputs.device)
        positions = self.positions[places[1:].clamp(max=len(self.positions) - 1)]
        token = (self.token + self.positions[0]).expand(x.shape[0], 1, -1)
        x = torch.cat([token, x + positions], 1)
        mask = None if lengths is None else (places <= lengths[:, None])[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.classify(x[:, 0])


class TransformerBlock(nn.Module):
    """Post-norm attention and MLP of ratio 4 (Berg et al. 2021, section 2.1)."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.norm1, self.norm2 = (nn.LayerNorm(d_model, eps=1e-6) for _ in range(2))

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.mlp(x))


@macs_of(TransformerBlock)
def _(block, x, y):
    return 2 * len(x) * x.shape[1] ** 2 * block.out.in_features  # q kᵀ, and the weights with v


macs_of(KWT)(lambda model, x, y: 0)  # its own parameters, the class token and the positions, are added
