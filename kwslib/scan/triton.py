"""The selective scan on GPUs: one fused pass forward and one backward, written in Triton.

Symbols and equations as in reference.py; the arithmetic is float32 whatever the inputs' dtypes, which are read and
written as they are. What shapes the kernels is that sequences are short (31 to 101 frames) and there are many of them:
time stays sequential and clips and channels give the parallelism.

- A program is one warp and takes one clip and a block of channels; nothing is shared, so no barrier waits for another
  warp. The state stays in registers, 16 numbers for each lane.
- Forward spreads the channels over the lanes (a lane holds all states of its channel): sums over the state need no
  exchange between lanes, and the exponentials' unit sets the pace. Backward sums over channels, too, for B and C. It
  spreads 8 channels x 4 states over the lanes and gives each the rest of both: a third of the exchanges.
- The steps of a chunk are unrolled, loads first and stores last, as a load cannot pass a store.
- Forward keeps h at the start of every CHUNK of steps; backward recomputes a chunk's states into registers. Long
  sequences work, but gain nothing from the GPU's width; they need N/CHUNK floats kept for every number in u.

Gradients that several programs add to are written apart and summed in order: the same inputs give the same bits."""

import torch
import triton
import triton.language as tl

from kwslib.scan.operator import new_outputs, scan_operator, unit_stride

CHUNK = 4  # steps between two kept states, unrolled: with twice as many, backward spills its registers
WIDTH, STATES = 32, 16  # channels of a program: WIDTH, or fewer to have STATES numbers in each of 32 lanes
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
# Not specialised: a new length needs no new kernel. And the compiler must not see that per_state is 1: it would lay out
# registers for the few loads along the state, not for the recurrence.
NUMBERS = [f"{name}_{stride}" for name in ("u", "delta", "B", "C", "z") for stride in ("clip", "step")]
NUMBERS += ["batch", "length", "channels", "per_channel", "per_state"]


def _forward(u, delta, A, B, C, D, z, bias, initial, softplus, keep):
    y, last, kept = outputs = new_outputs(u, A, keep, CHUNK)
    tensors = unit_stride(u, delta, A, B, C, D, z, bias, initial)
    numbers, sizes, programs = _arguments(*tensors)
    if programs:
        given = (*tensors, y, last, kept if keep else None, *numbers, softplus)
        with torch.cuda.device_of(u):
            _forward_kernel[(programs,)](*given, **sizes, ALIGNED=_alignment(*tensors[3:5]), num_warps=1)
    return outputs


def _backward(u, delta, A, B, C, D, z, bias, initial, softplus, kept, grad_y, grad_last):
    batch, channels, state = u.shape[0], *A.shape
    du, ddelta, dz, dinitial = (u.new_empty(0) if t is None else t.new_empty(t.shape) for t in (u, delta, z, initial))
    tensors = unit_stride(u, delta, A, B, C, D, z, bias, initial)
    numbers, sizes, programs = _arguments(*tensors)
    blocks = triton.cdiv(channels, sizes["WIDTH"])
    by_block = [u.new_empty(blocks, *t.shape, dtype=torch.float32) for t in (B, C)]
    by_clip = [u.new_empty(batch, channels, *n, dtype=torch.float32) for n in ((state,), (), ())]
    if programs:
        grad_last = None if grad_last is None else grad_last.contiguous()
        found = (du, ddelta, *by_block, dz, *by_clip, dinitial)
        given = (*tensors, kept, grad_y.contiguous(), grad_last, *found, *numbers, softplus)
        with torch.cuda.device_of(u):
            _backward_kernel[(programs,)](*given, **sizes, num_warps=1)
    dB, dC, dA, dD, dbias = (
        u.new_empty(0) if t is None else parts.sum(0).to(t.dtype)
        for parts, t in zip(by_block + by_clip, (B, C, A, D, bias))
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


# Arguments and result of reference_scan; tensors of float32, bfloat16 or float16 on one GPU.
# Compiles (seconds) for new dtypes, state size or absent arguments; Triton keeps that in the user's cache folder.
triton_scan = scan_operator("scan_triton", _forward, _backward, CHUNK)


def _arguments(u, delta, A, B, C, D, z, bias, initial):
    """-> what both kernels take beside tensors: run-time numbers, compile-time sizes; and how many programs."""
    (batch, length, channels), state = u.shape, A.shape[1]
    strides = [n for t in (u, delta, B, C, z) for n in ((0, 0) if t is None else t.stride()[:2])]
    padded = triton.next_power_of_2(state)
    width = max(8, min(WIDTH, 32 * STATES // padded))
    sizes = {"STATE": state, "PADDED": padded, "WIDTH": width, "CHUNK": CHUNK}
    return (*strides, batch, length, channels, state, 1), sizes, batch * triton.cdiv(channels, width)


def _alignment(*tensors):
    """The power of two of bytes, up to 16, that every step's first element is aligned to."""
    bits = 16
    for t in tensors:
        bits |= t.data_ptr() | t.stride(0) * t.element_size() | t.stride(1) * t.element_size()
    return bits & -bits


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-LOG2E * x))


@triton.jit
def _softplus(x):
    """log(1 + e**x) as in cpu_math.py; the GPU's logarithm is imprecise near 1, where most Δ begin."""
    v = tl.exp2(-LOG2E * tl.abs(x))
    s = v / (2.0 + v)
    q = s * s
    p = (((0.12144787 * q + 0.10715368) * q + 0.14308299) * q + 0.19999444) * q + 0.33333338
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * p)


@triton.jit
def _load(x, place, mask):
    """Numbers of a tensor that may be absent, in float32; zeros where it or `mask` is."""
    return tl.zeros(place.shape, tl.float32) if x is None else tl.load(x + place, mask, 0.0).to(tl.float32)


@triton.jit
def _load_chunk(x, x_clip, x_step, clip, t, length, c, inside, CHUNK: tl.constexpr):
    """A sequence's channels `c` in the steps from t on, zeros behind the last; nothing of an absent one."""
    rows = ()
    if x is not None:
        x += clip * x_clip + t * x_step
        left = (length - t).to(tl.int32)
        for k in tl.static_range(CHUNK):
            rows = rows + (tl.load(x + k * x_step + c, inside & (k < left), 0.0),)
    return rows


@triton.jit(do_not_specialize=NUMBERS)
def _forward_kernel(
    u, delta, A, B, C, D, z, bias, initial, y, last, kept,
    u_clip, u_step, delta_clip, delta_step, B_clip, B_step, C_clip, C_step, z_clip, z_step,
    batch, length, channels, per_channel, per_state,
    SOFTPLUS: tl.constexpr, STATE: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, WIDTH)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, PADDED)
    inside = c < channels
    real = n < STATE
    states = inside[:, None] & real[None, :]
    place = c[:, None] * per_channel + n[None, :] * per_state  # in A, and in h of the first clip
    mine = clip * channels * per_channel + place
    decay = _load(A, place, states) * LOG2E  # exp(ΔA) = 2**(Δ decay)
    h = _load(initial, mine, states)
    skip, shift = _load(D, c, inside), _load(bias, c, inside)
    t = tl.full((), 0, tl.int64)
    us = _load_chunk(u, u_clip, u_step, clip, t, length, c, inside, CHUNK)
    deltas = _load_chunk(delta, delta_clip, delta_step, clip, t, length, c, inside, CHUNK)
    gates = _load_chunk(z, z_clip, z_step, clip, t, length, c, inside, CHUNK)
    while t < length:  # `range` of a number known at run time fails in Triton's interpreter with NumPy 2.4
        # The next chunk is on its way while this one is computed.
        next_us = _load_chunk(u, u_clip, u_step, clip, t + CHUNK, length, c, inside, CHUNK)
        next_deltas = _load_chunk(delta, delta_clip, delta_step, clip, t + CHUNK, length, c, inside, CHUNK)
        next_gates = _load_chunk(z, z_clip, z_step, clip, t + CHUNK, length, c, inside, CHUNK)
        if kept is not None:
            row = clip * ((length - 1) // CHUNK) + t // CHUNK - 1
            tl.store(kept + (row * STATE + n[None, :]) * channels + c[:, None], h, states & (t > 0))
        left = (length - t).to(tl.int32)
        B_chunk, C_chunk = B + clip * B_clip + t * B_step, C + clip * C_clip + t * C_step
        outs = ()
        for k in tl.static_range(CHUNK):
            x = us[k].to(tl.float32)
            raw = deltas[k].to(tl.float32) + shift
            dt = _softplus(raw) if SOFTPLUS else raw
            dt = tl.where(k < left, dt, 0.0)  # behind the end h stays as it is
            step = tl.minimum(k, left - 1)
            Bt = tl.load(tl.multiple_of(B_chunk + step * B_step + n, ALIGNED), real, 0.0)
            Ct = tl.load(tl.multiple_of(C_chunk + step * C_step + n, ALIGNED), real, 0.0)
            h = tl.exp2(dt[:, None] * decay) * h + (dt * x)[:, None] * Bt.to(tl.float32)[None, :]
            out = tl.sum(h * Ct.to(tl.float32)[None, :], 1) + skip * x
            if z is not None:
                gate = gates[k].to(tl.float32)
                out = out * gate * _sigmoid(gate)
            outs = outs + (out,)
        here = (clip * length + t) * channels + c
        for k in tl.static_range(CHUNK):
            tl.store(y + here + k * channels, outs[k], inside & (k < left))
        t += CHUNK
        us, deltas, gates = next_us, next_deltas, next_gates
    tl.store(last + mine, h, states)


@triton.jit(do_not_specialize=NUMBERS)
def _backward_kernel(
    u, delta, A, B, C, D, z, bias, initial, kept, grad_y, grad_last, du, ddelta, dB, dC, dz, dA, dD, dbias, dinitial,
    u_clip, u_step, delta_clip, delta_step, B_clip, B_step, C_clip, C_step, z_clip, z_step,
    batch, length, channels, per_channel, per_state,
    SOFTPLUS: tl.constexpr, STATE: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The adjoint state dh runs from the last step to the first. Axes: 8 channels, states, more channels."""
    blocks = tl.cdiv(channels, WIDTH)
    block = tl.program_id(0) % blocks
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    c = block * WIDTH + tl.arange(0, 8)[:, None] + 8 * tl.arange(0, WIDTH // 8)[None, :]
    n = tl.arange(0, PADDED)
    inside = c < channels
    real = n < STATE
    states = inside[:, None, :] & real[None, :, None]
    place = c[:, None, :] * per_channel + n[None, :, None] * per_state
    mine = clip * channels * per_channel + place
    decay = _load(A, place, states) * LOG2E
    dh = _load(grad_last, mine, states)
    skip, shift = _load(D, c, inside), _load(bias, c, inside)
    slope = tl.zeros(place.shape, tl.float32)
    sum_skip, sum_shift = tl.zeros(c.shape, tl.float32), tl.zeros(c.shape, tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    t = (chunks - 1).to(tl.int64) * CHUNK
    while t >= 0:
        if t > 0:
            row = clip * (chunks - 1) + t // CHUNK - 1
            h = tl.load(kept + (row * STATE + n[None, :, None]) * channels + c[:, None, :], states, 0.0)
        else:
            h = _load(initial, mine, states)
        us = _load_chunk(u, u_clip, u_step, clip, t, length, c, inside, CHUNK)
        deltas = _load_chunk(delta, delta_clip, delta_step, clip, t, length, c, inside, CHUNK)
        grads = _load_chunk(grad_y, length * channels, channels, clip, t, length, c, inside, CHUNK)
        gates = _load_chunk(z, z_clip, z_step, clip, t, length, c, inside, CHUNK)
        left = (length - t).to(tl.int32)
        here = (clip * length + t) * channels + c
        there = ((block * batch + clip) * length + t) * STATE + n
        B_chunk = B + clip * B_clip + t * B_step + n
        C_chunk = C + clip * C_clip + t * C_step + n
        hs = (h,)  # before each step and after the last
        decays, rows, dzs = (), (), ()
        for k in tl.static_range(CHUNK):  # the chunk forward again
            x = us[k].to(tl.float32)
            raw = deltas[k].to(tl.float32) + shift
            g = grads[k].to(tl.float32)
            dt = _softplus(raw) if SOFTPLUS else raw
            dt = tl.where(k < left, dt, 0.0)
            Bt = tl.load(B_chunk + k * B_step, real & (k < left), 0.0).to(tl.float32)
            a = tl.exp2(dt[:, None, :] * decay)
            h = a * h + (dt * x)[:, None, :] * Bt[None, :, None]
            if z is not None:
                Ct = tl.load(C_chunk + k * C_step, real & (k < left), 0.0).to(tl.float32)
                out = tl.sum(h * Ct[None, :, None], 1) + skip * x
                gate = gates[k].to(tl.float32)
                s = _sigmoid(gate)
                dzs = dzs + (g * out * s * (1.0 + gate * (1.0 - s)),)
                g = g * gate * s
            hs = hs + (h,)
            decays = decays + (a,)
            rows = rows + ((x, raw, dt, g),)
        if z is not None:
            for k in tl.static_range(CHUNK):
                tl.store(dz + here + k * channels, dzs[k], inside & (k < left))
        for k in tl.static_range(CHUNK - 1, -1, -1):
            x, raw, dt, g = rows[k]
            now = real & (k < left)
            Bt = tl.load(B_chunk + k * B_step, now, 0.0).to(tl.float32)
            Ct = tl.load(C_chunk + k * C_step, now, 0.0).to(tl.float32)
            dh += g[:, None, :] * Ct[None, :, None]
            tl.store(dC + there + k * STATE, tl.sum(tl.sum(hs[k + 1] * g[:, None, :], 2), 0), now)
            tl.store(dB + there + k * STATE, tl.sum(tl.sum(dh * (dt * x)[:, None, :], 2), 0), now)
            ddu = tl.sum(dh * Bt[None, :, None], 1)
            dh = dh * decays[k]
            d = dh * hs[k]  # dL/d(ΔA)
            slope += d * dt[:, None, :]
            draw = tl.sum(d * decay, 1) * LN2 + ddu * x
            draw = draw * _sigmoid(raw) if SOFTPLUS else draw
            draw = tl.where(k < left, draw, 0.0)
            sum_skip += g * x
            sum_shift += draw
            tl.store(du + here + k * channels, ddu * dt + g * skip, inside & (k < left))
            tl.store(ddelta + here + k * channels, draw, inside & (k < left))
        t -= CHUNK
    tl.store(dA + mine, slope, states)
    tl.store(dD + clip * channels + c, sum_skip, inside)
    tl.store(dbias + clip * channels + c, sum_shift, inside)
    if initial is not None:
        tl.store(dinitial + mine, dh, states)
