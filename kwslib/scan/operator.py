"""What the fused scans have in common: a forward and a backward pass made one differentiable operator.

Under torch.compile and torch.export a scan is the operator `kwslib::<name>`; called directly it goes around the
operator's dispatch, which costs as much as the scan of one short clip."""

from functools import partial

import torch
from torch.autograd.function import once_differentiable

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? initial"


def scan_operator(name, forward_pass, backward_pass, chunk):
    """-> a function like reference_scan, differentiable once; registers `kwslib::name` and `kwslib::name_backward`.

    forward_pass(nine tensors, softplus, keep) returns new_outputs(u, A, keep, chunk), filled in. backward_pass(nine
    tensors, softplus, kept, grad_y, grad_last or None) returns the gradients of the nine tensors, each contiguous and
    of its tensor's shape and dtype; an empty one for each that is absent."""

    class Scan(torch.autograd.Function):
        forward = staticmethod(forward_pass)
        setup_context = staticmethod(_save)

        @staticmethod
        @once_differentiable
        def backward(ctx, *gradients):
            return _gradients(ctx, *gradients, backward=backward_pass)

    def scan(*arguments):
        *tensors, softplus = arguments
        train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        plain = type(tensors[0]) in (torch.Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
        run = operators[0] if not plain else Scan.apply if train else forward_pass
        return run(*tensors, bool(softplus), train)[:2]

    def operator(end, function, fake, more, results):
        schema = f"({_INPUTS}, bool softplus, {more}) -> ({', '.join(results * ['Tensor'])})"
        made = torch.library.custom_op(f"kwslib::{name}{end}", function, mutates_args=(), schema=schema)
        made.register_fake(fake)
        return made

    forward = operator("", forward_pass, lambda u, _, A, *more: new_outputs(u, A, more[-1], chunk), "bool keep", 3)
    operator("_backward", backward_pass, _backward_fake, "Tensor kept, Tensor grad_y, Tensor? grad_last", 9)
    operators = [getattr(torch.ops.kwslib, name + end) for end in ("", "_backward")]
    forward.register_autograd(partial(_gradients, backward=operators[1]), setup_context=_save)
    return scan


def new_outputs(u, A, keep, chunk):
    """-> y (b, l, d), last_state (b, d, n), and kept: h before each chunk but the first (b, chunks, n, d)."""
    (batch, length, channels), state = u.shape, A.shape[1]
    # Two more than needed, never touched: torch.export takes a size of 0 or 1 as a bound on the length.
    chunks = (length - 1) // chunk + 2 if keep else 0
    last, kept = (batch, channels, state), (batch, chunks, state, channels)
    return u.new_empty(u.shape), *(u.new_empty(shape, dtype=torch.float32) for shape in (last, kept))


def unit_stride(u, delta, A, B, C, D, z, bias, initial):
    """Sequences need neighbouring channels (or states) side by side; all else must be contiguous."""
    u, delta, B, C, z = (t if t is None or t.stride(2) == 1 else t.contiguous() for t in (u, delta, B, C, z))
    A, D, bias, initial = (None if t is None else t.contiguous() for t in (A, D, bias, initial))
    return u, delta, A, B, C, D, z, bias, initial


def _backward_fake(u, *others):
    return tuple(u.new_empty(0) if t is None else t.new_empty(t.shape) for t in (u, *others[:8]))


def _save(ctx, inputs, output):
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_last, _, backward):
    *tensors, kept = ctx.saved_tensors
    grad_y = torch.zeros_like(tensors[0]) if grad_y is None else grad_y
    gradients = backward(*tensors, ctx.softplus, kept, grad_y, grad_last)
    return *(None if t is None else g for t, g in zip(tensors, gradients)), None, None
