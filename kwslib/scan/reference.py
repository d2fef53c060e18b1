"""The selective scan: the recurrence at the heart of Mamba, and the choice of who computes it.

Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), Section 3 and Algorithm 2. For
every clip and every channel on its own, over time t:

    Δ_t = softplus(delta_t + delta_bias)               Algorithm 2, line 5: τ_Δ = softplus
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t             Equation 2a with the discretisation of Equation 4
    y_t = C_t · h_t + D u_t                            Equation 2b, and the skip path D
    out_t = y_t · SiLU(z_t)                            the gate of the block, Section 3.4, Figure 3

Exp(ΔA) is Equation 4's zero-order hold for A; for B its first-order form, Δ B, is used, as in the authors' own code.
"Selective" means that Δ, B and C are computed from the input.

    symbol      name here       shape ("bld"; "bdl" swaps the last two of a sequence)
    B, L, D, N  batch, length, channels, state: the sizes b, l, d, n below (Algorithm 2)
    x           u               (b, l, d)   input of the scan
    Δ           delta           (b, l, d)   step size, before bias and softplus
    A           A               (d, n)      real and negative: the decay of each state
    B           B               (b, l, n)   what the state takes from the input
    C           C               (b, l, n)   what the output reads from the state
    D           D               (d,)        skip connection
    s_Δ's bias  delta_bias      (d,)        Section 3.6: set so that Δ starts in 0.001 to 0.1
    (z)         z               (b, l, d)   the block's second branch, the gate
    h           initial_state   (b, d, n)   h before the first step; last_state is h after the last one

Names and meanings are those of `selective_scan_fn` in the authors' package mamba_ssm, for real A and time-dependent B
and C; where that is installed, its kernel is a backend, too. The plain loop is what all others are tested against."""

import os
from contextlib import contextmanager
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False,
    initial_state=None, layout="bdl", backend=None,
):  # fmt: skip
    """Run the scan; returns y, or (y, last_state) where `return_last_state` is set.

    layout "bdl" (mamba_ssm's): u, delta, z (batch, channels, length), B, C (batch, state, length); layout "bld" (no
    transposes beside the projections): u, delta, z (batch, length, channels), B, C (batch, length, state). A (channels,
    state); D, delta_bias (channels,); initial_state and last_state (batch, channels, state). y has the shape and dtype
    of u; the arithmetic and last_state are float32, or float64 where an input is float64.

    torch.jit.trace, both ONNX exporters (unrolled to the length of their example) and forward-mode derivatives get the
    plain loop, and so do derivatives of derivatives.

    backend: a name in BACKENDS; None for what `use_backend` says, else the fastest that fits. Raises ValueError on
    sizes that do not fit each other, an unknown layout, or a backend that cannot take these tensors."""
    if layout not in ("bdl", "bld"):
        raise ValueError(f"layout {layout!r} is not known; choose 'bdl' or 'bld'")
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state, layout)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    backend = _check_backend(backend) or _chosen
    if _plain_operations_wanted():
        backend = "reference"
    if backend is None:
        backend = next(name for name, (fits, _) in BACKENDS.items() if fits(tensors, False))
    elif not BACKENDS[backend][0](tensors, True):
        start = "" if initial_state is None else " from an initial_state"
        raise ValueError(f"scan backend {backend!r} cannot run {u.dtype} on {u.device}{start} here; use 'reference'")
    if layout == "bdl":
        u, delta, B, C = u.mT, delta.mT, B.mT, C.mT
        z = None if z is None else z.mT
    y, last_state = BACKENDS[backend][1](u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    y = y.mT if layout == "bdl" else y
    return (y, last_state) if return_last_state else y


@contextmanager
def use_backend(name):
    """Inside, every scan of this process whose call names no backend runs on `name` (None: the fastest that fits)."""
    global _chosen
    _chosen, before = _check_backend(name), _chosen
    try:
        yield
    finally:
        _chosen = before


def _plain_operations_wanted():
    """While a graph is made that cannot hold a kernel of ours, where its result would go in as a constant; and in
    forward-mode differentiation (torch.func.jvp, jacfwd, hessian), where its result would carry no tangent."""
    exporting = torch.jit.is_tracing() or torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    return exporting or forward_ad._current_level >= 0


def _check_backend(name):
    if name is not None and name not in BACKENDS:
        raise ValueError(f"scan backend {name!r} is not known; choose one of {', '.join(BACKENDS)}")
    return name


def reference_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus):
    """The recurrence step by step, layout "bld", any floating dtype, differentiable. -> (y, last_state)"""
    compute = torch.float64 if torch.float64 in (u.dtype, delta.dtype, A.dtype) else torch.float32
    x, delta, A, B, C = (t.to(compute) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(compute)
    if delta_softplus:
        delta = F.softplus(delta, threshold=20)
    h = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state.to(compute)
    ys = []
    for xt, dt, Bt, Ct in zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1)):
        decay = torch.exp(dt[:, :, None] * A)  # (b, d, n)
        h = decay * h + (dt * xt)[:, :, None] * Bt[:, None, :]
        ys.append((h * Ct[:, None, :]).sum(-1))
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + D.to(compute) * x
    if z is not None:
        y = y * F.silu(z.to(compute))
    return y.to(u.dtype), h


def _mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus):
    """The authors' CUDA kernel. Its gradients of B and C differ in their last bits from run to run."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    delta, B, C, z = (None if t is None else t.to(u.dtype).mT for t in (delta, B, C, z))  # as it demands
    A, D, delta_bias = (None if t is None else t.float().contiguous() for t in (A, D, delta_bias))
    y, last_state = selective_scan_fn(u.mT, delta, A, B, C, D, z, delta_bias, bool(delta_softplus), True)
    if last_state.requires_grad:
        last_state.register_hook(_refuse)
    return y.mT, last_state


def _refuse(gradient):
    """For a tensor's hook: mamba_ssm would take a gradient of its last state for zero without a word."""
    if gradient is not None:
        raise ValueError("scan backend 'mamba_ssm' has no gradient of the last state; use 'reference'")


_chosen = None  # the backend that use_backend set
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NUMBA, _TRITON = find_spec("numba") is not None, find_spec("triton") is not None
_MAMBA_SSM = find_spec("mamba_ssm") is not None and find_spec("selective_scan_cuda") is not None


def _cpu_scan(*arguments):
    from kwslib.scan.cpu import cpu_scan  # only here: importing numba takes a second

    return cpu_scan(*arguments)


def _triton_scan(*arguments):
    from kwslib.scan.triton import triton_scan

    return triton_scan(*arguments)


def _on(device, tensors):
    return all([t is None or t.device.type == device and t.dtype in _DTYPES for t in tensors])


def _fits_triton(tensors, by_name):
    interpreter = by_name and os.environ.get("TRITON_INTERPRET") == "1"  # slow: for tests
    return _TRITON and (_on("cuda", tensors) or interpreter and _on("cpu", tensors))


def _fits_mamba_ssm(tensors, by_name):
    u, A, initial_state = tensors[0], tensors[2], tensors[8]
    return _MAMBA_SSM and _on("cuda", tensors) and len(u) > 0 and A.shape[1] <= 256 and initial_state is None


# name: (does it take these tensors, by default or only by name?, function of reference_scan's arguments), fastest first
BACKENDS = {
    "cpu": (lambda tensors, by_name: _NUMBA and _on("cpu", tensors), _cpu_scan),
    "triton": (_fits_triton, _triton_scan),
    "mamba_ssm": (_fits_mamba_ssm, _mamba_ssm_scan),
    "reference": (lambda tensors, by_name: True, reference_scan),
}


def _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state, layout):
    names = "(batch, channels, length)" if layout == "bdl" else "(batch, length, channels)"
    given = f"u {tuple(u.shape)} {names} and A {tuple(A.shape)} (channels, state)"
    if u.ndim != 3 or A.ndim != 2 or u.shape[1] < 1 or u.shape[2] < 1 or A.shape[1] < 1:
        raise ValueError(f"selective_scan needs a step, a channel and a state; got {given}")
    batch, length, channels = u.shape if layout == "bld" else u.mT.shape
    state = A.shape[1]
    wide = (batch, length, state) if layout == "bld" else (batch, state, length)
    sizes = {"delta": u.shape, "z": u.shape, "A": (channels, state), "B": wide, "C": wide, "D": (channels,),
             "delta_bias": (channels,), "initial_state": (batch, channels, state)}  # fmt: skip
    for (name, size), t in zip(sizes.items(), (delta, z, A, B, C, D, delta_bias, initial_state)):
        if t is not None and t.shape != size:
            raise ValueError(f"selective_scan: {name} has shape {tuple(t.shape)}, but {given} call for {tuple(size)}")
