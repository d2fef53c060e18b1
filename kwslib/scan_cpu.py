"""The selective scan on processors: scan_kernels.py as one differentiable PyTorch operator.

The work is cut into as many tasks as PyTorch has threads, by clips, then by blocks of channels.
Where several tasks add to the same gradient each has a copy of its own, and the copies are summed
in order: results do not depend on timing. The tasks run without the GIL on a pool of Python
threads, which unlike OpenMP's can be made anew after a fork (DataLoader's workers) and can be
used from several threads at once.

Under torch.compile and torch.export the scan is the operator `kwslib::scan`; called directly it
goes around the operator's dispatch, which costs as much as the scan of one short clip.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.autograd.function import once_differentiable

from kwslib.scan_kernels import CHUNK, WIDTH, backward_task, forward_task, scratch_rows

SERIAL = 1 << 19  # batch x length x channels x state below which waking a thread costs more than it saves


def cpu_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
    """Arguments and result of scan.reference_scan; CPU tensors of float32, bfloat16 or float16.

    Everything is computed in float32. Differentiable once. Compiles (seconds) on the first call
    on a machine; Numba keeps the result beside this file or in the user's cache folder.
    """
    inputs = [t if t is None or t.dtype == torch.float32 else t.float()
              for t in (u, delta, A, B, C, D, z, delta_bias, initial_state)]  # fmt: skip
    train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if torch.compiler.is_compiling() or type(u) not in (torch.Tensor, torch.nn.Parameter):
        scan = torch.ops.kwslib.scan
    else:
        scan = _Scan.apply if train else _forward
    y, last_state, _ = scan(*inputs, bool(delta_softplus), train)
    return y.to(u.dtype), last_state


def _forward(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
    """-> y (b, l, d), last_state (b, d, n), and kept: h before each chunk but the first (b, chunks, n, d)."""
    y, last, kept = _forward_fake(u, delta, A, B, C, D, z, bias, initial, softplus, keep)
    tensors = _unit_stride(u, delta, A, B, C, D, z, bias, initial)
    _run(forward_task, *tensors, softplus, kept, (y, last))
    return y, last, kept


def _forward_fake(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
    (batch, length, channels), state = u.shape, A.shape[1]
    # Two more than needed, never touched: torch.export takes a size of 0 or 1 as a bound on the length.
    chunks = (length - 1) // CHUNK + 2 if keep else 0
    return (u.new_empty(batch, length, channels), u.new_empty(batch, channels, state),
            u.new_empty(batch, chunks, state, channels))  # fmt: skip


def _backward(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    """Gradients of the nine tensors; an empty one for each that is absent."""
    (batch, length, channels), state = u.shape, A.shape[1]
    clips, blocks = _parts(batch, length, channels, state)
    du, ddelta, dz, dinitial = (u.new_empty(0 if t is None else t.shape) for t in (u, delta, z, initial))
    dB, dC = u.new_empty(blocks, batch, length, state), u.new_empty(blocks, batch, length, state)
    dA, dD, dbias = (u.new_empty(clips, channels, k) for k in (state, 1, 1))
    tensors = _unit_stride(u, delta, A, B, C, D, z, bias, initial)
    grad_y = grad_y.contiguous()
    grad_last = None if grad_last is None else grad_last.contiguous()
    _run(backward_task, *tensors, softplus, kept,
         (grad_y, grad_last, du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial))  # fmt: skip
    dA, dB, dC, dD, dbias = (t[0] if len(t) == 1 else t.sum(0) for t in (dA, dB, dC, dD, dbias))
    dD = u.new_empty(0) if D is None else dD[:, 0]
    dbias = u.new_empty(0) if bias is None else dbias[:, 0]
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


def _backward_fake(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    return tuple(u.new_empty(0 if t is None else t.shape) for t in (u, delta, A, B, C, D, z, bias, initial))


def _save(ctx, inputs, output):
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_last, _, backward=None):
    *tensors, kept = ctx.saved_tensors
    grad_y = torch.zeros_like(tensors[0]) if grad_y is None else grad_y
    backward = backward or torch.ops.kwslib.scan_backward
    gradients = backward(*tensors, ctx.softplus, kept, grad_y, grad_last)
    return *(None if t is None else g for t, g in zip(tensors, gradients)), None, None


class _Scan(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return _gradients(ctx, *gradients, backward=_backward)


_INPUTS = ("Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, "
           "Tensor? initial, bool softplus")  # fmt: skip
_OPERATOR = torch.library.custom_op("kwslib::scan", _forward, mutates_args=(),
    schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)")  # fmt: skip
_OPERATOR.register_fake(_forward_fake)
_OPERATOR.register_autograd(_gradients, setup_context=_save)
torch.library.custom_op("kwslib::scan_backward", _backward, mutates_args=(),
    schema=f"({_INPUTS}, Tensor kept, Tensor grad_y, Tensor? grad_last) -> ({', '.join(9 * ['Tensor'])})",
).register_fake(_backward_fake)  # fmt: skip


def _unit_stride(u, delta, A, B, C, D, z, bias, initial):
    """Sequences need neighbouring channels (or states) side by side; all else must be contiguous."""
    u, delta, B, C, z = (t if t is None or t.stride(2) == 1 else t.contiguous() for t in (u, delta, B, C, z))
    A, D, bias, initial = (None if t is None else t.contiguous() for t in (A, D, bias, initial))
    return u, delta, A, B, C, D, z, bias, initial


def _parts(batch, length, channels, state):
    """How many parts the clips, and the blocks of channels, are cut into."""
    threads = torch.get_num_threads() if batch * length * channels * state > SERIAL else 1
    clips = max(1, min(threads, batch))
    return clips, min(threads // clips, (channels + WIDTH - 1) // WIDTH)


def _run(task, u, delta, A, B, C, D, z, bias, initial, softplus, kept, others):
    (batch, length, channels), state = u.shape, A.shape[1]
    parts = _parts(batch, length, channels, state)
    tasks = parts[0] * parts[1]
    count = scratch_rows(state, length)[task is backward_task]
    scratch = u.new_empty(tasks * count * WIDTH)
    sequences = map(_sequence, (u, delta, z, B, C))
    addresses = map(_address, (A, D, bias, initial))
    arguments = (parts, (batch, length, channels, state), *sequences, *addresses, softplus, _address(kept),
                 *map(_address, others), (scratch.data_ptr(), count))  # fmt: skip
    waiting = [_pool.submit(task, i, *arguments) for i in range(1, tasks)]
    task(0, *arguments)
    for future in waiting:
        future.result()


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()  # 0 for an empty tensor, too


def _sequence(tensor):
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _new_pool():
    global _pool
    _pool = ThreadPoolExecutor(os.cpu_count(), "scan")


_new_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool)  # the parent's threads do not exist in the child
