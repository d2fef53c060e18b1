"""The selective scan on processors: scan_kernels.py as one differentiable PyTorch operator.

The work is cut into as many tasks as PyTorch has threads, by clips, then by blocks of channels.
Where several tasks add to the same gradient each has a copy of its own, and the copies are summed
in order: results do not depend on timing. The tasks run on PyTorch's own OpenMP threads: these spin
for a while after every operation, and would hold the cores against threads of ours. Where that
is impossible (another OpenMP, a forked child) Python threads run them.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kwslib.scan.cpu_kernels import CHUNK, WIDTH, scratch_rows, team
from kwslib.scan.operator import new_outputs, scan_operator, unit_stride

SERIAL = 1 << 19  # batch x length x channels x state below which waking a thread costs more than it saves


def cpu_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
    """Arguments and result of scan.reference_scan; CPU tensors of float32, bfloat16 or float16.

    Everything is computed in float32. Differentiable once. Compiles (seconds) on the first call
    on a machine; Numba keeps the result beside this file or in the user's cache folder.
    """
    inputs = [
        t if t is None or t.dtype == torch.float32 else t.float()
        for t in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    ]
    y, last_state = _scan(inputs, delta_softplus)
    return y.to(u.dtype), last_state


def _forward(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
    y, last, kept = new_outputs(u, A, keep, CHUNK)
    tensors = unit_stride(u, delta, A, B, C, D, z, bias, initial)
    _run(False, *tensors, softplus, kept, (y, last))
    return y, last, kept


def _backward(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    (batch, length, channels), state = u.shape, A.shape[1]
    clips, blocks = _parts(batch, length, channels, state)
    du, ddelta, dz, dinitial = (u.new_empty(0 if t is None else t.shape) for t in (u, delta, z, initial))
    dB, dC = u.new_empty(blocks, batch, length, state), u.new_empty(blocks, batch, length, state)
    dA, dD, dbias = (u.new_empty(clips, channels, k) for k in (state, 1, 1))
    tensors = unit_stride(u, delta, A, B, C, D, z, bias, initial)
    grad_y = grad_y.contiguous()
    grad_last = None if grad_last is None else grad_last.contiguous()
    _run(True, *tensors, softplus, kept, (grad_y, grad_last, du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial))
    dA, dB, dC, dD, dbias = (t[0] if len(t) == 1 else t.sum(0) for t in (dA, dB, dC, dD, dbias))
    dD = u.new_empty(0) if D is None else dD[:, 0]
    dbias = u.new_empty(0) if bias is None else dbias[:, 0]
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


_scan = scan_operator("scan", _forward, _backward, CHUNK)


def _parts(batch, length, channels, state):
    """How many parts the clips, and the blocks of channels, are cut into."""
    threads = torch.get_num_threads() if batch * length * channels * state > SERIAL else 1
    clips = max(1, min(threads, batch))
    return clips, min(threads // clips, (channels + WIDTH - 1) // WIDTH)


def _run(backward, u, delta, A, B, C, D, z, bias, initial, softplus, kept, others):
    (batch, length, channels), state = u.shape, A.shape[1]
    parts = _parts(batch, length, channels, state)
    tasks = parts[0] * parts[1]
    count = scratch_rows(state, length)[backward]
    scratch = u.new_empty(tasks * count * WIDTH)
    sequences = [n for t in (u, delta, z, B, C) for n in _sequence(t)]
    addresses = map(_address, (A, D, bias, initial))
    numbers = array(
        "q",
        (
            tasks,
            0,
            0,
            0,
            1,
            *parts,
            batch,
            length,
            channels,
            state,
            *sequences,
            *addresses,
            softplus,
            _address(kept),
            *map(_address, others),
            scratch.data_ptr(),
            count,
        ),
    )
    run, place = team(backward), numbers.buffer_info()[0]
    if tasks == 1:
        run(place)
    elif _openmp:
        numbers[1:3] = _openmp[1]
        _openmp[0](run, place, tasks, 0)
    else:
        copies = [numbers[:] for _ in range(tasks)]
        for i, copy in enumerate(copies):
            copy[3:5] = array("q", (i, tasks))
        list(_pool.map(lambda copy: run(copy.buffer_info()[0]), copies))


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()  # 0 for an empty tensor, too


def _sequence(tensor):
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _find_openmp():
    """GOMP_parallel of the OpenMP library that PyTorch brings, and what tells a thread's number and their count."""
    for path in sorted(Path(torch.__file__).with_name("lib").glob("libgomp*")):
        library = ctypes.CDLL(str(path))
        library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        library.GOMP_parallel.restype = None
        return library.GOMP_parallel, array(
            "q",
            (ctypes.cast(f, ctypes.c_void_p).value for f in (library.omp_get_thread_num, library.omp_get_num_threads)),
        )
    return None


def _in_child():
    """The parent's threads do not exist in a forked child (DataLoader's workers)."""
    global _openmp, _pool
    _openmp, _pool = None, ThreadPoolExecutor(os.cpu_count(), "scan")


_openmp, _pool = _find_openmp(), ThreadPoolExecutor(os.cpu_count(), "scan")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
