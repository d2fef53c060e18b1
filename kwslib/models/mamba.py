"""The Mamba mixer (Gu & Dao 2023, section 3.4 and figure 3), with the parameter names and shapes of `mamba_ssm.Mamba`.

    x ──in_proj──┬─ x ─ causal conv ─ SiLU ─┬─ x_proj ─ (dt, B, C), dt ─ dt_proj ─ Δ ─┐
                 │                          └──────────────── u ──────────────────────┴─ scan ─ out_proj
                 └─ z ──────────────────────────────────────────────────────────────────┘ (gate)

Symbols: b batch, l length, d = d_inner channels, n = d_state. State dicts move to and from `mamba_ssm.Mamba` (version
1, its defaults) without a change."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.io import KwsError
from kwslib.models.cost import macs_of
from kwslib.scan import BACKENDS, selective_scan


class Mamba(nn.Module):
    """Selective state-space mixer: (b, l, d_model) -> (b, l, d_model), causal, cost linear in l.

    scan_backend: a name in `kwslib.scan.BACKENDS`, or None for the one in use."""

    def __init__(
        self, d_model, d_state=16, d_conv=4, expand=2, dt_rank="auto", dt_min=0.001, dt_max=0.1, dt_init_floor=1e-4,
        scan_backend=None,
    ):  # fmt: skip
        super().__init__()
        if scan_backend is not None and scan_backend not in BACKENDS:
            raise KwsError(f"scan_backend {scan_backend!r} is not known; choose one of {', '.join(BACKENDS)}")
        self.scan_backend = scan_backend
        self.d_state, self.d_conv, self.d_inner = d_state, d_conv, expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

        # Δ starts log-uniform in [dt_min, dt_max] (section 3.6): the bias is the inverse softplus of it
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.rand(self.d_inner) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
        dt = dt.clamp(min=dt_init_floor)
        self.dt_proj.bias.data.copy_(dt + torch.log(-torch.expm1(-dt)))
        # S4D-real (section 3.6): A = -(1, 2, …, n) in every channel, kept as a logarithm so that it stays negative
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.A_log.no_decay = self.D.no_decay = self.dt_proj.bias.no_decay = True

    @classmethod
    def from_module(cls, module, scan_backend=None):
        """A Mamba with copies of the weights of `mamba_ssm.Mamba`, mambapy's MambaBlock or transformers' MambaMixer.

        Their sizes, dtype and device stay. Raises KwsError for a module that computes something else: a weight is
        missing, left over or of another shape (Mamba-2, biased projections), or there are layers in between."""
        theirs, name = module.state_dict(), type(module).__name__
        layers = {k for k, v in module.named_children() if not (k == "act" and type(v).__name__.startswith("SiLU"))}
        needs = {"A_log": 2, "in_proj.weight": 2, "conv1d.weight": 3, "dt_proj.weight": 2}
        if layers != {"in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"} or any(
            k not in theirs or theirs[k].ndim != dims for k, dims in needs.items()
        ):
            raise KwsError(f"{name} is not a plain Mamba mixer: it has {', '.join(sorted(layers)) or 'no layers'}")
        (inner, state), (_, size), (_, rank) = (theirs[k].shape for k in ("A_log", "in_proj.weight", "dt_proj.weight"))
        made = cls(size, state, theirs["conv1d.weight"].shape[2], inner // size, rank, scan_backend=scan_backend)
        ours = dict(made.named_parameters())
        for key in sorted(ours | theirs):
            there, here = (tuple(side[key].shape) if key in side else "absent" for side in (theirs, ours))
            if there != here:
                raise KwsError(f"{name}.{key} is {there} where a Mamba of its size has {here}: its weights do not fit")
            ours[key].data = theirs[key].detach().clone()
        return made

    def forward(self, x, state=None, return_state=False):
        """(b, l, d_model) -> the same, or (y, state) where `return_state` is set.

        state: what an earlier call returned, to go on where it ended, in chunks of any length; None at the start.
        It is a pair: the convolution's last inputs (b, d_conv - 1, d) and the scan's state (b, d, n)."""
        past, h = (None, None) if state is None else state
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, past = self.convolve(u, past)
        dt, B, C = self.x_proj(u := F.silu(u)).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, self.dt_proj.weight)  # its bias goes into the scan, before the softplus
        A, bias = -torch.exp(self.A_log.float()), self.dt_proj.bias.float()
        y, h = selective_scan(u, delta, A, B, C, self.D.float(), z, bias, True, True, h, "bld", self.scan_backend)
        y = self.out_proj(y)
        return (y, (past, h)) if return_state else y

    def step(self, x, state=None):
        """One frame (b, d_model) and the carried state -> (y (b, d_model), state): constant time and memory a frame.

        Gives what `forward` gives at that frame. `mamba_ssm` keeps d_conv inputs where d_conv - 1 are enough."""
        y, state = self(x[:, None], state, return_state=True)
        return y[:, 0], state

    def convolve(self, u, past=None):
        """Depthwise causal convolution over time as d_conv shifted products: (b, l, d) -> (b, l, d), last inputs.

        At a kernel of four this beats conv1d on a CPU and needs no transpose to (b, d, l). past: the inputs before,
        (b, d_conv - 1, d), or None for zeros."""
        length = u.shape[1]
        padded = F.pad(u, (0, 0, self.d_conv - 1, 0)) if past is None else torch.cat([past.to(u.dtype), u], 1)
        weight, y = (t.to(u.dtype) for t in (self.conv1d.weight, self.conv1d.bias))  # (d, 1, d_conv), (d,)
        for k in range(self.d_conv):
            y = y + padded[:, k : k + length] * weight[:, 0, k]
        return y, padded[:, length:]


@macs_of(Mamba)
def _(mixer, x, y):
    """What is not a layer of its own: convolution, dt_proj, and the scan's Δ·A, decay, input and read-out."""
    return x.shape[0] * x.shape[1] * mixer.d_inner * (mixer.d_conv + mixer.dt_rank + 4 * mixer.d_state)


class MambaBlock(nn.Module):
    """Pre-norm residual block: x + dropout(mixer(LayerNorm(x))); `mixer` holds keyword arguments of Mamba."""

    def __init__(self, d_model, dropout, **mixer):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mixer = Mamba(d_model, **mixer)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, state=None, return_state=False):
        """(b, l, d_model) -> the same; with the mixer's state carried as `Mamba.forward` carries it."""
        y = self.mixer(self.norm(x), state, return_state)
        return (x + self.dropout(y[0]), y[1]) if return_state else x + self.dropout(y)
