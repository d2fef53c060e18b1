"""The selective scan for processors, compiled by Numba: one fused pass forward, one backward.

Symbols and equations as in scan.py. A plain implementation writes exp(ΔA), ΔBu and every state
h to memory, each (batch, length, channels, state) large; here they live in scratch arrays of a
block of channels that fit the core's cache, as the paper's kernel keeps them in the GPU's SRAM
(Section 3.3.2, Appendix D). Three ideas carry the file:

- Channels are the vector lanes. They are contiguous in layout "bld" and independent of each
  other, so every inner loop runs over a fixed WIDTH of them and LLVM turns it into vector code.
- exp is the cost. Numba reaches no vectorised exp without Intel's SVML, so scan_math.py has a polynomial.
- Backward needs the states again. Forward keeps h at the start of every CHUNK of steps; backward
  goes through the chunks from the last to the first and recomputes the states of one at a time.

scan_cpu.py allocates memory, cuts the work into tasks and makes an operator of the two teams at the end.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from kwslib.scan.cpu_math import LN2, LOG2E, ONE, STRICT, ZERO, exp2, log1pexp, sigmoid

WIDTH = 64  # channels of a block: every scratch row is this long, padded with zeros
CHUNK = 32  # steps between two kept states
SUMS = {"fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}  # where sums may be reordered


class _NoAlias(Compiler):
    """Promises LLVM that a function's arrays do not overlap: without that it leaves loops unvectorised."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.state.flags.noalias = True


LANES = SUMS | {"pipeline_class": _NoAlias}  # for loops over the WIDTH channels of several rows


@njit(pipeline_class=_NoAlias, **STRICT)
def _prepare(u, raw, dt, du, out, skip, shift, softplus):
    """From rows of u and delta (`raw`, the bias `shift` is added to it): Δ, Δu and the skip path D u."""
    for j in range(WIDTH):
        raw[j] += shift[j]
        dt[j] = raw[j]
    if softplus:
        for j in range(WIDTH):
            dt[j] = log1pexp(raw[j])
    for j in range(WIDTH):
        du[j] = dt[j] * u[j]
        out[j] = skip[j] * u[j]


@njit(**LANES)
def _step(h, decay, dt, du, b, c, out):
    """One step of one state, read out into `out`. `decay` is A log2(e): exp(ΔA) = 2**(Δ decay)."""
    for j in range(WIDTH):
        h[j] = exp2(dt[j] * decay[j]) * h[j] + du[j] * b
        out[j] += h[j] * c


@njit(**LANES)
def _step_kept(h, next_h, a, decay, dt, du, b, c, out):
    """The same, keeping exp(ΔA) in `a` and both states for `_step_back`."""
    for j in range(WIDTH):
        a[j] = exp2(dt[j] * decay[j])
        next_h[j] = a[j] * h[j] + du[j] * b
        out[j] += next_h[j] * c


@njit(**LANES)
def _step_back(h, next_h, a, decay, dt, du, b, c, g, dh, ddu, ddecay, slope):
    """Gradients through one step from g = dL/dy and dh; returns those of b and c (sums over channels)."""
    db, dc = ZERO, ZERO
    for j in range(WIDTH):
        d = dh[j] + g[j] * c
        dc += g[j] * next_h[j]
        db += d * du[j]
        ddu[j] += d * b
        d *= a[j]
        dh[j] = d
        d *= h[j]  # dL/d(ΔA)
        ddecay[j] += d * decay[j]
        slope[j] += d * dt[j]
    return db, dc


@njit(**LANES)
def _finish_back(u, raw, dt, g, skip, ddu, ddelta, sum_skip, sum_shift, softplus):
    """Gradients of u and delta in place of dL/d(Δu), in `ddu`, and the sum of dL/d(ΔA) decay, in `ddelta`."""
    for j in range(WIDTH):
        ddelta[j] = ddelta[j] * LN2 + ddu[j] * u[j]
        ddu[j] = ddu[j] * dt[j] + g[j] * skip[j]
        sum_skip[j] += g[j] * u[j]
    if softplus:
        for j in range(WIDTH):
            ddelta[j] *= sigmoid(raw[j])
    for j in range(WIDTH):
        sum_shift[j] += ddelta[j]


@intrinsic
def _pointer(context, address):
    """An address as a pointer to float32: tensors enter by address, so loops count no references."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@njit(**STRICT)
def _row(address, offset, count):
    """`count` numbers in a row, starting `offset` numbers after `address`."""
    return numba.carray(_pointer(address + 4 * offset), (count,))


@njit(**STRICT)
def _scratch(address, first, count):
    """Rows first .. first + count of a task's scratch memory."""
    return numba.carray(_pointer(address + 4 * WIDTH * first), (count, WIDTH))


@njit(**STRICT)
def _load(row, address, offset, count):
    """Copy `count` numbers into a scratch row, zeros behind; only zeros for an absent tensor (address 0)."""
    source = _row(address, offset, count)
    count = 0 if address == 0 else count
    for j in range(count):
        row[j] = source[j]
    for j in range(count, WIDTH):
        row[j] = 0


@njit(**STRICT)
def _store(row, address, offset, count):
    target = _row(address, offset, count)
    for j in range(count):
        target[j] = row[j]


@njit(**STRICT)
def _load_states(h, address, offset, width, state, factor):
    """factor times h[n, j] from a (channels, state) tensor; zeros where it or a channel is absent."""
    h[:] = 0
    if address != 0:
        source = _row(address, offset, width * state)
        for j in range(width):
            for n in range(state):
                h[n, j] = source[j * state + n] * factor


@njit(**STRICT)
def _store_states(h, address, offset, width, state):
    if address != 0:
        target = _row(address, offset, width * state)
        for j in range(width):
            for n in range(state):
                target[j * state + n] = h[n, j]


@njit(**STRICT)
def _share(task, parts, batch, channels):
    """This task's clips and blocks of channels: first clip, last + 1, first block, last + 1."""
    clip, block, blocks = task // parts[1], task % parts[1], (channels + WIDTH - 1) // WIDTH
    return (
        clip * batch // parts[0],
        (clip + 1) * batch // parts[0],
        block * blocks // parts[1],
        (block + 1) * blocks // parts[1],
    )


@njit(**STRICT)
def forward_task(task, parts, sizes, u, delta, z, B, C, A, D, bias, initial, softplus, kept, y, last, scratch):
    """Sequences come as (address, batch stride, step stride), the rest as addresses of contiguous tensors."""
    batch, length, channels, state = sizes
    first_clip, end_clip, first_block, end_block = _share(task, parts, batch, channels)
    mine = scratch[0] + 4 * WIDTH * task * scratch[1]  # scratch: address and rows for each task
    rows, h, decay = _scratch(mine, 0, 8), _scratch(mine, 8, state), _scratch(mine, 8 + state, state)
    x, raw, dt, du = rows[0], rows[1], rows[2], rows[3]
    out, gate, skip, shift = rows[4], rows[5], rows[6], rows[7]
    for block in range(first_block, end_block):
        c = block * WIDTH
        width = min(WIDTH, channels - c)
        _load_states(decay, A, c * state, width, state, LOG2E)
        _load(skip, D, c, width)
        _load(shift, bias, c, width)
        for clip in range(first_clip, end_clip):
            _load_states(h, initial, (clip * channels + c) * state, width, state, ONE)
            for t in range(length):
                if kept != 0 and t > 0 and t % CHUNK == 0:
                    row = clip * ((length - 1) // CHUNK) + t // CHUNK - 1
                    for n in range(state):
                        _store(h[n], kept, (row * state + n) * channels + c, width)
                _load(x, u[0], clip * u[1] + t * u[2] + c, width)
                _load(raw, delta[0], clip * delta[1] + t * delta[2] + c, width)
                _prepare(x, raw, dt, du, out, skip, shift, softplus)
                Bt = _row(B[0], clip * B[1] + t * B[2], state)
                Ct = _row(C[0], clip * C[1] + t * C[2], state)
                for n in range(state):
                    _step(h[n], decay[n], dt, du, Bt[n], Ct[n], out)
                if z[0] != 0:
                    _load(gate, z[0], clip * z[1] + t * z[2] + c, width)
                    for j in range(WIDTH):
                        out[j] *= gate[j] * sigmoid(gate[j])
                _store(out, y, (clip * length + t) * channels + c, width)
            _store_states(h, last, (clip * channels + c) * state, width, state)


def scratch_rows(state, length):
    """Rows of scratch memory for each task: forward, backward."""
    steps = min(length, CHUNK)
    return 8 + 2 * state, 9 + 3 * state + 4 * steps + (2 * steps + 1) * state


@njit(**STRICT)
def backward_task(
    task,
    parts,
    sizes,
    u,
    delta,
    z,
    B,
    C,
    A,
    D,
    bias,
    initial,
    softplus,
    kept,
    g_y,
    g_last,
    du_,
    ddelta_,
    dz_,
    dB,
    dC,
    dA,
    dD,
    dbias,
    dinitial,
    scratch,
):
    """The same share of the gradients: the adjoint state dh runs from the last step to the first."""
    batch, length, channels, state = sizes
    first_clip, end_clip, first_block, end_block = _share(task, parts, batch, channels)
    steps = min(length, CHUNK)
    mine = scratch[0] + 4 * WIDTH * task * scratch[1]
    rows, states = _scratch(mine, 0, 9), _scratch(mine, 9, 3 * state)
    skip, shift, sum_skip, sum_shift, du = rows[0], rows[1], rows[2], rows[3], rows[4]
    out, gate, ddu, ddelta = rows[5], rows[6], rows[7], rows[8]
    decay, dh, slope = states[:state], states[state : 2 * state], states[2 * state :]
    inputs = _scratch(mine, 9 + 3 * state, 4 * steps)  # by step: u, delta + bias, Δ, dL/dy before the gate
    past = _scratch(mine, 9 + 3 * state + 4 * steps, (2 * steps + 1) * state)
    a, h = past[: steps * state], past[steps * state :]  # exp(ΔA); h before each step and after the last
    for block in range(first_block, end_block):
        c = block * WIDTH
        width = min(WIDTH, channels - c)
        _load_states(decay, A, c * state, width, state, LOG2E)
        _load(skip, D, c, width)
        _load(shift, bias, c, width)
        sum_skip[:], sum_shift[:], slope[:, :] = ZERO, ZERO, ZERO
        for clip in range(first_clip, end_clip):
            _load_states(dh, g_last, (clip * channels + c) * state, width, state, ONE)
            chunks = (length - 1) // CHUNK
            for chunk in range(chunks, -1, -1):
                start = chunk * CHUNK
                count = min(CHUNK, length - start)
                if chunk == 0:
                    _load_states(h[:state], initial, (clip * channels + c) * state, width, state, ONE)
                else:
                    for n in range(state):
                        _load(h[n], kept, ((clip * chunks + chunk - 1) * state + n) * channels + c, width)
                for k in range(count):  # the chunk forward again
                    t = start + k
                    here = (clip * length + t) * channels + c
                    x, raw, dt, g = inputs[4 * k], inputs[4 * k + 1], inputs[4 * k + 2], inputs[4 * k + 3]
                    _load(x, u[0], clip * u[1] + t * u[2] + c, width)
                    _load(raw, delta[0], clip * delta[1] + t * delta[2] + c, width)
                    _load(g, g_y, here, width)
                    _prepare(x, raw, dt, du, out, skip, shift, softplus)
                    Bt = _row(B[0], clip * B[1] + t * B[2], state)
                    Ct = _row(C[0], clip * C[1] + t * C[2], state)
                    for n in range(state):
                        i = k * state + n
                        _step_kept(h[i], h[i + state], a[i], decay[n], dt, du, Bt[n], Ct[n], out)
                    if z[0] != 0:
                        _load(gate, z[0], clip * z[1] + t * z[2] + c, width)
                        for j in range(WIDTH):
                            s = sigmoid(gate[j])
                            out[j] *= g[j] * s * (ONE + gate[j] * (ONE - s))
                            g[j] *= gate[j] * s
                        _store(out, dz_, here, width)
                for k in range(count - 1, -1, -1):
                    t = start + k
                    here = (clip * length + t) * channels + c
                    x, raw, dt, g = inputs[4 * k], inputs[4 * k + 1], inputs[4 * k + 2], inputs[4 * k + 3]
                    for j in range(WIDTH):
                        du[j] = dt[j] * x[j]
                    ddu[:], ddelta[:] = ZERO, ZERO
                    Bt = _row(B[0], clip * B[1] + t * B[2], state)
                    Ct = _row(C[0], clip * C[1] + t * C[2], state)
                    row = (((task % parts[1]) * batch + clip) * length + t) * state
                    dBt, dCt = _row(dB, row, state), _row(dC, row, state)
                    for n in range(state):
                        i = k * state + n
                        db, dc = _step_back(
                            h[i], h[i + state], a[i], decay[n], dt, du, Bt[n], Ct[n], g, dh[n], ddu, ddelta, slope[n]
                        )
                        dBt[n] = db if block == first_block else dBt[n] + db
                        dCt[n] = dc if block == first_block else dCt[n] + dc
                    _finish_back(x, raw, dt, g, skip, ddu, ddelta, sum_skip, sum_shift, softplus)
                    _store(ddu, du_, here, width)
                    _store(ddelta, ddelta_, here, width)
            _store_states(dh, dinitial, (clip * channels + c) * state, width, state)
        row = (task // parts[1]) * channels + c
        _store_states(slope, dA, row * state, width, state)
        _store(sum_skip, dD, row, width)
        _store(sum_shift, dbias, row, width)


@intrinsic
def _call(context, address):
    """What a C function without arguments returns, an int."""

    def generate(context, builder, signature, args):
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.call(builder.inttoptr(args[0], function), [])

    return types.int32(types.int64), generate


@njit(**STRICT)
def _mine(n):
    """This thread's tasks, as a range. n[:5]: their number; two functions for this thread's number and how many
    there are (OpenMP's), or 0 and the two numbers themselves."""
    if n[1] != 0:
        return range(_call(n[1]), n[0], _call(n[2]))
    return range(n[3], n[0], n[4])


@njit(**STRICT)
def _arguments(n):
    """What both tasks begin with, from numbers in a row."""
    return (
        (n[5], n[6]),
        (n[7], n[8], n[9], n[10]),
        (n[11], n[12], n[13]),
        (n[14], n[15], n[16]),
        (n[17], n[18], n[19]),
        (n[20], n[21], n[22]),
        (n[23], n[24], n[25]),
        n[26],
        n[27],
        n[28],
        n[29],
        n[30] != 0,
        n[31],
    )


def _forward_team(address):
    n = numba.carray(address, (36,), np.int64)
    for task in _mine(n):
        forward_task(task, *_arguments(n), n[32], n[33], (n[34], n[35]))


def _backward_team(address):
    n = numba.carray(address, (45,), np.int64)
    for task in _mine(n):
        backward_task(
            task,
            *_arguments(n),
            n[32],
            n[33],
            n[34],
            n[35],
            n[36],
            n[37],
            n[38],
            n[39],
            n[40],
            n[41],
            n[42],
            (n[43], n[44]),
        )


@functools.cache
def team(backward):
    """The compiled C function void(int64 *numbers) that does a thread's share of a pass, called by address."""
    return numba.cfunc("void(voidptr)", cache=True, **STRICT)(_backward_team if backward else _forward_team).ctypes
