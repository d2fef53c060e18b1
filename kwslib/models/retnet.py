"""RetNet-KWS as the paper trained it: blocks around the retention of Sun et al. 2023, parallel and recurrent.

Per head h with decay γ_h:      parallel:   Y = (Q Kᵀ ⊙ D) V,  D_nm = γ_h^(n-m) for n ≥ m, else 0   (eq. 5)
                                recurrent:  S_n = γ_h S_{n-1} + k_nᵀ v_n,   y_n = q_n S_n            (eq. 6)
Both give the same numbers in the retention module. The paper's blocks also normalise groups of channels over *all*
frames of the clip, padding included, so that every frame depends on the future: norm="clip". With norm="frame" each
frame is normalised on its own; the parameters stay the same, and the two forms of a block are equal, too."""

from math import log

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.io import KwsError
from kwslib.models.cost import macs_of
from kwslib.models.layers import ConvFrontEnd, Head, SequenceKWS
from kwslib.models.registry import register


class ClipNorm(nn.GroupNorm):
    """Group norm of (B, T, d) over a group's channels and all T frames: not causal."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class FrameNorm(nn.GroupNorm):
    """Group norm of (B, T, d) over a group's channels in each frame alone."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).view_as(x)


NORMS = {"clip": ClipNorm, "frame": FrameNorm}


def decays(n_heads, like):
    """γ_h = 1 - exp(linspace(ln 1/32, ln 1/512)) (section 3.1), computed in `like`'s dtype, as the published code does:
    in half precision they are those of a training under autocast."""
    return 1 - torch.linspace(log(1 / 32), log(1 / 512), n_heads, dtype=like.dtype, device=like.device).exp_()


class MultiScaleRetention(nn.Module):
    """Gated multi-scale retention (section 2.2, eq. 8) of q, k, v (B, T, d) -> (B, T, d).

    Equal in parameters, names and initial draws to `yet_another_retnet`'s, without its position embedding: projections
    with bias, no softmax, no normalisation of rows; the gate reads the query."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads, self.norm = n_heads, FrameNorm(n_heads, d_model, eps=1e-6, affine=False)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, d_model) for _ in range(3))
        self.g_proj, self.out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.g_proj):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def heads(self, q, k, v):
        """Each (B, heads, T, d / heads), the keys divided by the root of a head's width."""
        inputs = (self.q_proj, q), (self.k_proj, k), (self.v_proj, v)
        q, k, v = (project(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for project, x in inputs)
        return q, k / k.shape[-1] ** 0.5, v

    def finish(self, query, y):
        return self.out_proj(self.norm(y.transpose(1, 2).flatten(2)) * F.silu(self.g_proj(query)))

    def forward(self, query, key, value):
        q, k, v = self.heads(query, key, value)
        n = torch.arange(q.shape[2], dtype=q.dtype, device=q.device)
        decay = (decays(self.n_heads, q)[:, None, None] ** (n[:, None] - n).abs()).tril()  # (heads, T, T)
        return self.finish(query, (q @ k.transpose(-1, -2) * decay) @ v)

    def step(self, query, key, value, state=None):
        """One frame (B, 1, d) each and the carried state (B, heads, d / heads, d / heads) -> (y, state)."""
        q, k, v = self.heads(query, key, value)
        update = k.transpose(-1, -2) @ v
        state = update if state is None else state * decays(self.n_heads, q)[:, None, None] + update
        return self.finish(query, q @ state), state


@macs_of(MultiScaleRetention)
def _(layer, x, y):
    """q kᵀ, and the decayed scores with v."""
    return 2 * len(x) * x.shape[1] ** 2 * layer.q_proj.in_features


class RetNetBlock(nn.Module):
    """x + dropout(linear(retention(q, k, v))), then x + FFN(norm(x)) of ratio 2; q and k of norm 1 over all d channels.

    `groups` of channels are normalised over the clip or each frame, as `norm` says."""

    def __init__(self, d_model, n_heads, dropout, groups=8, norm="clip"):
        super().__init__()
        if norm not in NORMS:
            raise KwsError(f"norm {norm!r} is not known; choose one of {', '.join(NORMS)}")
        self.norm1, self.norm2 = NORMS[norm](groups, d_model), NORMS[norm](groups, d_model)
        self.q, self.k, self.v = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.retention = MultiScaleRetention(d_model, n_heads)
        self.out, self.dropout = nn.Linear(d_model, d_model), nn.Dropout(dropout)
        wide, narrow = nn.Linear(d_model, 2 * d_model), nn.Linear(2 * d_model, d_model)
        self.ffn = nn.Sequential(wide, nn.SiLU(), nn.Dropout(dropout), narrow, nn.Dropout(dropout))

    def inputs(self, x):
        u = self.norm1(x)
        return F.normalize(self.q(u), dim=-1), F.normalize(self.k(u), dim=-1), self.v(u)

    def finish(self, x, y):
        x = x + self.dropout(self.out(y))
        return x + self.ffn(self.norm2(x))

    def forward(self, x):
        return self.finish(x, self.retention(*self.inputs(x)))

    def step(self, x, state=None):
        """One frame (B, 1, d) and the carried state -> (y, state), both norms over this frame: what forward gives at
        that frame in evaluation mode if norm is "frame", and what the paper timed as its recurrent form if "clip"."""
        y, state = self.retention.step(*self.inputs(x), state)
        return self.finish(x, y), state


@register("retnet", features="mel", label="RetNet-KWS", short="RetNet")
@register("retnet_as_run", features="mel", label="RetNet-KWS, as run", short="RetNet as run")
class RetNetKWS(SequenceKWS):
    """RetNet-KWS: the Mel front-end, 6 retention blocks with 8 heads; 1,626,692 parameters at 36 classes."""

    def __init__(self, n_classes=35, d_model=128, n_layers=6, n_heads=8, norm="clip"):
        rates = [max(0.02, 0.03 - 0.003 * i) for i in range(n_layers)]
        blocks = [RetNetBlock(d_model, n_heads, rate, norm=norm) for rate in rates]
        super().__init__(ConvFrontEnd(d_model), blocks, Head(d_model, n_classes))
