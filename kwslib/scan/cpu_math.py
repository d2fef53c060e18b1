"""exp, sigmoid and softplus in float32 for Numba, free of branches, so that loops over them become vector code.

Numba keeps compiled kernels beside scan_kernels.py, and looks at that file alone to tell whether they are still good:
after a change here, touch it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
LN2_HI, LN2_LO = np.float32(0.693145751953125), np.float32(1.428606765330187e-06)  # LN2 in two parts
ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 to an integer, kept in its low bits
ZERO, ONE = np.float32(0), np.float32(1)
# The flags let multiply-add fuse and sums be reordered. `reassoc` would undo the ROUND trick: only where it
# is absent may that be used. None assumes away NaN or infinity. Division by zero gives infinity, as in NumPy.
STRICT = {"fastmath": {"contract"}, "error_model": "numpy"}


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
