"""What the fused scans have in common: a forward and a backward pass made one differentiable operator.

Under torch.compile and torch.export a scan is the operator `kwslib::<name>`; called directly it
goes around the operator's dispatch, which costs as much as the scan of one short clip.
"""

from functools import partial

import torch
from torch.autograd.function import once_differentiable

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, "
    "Tensor? initial, bool softplus"
)


def scan_operator(name, forward_pass, backward_pass, chunk):
    """Register `kwslib::name` and `kwslib::name_backward`; returns a function of their nine tensors and
    `softplus`, which gives y and last_state and is differentiable once.

    forward_pass(nine tensors, softplus, keep) returns new_outputs(u, A, keep, chunk), filled in.
    backward_pass(nine tensors, softplus, kept, grad_y, grad_last or None) returns the gradients of the nine
    tensors, each contiguous and of its tensor's shape and dtype; an empty one for each that is absent.
    """

    class Scan(torch.autograd.Function):
        forward = staticmethod(forward_pass)
        setup_context = staticmethod(_save)

        @staticmethod
        @once_differentiable
        def backward(ctx, *gradients):
            return _gradients(ctx, *gradients, backward=backward_pass)

    def forward_fake(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
        return new_outputs(u, A, keep, chunk)

    def scan(tensors, softplus):
        train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        if torch.compiler.is_compiling() or type(tensors[0]) not in (torch.Tensor, torch.nn.Parameter):
            run = registered
        else:
            run = Scan.apply if train else forward_pass
        return run(*tensors, bool(softplus), train)[:2]

    operator = torch.library.custom_op(
        f"kwslib::{name}", forward_pass, mutates_args=(), schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)"
    )
    operator.register_fake(forward_fake)
    torch.library.custom_op(
        f"kwslib::{name}_backward",
        backward_pass,
        mutates_args=(),
        schema=f"({_INPUTS}, Tensor kept, Tensor grad_y, Tensor? grad_last) -> ({', '.join(9 * ['Tensor'])})",
    ).register_fake(_backward_fake)
    registered, registered_backward = (getattr(torch.ops.kwslib, name + end) for end in ("", "_backward"))
    operator.register_autograd(partial(_gradients, backward=registered_backward), setup_context=_save)
    return scan


def new_outputs(u, A, keep, chunk):
    """-> y (b, l, d), last_state (b, d, n), and kept: h before each chunk but the first (b, chunks, n, d)."""
    (batch, length, channels), state = u.shape, A.shape[1]
    # Two more than needed, never touched: torch.export takes a size of 0 or 1 as a bound on the length.
    chunks = (length - 1) // chunk + 2 if keep else 0
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, channels, state, dtype=torch.float32),
        u.new_empty(batch, chunks, state, channels, dtype=torch.float32),
    )


def unit_stride(u, delta, A, B, C, D, z, bias, initial):
    """Sequences need neighbouring channels (or states) side by side; all else must be contiguous."""
    u, delta, B, C, z = (t if t is None or t.stride(2) == 1 else t.contiguous() for t in (u, delta, B, C, z))
    A, D, bias, initial = (None if t is None else t.contiguous() for t in (A, D, bias, initial))
    return u, delta, A, B, C, D, z, bias, initial


def _backward_fake(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    tensors = (u, delta, A, B, C, D, z, bias, initial)
    return tuple(u.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _save(ctx, inputs, output):
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_last, _, backward):
    *tensors, kept = ctx.saved_tensors
    grad_y = torch.zeros_like(tensors[0]) if grad_y is None else grad_y
    gradients = backward(*tensors, ctx.softplus, kept, grad_y, grad_last)
    return *(None if t is None else g for t, g in zip(tensors, gradients)), None, None
