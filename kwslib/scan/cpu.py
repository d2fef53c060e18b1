"""The selective scan on processors: cpu_kernels.py as one differentiable PyTorch operator.

The work is cut into as many tasks as PyTorch has threads, by clips, then by blocks of channels.
Where several tasks add to the same gradient each has its own copy, and the copies are summed in order:
results do not depend on timing. The tasks run on PyTorch's own OpenMP threads: these spin for a while
after every operation, and would compete with threads of ours for the cores. Where that is impossible
(another OpenMP, a forked child) Python threads run them.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kwslib.scan.cpu_kernels import CHUNK, WIDTH, Work, scratch_rows, team
from kwslib.scan.operator import new_outputs, scan_operator, unit_stride

SERIAL = 1 << 19  # batch x length x channels x state below which waking a thread costs more than it saves


def cpu_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
    """Arguments and result of reference_scan; CPU tensors of float32, bfloat16 or float16.

    Everything is computed in float32. Differentiable once. Compiles (seconds) on the first call
    on a machine; Numba keeps the result beside this file or in the user's cache folder.
    """
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    tensors = [t if t is None or t.dtype == torch.float32 else t.float() for t in given]
    y, last_state = _scan(tensors, delta_softplus)
    return y.to(u.dtype), last_state


def _forward(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
    y, last, kept = new_outputs(u, A, keep, CHUNK)
    tensors = unit_stride(u, delta, A, B, C, D, z, bias, initial)
    _run(False, tensors, softplus, kept, y=y, last=last)
    return y, last, kept


def _backward(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    (batch, length, channels), state = u.shape, A.shape[1]
    clips, blocks = _parts(batch, length, channels, state)
    du, ddelta, dz, dinitial = (u.new_empty(0 if t is None else t.shape) for t in (u, delta, z, initial))
    dB, dC = (u.new_empty(blocks, batch, length, state) for _ in range(2))
    dA, dD, dbias = (u.new_empty(clips, channels, n) for n in (state, 1, 1))
    grads = {"du": du, "ddelta": ddelta, "dz": dz, "dB": dB, "dC": dC, "dA": dA, "dD": dD, "dbias": dbias}
    grad_last = None if grad_last is None else grad_last.contiguous()
    grads |= {"dinitial": dinitial, "grad_y": grad_y.contiguous(), "grad_last": grad_last}
    _run(True, unit_stride(u, delta, A, B, C, D, z, bias, initial), softplus, kept, **grads)
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


def _run(backward, tensors, softplus, kept, **others):
    u, delta, A, B, C, D, z, bias, initial = tensors
    (batch, length, channels), state = u.shape, A.shape[1]
    clips, blocks = _parts(batch, length, channels, state)
    tasks, rows = clips * blocks, scratch_rows(state, length)[backward]
    scratch = u.new_empty(tasks * rows * WIDTH)
    others |= {"A": A, "D": D, "bias": bias, "initial": initial, "kept": kept, "scratch": scratch}
    work = Work(
        tasks=tasks, stride=1, clip_parts=clips, block_parts=blocks, rows=rows, softplus=softplus,
        batch=batch, length=length, channels=channels, state=state,
        u=_sequence(u), delta=_sequence(delta), z=_sequence(z), B=_sequence(B), C=_sequence(C),
        **{name: _address(t) for name, t in others.items()},
    )  # fmt: skip
    run = team(backward)
    if tasks == 1:
        run(ctypes.addressof(work))
    elif _openmp:
        parallel, work.thread_number, work.thread_count = _openmp
        parallel(run, ctypes.addressof(work), tasks, 0)
    else:
        shares = [Work.from_buffer_copy(work) for _ in range(tasks)]
        for i, share in enumerate(shares):
            share.first, share.stride = i, tasks
        list(_pool.map(lambda share: run(ctypes.addressof(share)), shares))


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()  # 0 for an empty tensor, too


def _sequence(tensor):
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _find_openmp():
    """GOMP_parallel of the OpenMP library that PyTorch brings, and the addresses of two functions: this thread's
    number, and how many threads there are."""
    for path in sorted(Path(torch.__file__).with_name("lib").glob("libgomp*")):
        library = ctypes.CDLL(str(path))
        library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        library.GOMP_parallel.restype = None
        asks = library.omp_get_thread_num, library.omp_get_num_threads
        return library.GOMP_parallel, *(ctypes.cast(f, ctypes.c_void_p).value for f in asks)
    return None


def _in_child():
    """The parent's threads do not exist in a forked child (DataLoader's workers)."""
    global _openmp, _pool
    _openmp, _pool = None, ThreadPoolExecutor(os.cpu_count(), "scan")


_openmp, _pool = _find_openmp(), ThreadPoolExecutor(os.cpu_count(), "scan")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
