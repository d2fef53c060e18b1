"""The arithmetic of the scan for processors, in float32 for Numba: exp, sigmoid, softplus; then rows of channels.

The scalar functions are free of branches, so that loops over a row become vector code.

Numba caches the compiled kernels beside cpu_kernels.py and checks that file alone to see whether they are up to date:
after a change here, touch it."""

import numpy as np
from numba import njit
from numba.core.compiler import Compiler

LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
LN2_HI, LN2_LO = np.float32(0.693145751953125), np.float32(1.428606765330187e-06)  # LN2 in two parts
ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 to an integer, kept in its low bits
WIDTH = 64  # channels of a block: every scratch row is this long, padded with zeros
ZERO, ONE = np.float32(0), np.float32(1)


class _NoAlias(Compiler):
    """Promises LLVM that a function's arrays do not overlap: without that it leaves loops unvectorised."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.state.flags.noalias = True


# Flags of compiled functions. All let multiply-add fuse; none assumes away NaN or infinity; division by zero gives
# infinity, as in NumPy. LANES is for loops over the channels of several rows. SUMS lets sums be reordered, too, which
# would undo the ROUND trick: where that is written out, SUMS is forbidden.
STRICT = {"fastmath": {"contract"}, "error_model": "numpy"}
LANES = STRICT | {"pipeline_class": _NoAlias}
SUMS = LANES | {"fastmath": {"contract", "reassoc", "nsz"}}


@njit(**STRICT)
def _exp2_parts(k, f):
    """2**(k + f), where k = an integer + ROUND and |f| <= 0.5; the minimax polynomial's error is 2e-9."""
    p = np.float32(1.53533610e-04) * f + np.float32(1.33988752e-03)
    p = (p * f + np.float32(9.61843737e-03)) * f + np.float32(5.55033247e-02)
    p = (p * f + np.float32(2.40226479e-01)) * f + np.float32(6.93147203e-01)
    p = p * f + ONE
    power = np.int32((np.float32(k).view(np.int32) << 23) + 0x3F800000)  # k moves to the exponent's bits
    return p * power.view(np.float32)


@njit(**STRICT)
def exp2(x):
    """2**x in float32: 0 below -126.5, infinity above 127.5, NaN for NaN."""
    x = np.float32(-127) if x < np.float32(-127) else x
    x = np.float32(128) if x > np.float32(128) else x
    k = x + ROUND
    return _exp2_parts(k, x - (k - ROUND))


@njit(**STRICT)
def exp(x):
    """e**x in float32: 0 below -87.7, infinity above 88.3, NaN for NaN."""
    x = np.float32(-88) if x < np.float32(-88) else x
    x = np.float32(88.5) if x > np.float32(88.5) else x
    k = x * LOG2E + ROUND
    n = k - ROUND
    return _exp2_parts(k, ((x - n * LN2_HI) - n * LN2_LO) * LOG2E)


@njit(**STRICT)
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@njit(**STRICT)
def log1pexp(x):
    """log(1 + e**x) = max(x, 0) + log1p(v), v = e**-|x|; log1p(v) = 2 artanh(s), s = v / (2 + v) <= 1/3."""
    v = exp(-abs(x))
    s = v / (np.float32(2) + v)
    q = s * s
    p = np.float32(0.12144787) * q + np.float32(0.10715368)
    p = (p * q + np.float32(0.14308299)) * q + np.float32(0.19999444)
    p = p * q + np.float32(0.33333338)
    return (x if x > 0 else np.float32(0)) + np.float32(2) * (s + s * q * p)


@njit(**LANES)
def prepare(u, raw, dt, du, out, skip, shift, softplus):
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


@njit(**SUMS)
def step(h, decay, dt, du, b, c, out):
    """One step of all states h (state, WIDTH), read out into `out`. `decay` is A log2(e): exp(ΔA) = 2**(Δ decay)."""
    for n in range(len(h)):
        bn, cn = b[n], c[n]
        for j in range(WIDTH):
            h[n, j] = exp2(dt[j] * decay[n, j]) * h[n, j] + du[j] * bn
            out[j] += h[n, j] * cn


@njit(**SUMS)
def step_kept(h, next_h, a, decay, dt, du, b, c, out):
    """The same, keeping exp(ΔA) in `a` and both states for `step_back`."""
    for n in range(len(h)):
        bn, cn = b[n], c[n]
        for j in range(WIDTH):
            a[n, j] = exp2(dt[j] * decay[n, j])
            next_h[n, j] = a[n, j] * h[n, j] + du[j] * bn
            out[j] += next_h[n, j] * cn


@njit(**SUMS)
def step_back(h, next_h, a, decay, dt, du, b, c, g, dh, ddu, ddecay, slope, db, dc, add):
    """Gradients through one step from g = dL/dy and dh. Those of b and c, sums over channels, are written to `db` and
    `dc`, or added to what is there."""
    for n in range(len(h)):
        bn, cn, sum_b, sum_c = b[n], c[n], ZERO, ZERO
        for j in range(WIDTH):
            d = dh[n, j] + g[j] * cn
            sum_c += g[j] * next_h[n, j]
            sum_b += d * du[j]
            ddu[j] += d * bn
            d *= a[n, j]
            dh[n, j] = d
            d *= h[n, j]  # dL/d(ΔA)
            ddecay[j] += d * decay[n, j]
            slope[n, j] += d * dt[j]
        db[n] = db[n] + sum_b if add else sum_b
        dc[n] = dc[n] + sum_c if add else sum_c


@njit(**SUMS)
def finish_back(u, raw, dt, g, skip, ddu, ddelta, sum_skip, sum_shift, softplus):
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
