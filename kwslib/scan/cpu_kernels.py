"""The selective scan for processors, compiled by Numba: one fused pass forward, one backward.

Symbols and equations as in reference.py. A plain implementation writes exp(ΔA), ΔBu and every state h to memory, each
(batch, length, channels, state) large; here they live in scratch arrays of a block of channels that fit the core's
cache, as the paper's kernel keeps them in the GPU's SRAM (Section 3.3.2, Appendix D). Three ideas carry the file:

- Channels are the vector lanes. They are contiguous in layout "bld" and independent of each other, so every inner loop
  runs over a fixed WIDTH of them and LLVM turns it into vector code.
- exp is the cost. Numba reaches no vectorised exp without Intel's SVML, so cpu_math.py has a polynomial.
- Backward needs the states again. Forward keeps h at the start of every CHUNK of steps; backward goes through the
  chunks from the last to the first and recomputes the states of one at a time.

cpu.py compiles and calls the two teams at the end; what it passes to them is one record, `Work`."""

import ctypes

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kwslib.scan.cpu_math import LOG2E, ONE, STRICT, WIDTH, finish_back, prepare, sigmoid, step, step_back, step_kept

CHUNK = 32  # steps between two kept states
LINE = 64  # bytes of a cache line


def _int64(names):
    return [(name, ctypes.c_int64) for name in names.split()]


class Sequence(ctypes.Structure):
    """A tensor (batch, length, channels or state): its address, and the numbers from a clip, a step to the next."""

    _fields_ = _int64("address clip step")


class Work(ctypes.Structure):
    """One pass over a batch; what is not a Sequence is a number or a contiguous tensor's address, 0 if absent.

    A thread does tasks first, first + stride, … below `tasks`; where `thread_number` and `thread_count` are addresses
    of OpenMP's functions, these two say its first and its stride. Each task has `rows` rows of scratch memory."""

    _fields_ = [
        *_int64("tasks thread_number thread_count first stride clip_parts block_parts batch length channels state"),
        *((name, Sequence) for name in ("u", "delta", "z", "B", "C")),
        *_int64("A D bias initial softplus kept scratch rows"),
        *_int64("y last"),  # written forward; the rest backward, but for the first two, which are read
        *_int64("grad_y grad_last du ddelta dz dB dC dA dD dbias dinitial"),
    ]


RECORD = np.dtype(Work)


@intrinsic
def _pointer(context, address):
    """An address as a pointer to float32: tensors enter by address, so loops count no references."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def _prefetch_line(context, address, write):
    """Ask for the cache line at an address, to be read, or written (1): a hint, harmless for any address."""

    def generate(context, builder, signature, args):
        pointer, number = builder.inttoptr(args[0], ir.IntType(8).as_pointer()), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", (pointer.type,), kind)
        builder.call(prefetch, [pointer, number(write.literal_value), number(3), number(1)])  # near the core; data
        return context.get_dummy_value()

    if isinstance(write, types.IntegerLiteral):
        return types.void(types.int64, write), generate


@njit(**STRICT)
def _prefetch(address, offset):
    """The block of channels that starts `offset` numbers after `address` will be read soon."""
    if address != 0:
        for line in range(0, 4 * WIDTH, LINE):
            _prefetch_line(address + 4 * offset + line, 0)


@njit(**STRICT)
def _prefetch_step(sequence, clip, t, c):
    _prefetch(sequence.address, clip * sequence.clip + t * sequence.step + c)


@njit(**STRICT)
def _prefetch_store(address, offset):
    """The same of one that will be written. A store to a line that is far away holds up all stores after it."""
    if address != 0:
        for line in range(0, 4 * WIDTH, LINE):
            _prefetch_line(address + 4 * offset + line, 1)


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
def _load_step(row, sequence, clip, t, c, count):
    _load(row, sequence.address, clip * sequence.clip + t * sequence.step + c, count)


@njit(**STRICT)
def _state_row(sequence, clip, t, state):
    return _row(sequence.address, clip * sequence.clip + t * sequence.step, state)


@njit(**STRICT)
def _share(work, task):
    """A task's clips and blocks of channels: first clip, last + 1, first block, last + 1."""
    part, blocks = task // work.block_parts, (work.channels + WIDTH - 1) // WIDTH
    clips = part * work.batch // work.clip_parts, (part + 1) * work.batch // work.clip_parts
    part = task % work.block_parts
    return clips + (part * blocks // work.block_parts, (part + 1) * blocks // work.block_parts)


@njit(**STRICT)
def forward_task(work, task):
    """y and the last state of a task's clips and channels; the states that backward needs where there is `kept`.

    Clips come before blocks: a clip's rows are still in the cache when its next block of channels is read."""
    length, channels, state, softplus = work.length, work.channels, work.state, work.softplus != 0
    first_clip, end_clip, first_block, end_block = _share(work, task)
    mine, blocks = work.scratch + 4 * WIDTH * task * work.rows, end_block - first_block
    rows, h = _scratch(mine, 0, 6), _scratch(mine, 6, state)
    x, raw, dt, du, out, gate = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    fixed = _scratch(mine, 6 + state, 2 * blocks)  # by block: D, the bias of delta
    decays = _scratch(mine, 6 + state + 2 * blocks, blocks * state)
    for i in range(blocks):
        c = (first_block + i) * WIDTH
        width = min(WIDTH, channels - c)
        _load_states(decays[i * state : (i + 1) * state], work.A, c * state, width, state, LOG2E)
        _load(fixed[2 * i], work.D, c, width)
        _load(fixed[2 * i + 1], work.bias, c, width)
    for clip in range(first_clip, end_clip):
        for i in range(blocks):
            c = (first_block + i) * WIDTH
            width = min(WIDTH, channels - c)
            skip, shift, decay = fixed[2 * i], fixed[2 * i + 1], decays[i * state : (i + 1) * state]
            _load_states(h, work.initial, (clip * channels + c) * state, width, state, ONE)
            for t in range(length):
                if work.kept != 0 and t > 0 and t % CHUNK == 0:
                    row = clip * ((length - 1) // CHUNK) + t // CHUNK - 1
                    for n in range(state):
                        _store(h[n], work.kept, (row * state + n) * channels + c, width)
                _load_step(x, work.u, clip, t, c, width)
                _load_step(raw, work.delta, clip, t, c, width)
                _prefetch_step(work.u, clip, t + 1, c)
                _prefetch_step(work.delta, clip, t + 1, c)
                _prefetch_step(work.z, clip, t, c)
                _prefetch_store(work.y, (clip * length + t) * channels + c)
                prepare(x, raw, dt, du, out, skip, shift, softplus)
                step(h, decay, dt, du, _state_row(work.B, clip, t, state), _state_row(work.C, clip, t, state), out)
                if work.z.address != 0:
                    _load_step(gate, work.z, clip, t, c, width)
                    for j in range(WIDTH):
                        out[j] *= gate[j] * sigmoid(gate[j])
                _store(out, work.y, (clip * length + t) * channels + c, width)
            _store_states(h, work.last, (clip * channels + c) * state, width, state)


def scratch_rows(state, length, channels):
    """Rows of scratch memory for each task: forward, backward."""
    steps, blocks = min(length, CHUNK), (channels + WIDTH - 1) // WIDTH
    return 6 + state + blocks * (2 + state), 5 + state + blocks * (4 + 2 * state) + 4 * steps + (2 * steps + 1) * state


@njit(**STRICT)
def backward_task(work, task):
    """The same share of the gradients: the adjoint state dh runs from the last step to the first."""
    length, channels, state, softplus = work.length, work.channels, work.state, work.softplus != 0
    first_clip, end_clip, first_block, end_block = _share(work, task)
    steps, blocks = min(length, CHUNK), end_block - first_block
    mine = work.scratch + 4 * WIDTH * task * work.rows
    rows, dh = _scratch(mine, 0, 5), _scratch(mine, 5, state)
    du, out, gate, ddu, ddelta = rows[0], rows[1], rows[2], rows[3], rows[4]
    mine += 4 * WIDTH * (5 + state)
    fixed = _scratch(mine, 0, 4 * blocks)  # by block: D, the bias of delta; the sums of their gradients
    decays = _scratch(mine, 4 * blocks, blocks * state)
    slopes = _scratch(mine, (4 + state) * blocks, blocks * state)
    mine += 4 * WIDTH * blocks * (4 + 2 * state)
    inputs = _scratch(mine, 0, 4 * steps)  # by step: u, delta + bias, Δ, dL/dy before the gate
    past = _scratch(mine, 4 * steps, (2 * steps + 1) * state)
    a, h = past[: steps * state], past[steps * state :]  # exp(ΔA); h before each step and after the last
    slopes[:, :] = 0
    for i in range(blocks):
        c = (first_block + i) * WIDTH
        width = min(WIDTH, channels - c)
        _load_states(decays[i * state : (i + 1) * state], work.A, c * state, width, state, LOG2E)
        _load(fixed[4 * i], work.D, c, width)
        _load(fixed[4 * i + 1], work.bias, c, width)
        fixed[4 * i + 2 : 4 * i + 4] = 0
    for clip in range(first_clip, end_clip):
        for i in range(blocks):
            c = (first_block + i) * WIDTH
            width = min(WIDTH, channels - c)
            skip, shift, sum_skip, sum_shift = fixed[4 * i], fixed[4 * i + 1], fixed[4 * i + 2], fixed[4 * i + 3]
            decay, slope = decays[i * state : (i + 1) * state], slopes[i * state : (i + 1) * state]
            _load_states(dh, work.grad_last, (clip * channels + c) * state, width, state, ONE)
            chunks = (length - 1) // CHUNK
            for chunk in range(chunks, -1, -1):
                start = chunk * CHUNK
                count = min(CHUNK, length - start)
                if chunk == 0:
                    _load_states(h[:state], work.initial, (clip * channels + c) * state, width, state, ONE)
                else:
                    for n in range(state):
                        _load(h[n], work.kept, ((clip * chunks + chunk - 1) * state + n) * channels + c, width)
                for k in range(count):  # the chunk forward again
                    t = start + k
                    here = (clip * length + t) * channels + c
                    x, raw, dt, g = inputs[4 * k], inputs[4 * k + 1], inputs[4 * k + 2], inputs[4 * k + 3]
                    _load_step(x, work.u, clip, t, c, width)
                    _load_step(raw, work.delta, clip, t, c, width)
                    _load(g, work.grad_y, here, width)
                    _prefetch_step(work.u, clip, t + 1, c)
                    _prefetch_step(work.delta, clip, t + 1, c)
                    _prefetch(work.grad_y, here + channels)
                    _prefetch_step(work.z, clip, t, c)
                    _prefetch_store(work.dz, here)
                    prepare(x, raw, dt, du, out, skip, shift, softplus)
                    Bt, Ct = _state_row(work.B, clip, t, state), _state_row(work.C, clip, t, state)
                    now, after = k * state, (k + 1) * state
                    step_kept(h[now:after], h[after : after + state], a[now:after], decay, dt, du, Bt, Ct, out)
                    if work.z.address != 0:
                        _load_step(gate, work.z, clip, t, c, width)
                        for j in range(WIDTH):
                            s = sigmoid(gate[j])
                            out[j] *= g[j] * s * (ONE + gate[j] * (ONE - s))
                            g[j] *= gate[j] * s
                        _store(out, work.dz, here, width)
                for k in range(count - 1, -1, -1):
                    t = start + k
                    here = (clip * length + t) * channels + c
                    x, raw, dt, g = inputs[4 * k], inputs[4 * k + 1], inputs[4 * k + 2], inputs[4 * k + 3]
                    _prefetch_store(work.du, here)
                    _prefetch_store(work.ddelta, here)
                    for j in range(WIDTH):
                        du[j] = dt[j] * x[j]
                    ddu[:], ddelta[:] = 0, 0
                    Bt, Ct = _state_row(work.B, clip, t, state), _state_row(work.C, clip, t, state)
                    row = (((task % work.block_parts) * work.batch + clip) * length + t) * state
                    dBt, dCt = _row(work.dB, row, state), _row(work.dC, row, state)
                    now, after = k * state, (k + 1) * state
                    step_back(h[now:after], h[after : after + state], a[now:after], decay, dt, du, Bt, Ct, g, dh, ddu,
                              ddelta, slope, dBt, dCt, i > 0)  # fmt: skip
                    finish_back(x, raw, dt, g, skip, ddu, ddelta, sum_skip, sum_shift, softplus)
                    _store(ddu, work.du, here, width)
                    _store(ddelta, work.ddelta, here, width)
            _store_states(dh, work.dinitial, (clip * channels + c) * state, width, state)
    for i in range(blocks):
        c = (first_block + i) * WIDTH
        width, row = min(WIDTH, channels - c), (task // work.block_parts) * channels + c
        _store_states(slopes[i * state : (i + 1) * state], work.dA, row * state, width, state)
        _store(fixed[4 * i + 2], work.dD, row, width)
        _store(fixed[4 * i + 3], work.dbias, row, width)


@intrinsic
def _call(context, address):
    """What a C function without arguments returns, an int."""

    def generate(context, builder, signature, args):
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.call(builder.inttoptr(args[0], function), [])

    return types.int32(types.int64), generate


@njit(**STRICT)
def _mine(work):
    """This thread's tasks, as a range."""
    if work.thread_number != 0:
        return range(_call(work.thread_number), work.tasks, _call(work.thread_count))
    return range(work.first, work.tasks, work.stride)


def forward_team(address):
    """A thread's share of a forward pass: void(Work *) in C."""
    work = numba.carray(address, (1,), RECORD)[0]
    for task in _mine(work):
        forward_task(work, task)


def backward_team(address):
    """The same of a backward pass."""
    work = numba.carray(address, (1,), RECORD)[0]
    for task in _mine(work):
        backward_task(work, task)
