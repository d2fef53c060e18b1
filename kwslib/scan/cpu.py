"""The selective scan on processors: cpu_kernels.py as one differentiable PyTorch operator.

The work is cut into as many tasks as PyTorch has threads, by clips, then by blocks of channels. Where several tasks add
to the same gradient each has its own copy, and the copies are summed in order: results do not depend on timing. The
tasks run on PyTorch's own OpenMP threads: these spin for a while after every operation, and would compete with threads
of ours for the cores. Where that is impossible (another OpenMP, a forked child) Python threads run them."""

import ctypes
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import torch

from kwslib.scan.cpu_kernels import CHUNK, WIDTH, Work, backward_team, forward_team, scratch_rows
from kwslib.scan.cpu_math import STRICT
from kwslib.scan.operator import new_outputs, scan_operator, unit_stride

SERIAL = 1 << 17  # batch x length x channels x state below which waking a thread costs more than it saves


def cpu_scan(*arguments):
    """Arguments and result of reference_scan; CPU tensors of float32, bfloat16 or float16.

    Everything is computed in float32. Compiles (seconds) on the first call on a machine; Numba keeps the result beside
    this file or in the user's cache folder."""
    y, last_state = _scan(*(t.float() if isinstance(t, torch.Tensor) else t for t in arguments))
    return y.to(arguments[0].dtype), last_state


def _forward(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
    y, last, kept = new_outputs(u, A, keep, CHUNK)
    _run(False, unit_stride(u, delta, A, B, C, D, z, bias, initial), softplus, kept, y=y, last=last)
    return y, last, kept


def _backward(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    (batch, length, channels), state = u.shape, A.shape[1]
    clips, blocks = _parts(batch, length, channels, state)
    du, ddelta, dz, dinitial = (u.new_empty(0 if t is None else t.shape) for t in (u, delta, z, initial))
    dB, dC = (u.new_empty(blocks, batch, length, state) for _ in range(2))
    dA, dD, dbias = (u.new_empty(clips, channels, *n) for n in ((state,), (), ()))
    grad_y, grad_last = grad_y.contiguous(), None if grad_last is None else grad_last.contiguous()
    tensors = unit_stride(u, delta, A, B, C, D, z, bias, initial)
    _run(True, tensors, softplus, kept, du=du, ddelta=ddelta, dz=dz, dB=dB, dC=dC, dA=dA, dD=dD, dbias=dbias,
         dinitial=dinitial, grad_y=grad_y, grad_last=grad_last)  # fmt: skip
    dA, dB, dC, dD, dbias = (
        u.new_empty(0) if t is None else parts[0] if len(parts) == 1 else parts.sum(0)
        for t, parts in zip((A, B, C, D, bias), (dA, dB, dC, dD, dbias))
    )
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
    tasks, rows = clips * blocks, scratch_rows(state, length, channels)[backward]
    scratch = u.new_empty(tasks * rows * WIDTH)
    others |= {"A": A, "D": D, "bias": bias, "initial": initial, "kept": kept, "scratch": scratch}
    fields = {name: 0 if t is None else t.data_ptr() for name, t in others.items()}  # 0 for an empty tensor, too
    for name, t in {"u": u, "delta": delta, "z": z, "B": B, "C": C}.items():
        fields[name] = (0, 0, 0) if t is None else (t.data_ptr(), *t.stride()[:2])
    work = Work(tasks=tasks, stride=1, clip_parts=clips, block_parts=blocks, rows=rows, softplus=softplus, batch=batch,
                length=length, channels=channels, state=state, **fields)  # fmt: skip
    run = team(backward)
    if tasks == 1:
        run(ctypes.addressof(work))
    elif _openmp and os.getpid() == _process:  # the threads of its parent do not exist in a forked child
        parallel, work.thread_number, work.thread_count = _openmp
        parallel(run, ctypes.addressof(work), tasks, 0)
    else:
        shares = [Work.from_buffer_copy(work) for _ in range(tasks)]
        for i, share in enumerate(shares):
            share.first, share.stride = i, tasks
        list(_pool(os.getpid()).map(lambda share: run(ctypes.addressof(share)), shares))


def team(backward):
    """The compiled C function void(Work *) that does a thread's share of a pass, called by address."""
    with _compiling:  # a second thread that came too early would load it into Numba's engine: see _as_cached
        return _team(backward)


@functools.cache
def _team(backward):
    function = numba.cfunc("void(voidptr)", cache=True, **STRICT)(backward_team if backward else forward_team)
    return function.ctypes if function.cache_hits else _as_cached(function)


def _as_cached(function):
    """A function that this process has compiled, as the next one will load it from the cache, so that both find the
    same bits: in an engine of its own, it calls its own copies of its parts. In Numba's it would call those that were
    compiled before it, each by itself, which add in another order."""
    library = function._library
    again = type(library.codegen)(library.name).unserialize_library(library.serialize_using_object_code())
    loaded = type(function.ctypes)(again.get_pointer_to_function(function._wrapper_name))
    loaded.library = again  # which holds the code
    return loaded


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


_openmp, _process, _compiling = _find_openmp(), os.getpid(), threading.Lock()
_pool = functools.cache(lambda process: ThreadPoolExecutor(os.cpu_count(), "scan"))
