"""Retention (Sun et al. 2023, "Retentive Network"), in its parallel and its recurrent form.

Per head h with decay γ_h:      parallel:   Y = (Q Kᵀ ⊙ D) V,  D_nm = γ_h^(n-m) for n ≥ m, else 0   (eq. 5)
                                recurrent:  S_n = γ_h S_{n-1} + k_nᵀ v_n,   y_n = q_n S_n            (eq. 6)
Both give the same numbers only if nothing beside them looks across time. The published code normalises
groups over channels *and* time, which makes every frame depend on the future; here every frame is
normalised on its own (`FrameGroupNorm`), which leaves the parameters as they are and makes the forms equal."""

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.models.cost import macs_of
from kwslib.models.layers import ConvFrontEnd, Head, SequenceKWS
from kwslib.models.registry import register


class FrameGroupNorm(nn.GroupNorm):
    """Group norm over the channels of each frame alone: (B, T, d) -> (B, T, d)."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).view_as(x)


class Retention(nn.Module):
    """Gated multi-scale retention (section 2.2, eq. 8): (B, T, d) -> (B, T, d); values are twice as wide."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, 2 * d_model, bias=False)
        self.gate = nn.Linear(d_model, 2 * d_model, bias=False)
        self.norm = FrameGroupNorm(n_heads, 2 * d_model)
        self.out = nn.Linear(2 * d_model, d_model)
        gamma = 1 - 2.0 ** (-5 - torch.arange(n_heads, dtype=torch.float64))
        self.register_buffer("log_gamma", gamma.log().float(), persistent=False)

    def heads(self, x):
        """q, k (B, heads, T, d / heads), L2-normalised, and v (B, heads, T, 2 d / heads)."""
        q, k, v = (p(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v

    def finish(self, x, y):
        y = self.norm(y.transpose(1, 2).flatten(2))
        return self.out(F.silu(self.gate(x)) * y)

    def forward(self, x):
        q, k, v = self.heads(x)
        n = torch.arange(x.shape[1], device=x.device)
        age = (n[:, None] - n).clamp(min=0)
        decay = (age * self.log_gamma[:, None, None]).exp().tril()  # (heads, T, T)
        return self.finish(x, (q @ k.transpose(-1, -2) * decay) @ v)

    def step(self, x, state=None):
        """One frame x (B, 1, d) and the carried state (B, heads, d / heads, 2 d / heads) -> (y, state)."""
        q, k, v = self.heads(x)
        update = k.transpose(-1, -2) @ v
        state = update if state is None else state * self.log_gamma.exp()[:, None, None] + update
        return self.finish(x, q @ state), state


@macs_of(Retention)
def _(layer, x, y):
    """q kᵀ, and the decayed scores with v."""
    return len(x) * x.shape[1] ** 2 * (layer.q.out_features + layer.v.out_features)


class RetNetBlock(nn.Module):
    """x + dropout(linear(retention(norm(x)))), then x + FFN(norm(x)) of ratio 2."""

    def __init__(self, d_model, n_heads, dropout, groups=8):
        super().__init__()
        self.norm1, self.norm2 = FrameGroupNorm(groups, d_model), FrameGroupNorm(groups, d_model)
        self.retention = Retention(d_model, n_heads)
        self.linear = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.ffn = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, d_model))

    def forward(self, x):
        x = x + self.dropout(self.linear(self.retention(self.norm1(x))))
        return x + self.ffn(self.norm2(x))

    def step(self, x, state=None):
        """One frame (B, 1, d) with carried state, evaluation mode: what forward gives at that frame."""
        y, state = self.retention.step(self.norm1(x), state)
        x = x + self.linear(y)
        return x + self.ffn(self.norm2(x)), state


@register("retnet", features="mel", label="RetNet-KWS", short="RetNet")
class RetNetKWS(SequenceKWS):
    """RetNet-KWS: the Mel front-end, 6 retention blocks with 8 heads; 1,626,692 parameters at 36 classes."""

    def __init__(self, n_classes=35, d_model=128, n_layers=6, n_heads=8):
        blocks = [RetNetBlock(d_model, n_heads, max(0.02, 0.03 - 0.003 * i)) for i in range(n_layers)]
        super().__init__(ConvFrontEnd(d_model), blocks, Head(d_model, n_classes))
