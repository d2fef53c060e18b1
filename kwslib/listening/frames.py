"""A few frames at a time through Mamba blocks on a CPU, compiled by Numba: what a carried stream spends its time on.

The same numbers as `Carried` of layers.py, to rounding. Of two frames, PyTorch's operators cost ten times their
arithmetic; here all blocks are one call. Channels are the vector lanes, as in kwslib/scan/cpu_kernels.py."""

import numpy as np
import torch
from numba import njit

from kwslib.models.layers import Carried
from kwslib.scan.cpu_math import LANES, LOG2E, ONE, STRICT, SUMS, ZERO, exp2, log1pexp, sigmoid


@njit(cache=True, **SUMS)
def _normalised(x, out):
    """LayerNorm of one frame (d,), without its weights."""
    mean, square = ZERO, ZERO
    for j in range(len(x)):
        mean += x[j]
    mean /= np.float32(len(x))
    for j in range(len(x)):
        out[j] = x[j] - mean
        square += out[j] * out[j]
    scale = ONE / np.sqrt(square / np.float32(len(x)) + np.float32(1e-5))
    for j in range(len(x)):
        out[j] *= scale


@njit(cache=True, **LANES)
def _add_product(x, weight, out):
    """out += x @ weight, of (k,) and (k, m)."""
    for k in range(len(x)):
        for j in range(len(out)):
            out[j] += x[k] * weight[k, j]


@njit(cache=True, **LANES)
def _convolve(u, past, weight, bias, out):
    """The causal convolution at one frame, then SiLU; `past` moves on."""
    last = len(past)
    for j in range(len(u)):
        out[j] = bias[j] + u[j] * weight[last, j]
    for k in range(last):
        for j in range(len(u)):
            out[j] += past[k, j] * weight[k, j]
    for k in range(last - 1):
        past[k] = past[k + 1]
    past[last - 1] = u
    for j in range(len(u)):
        out[j] *= sigmoid(out[j])


@njit(cache=True, **LANES)
def _scan(u, z, dt, B, C, decay, skip, h, y):
    """One step of the scan, h (n, d), with its gate."""
    for j in range(len(u)):
        dt[j] = log1pexp(dt[j])
        y[j] = skip[j] * u[j]
    for n in range(len(h)):
        for j in range(len(u)):
            h[n, j] = exp2(dt[j] * decay[n, j]) * h[n, j] + dt[j] * u[j] * B[n]
            y[j] += h[n, j] * C[n]
    for j in range(len(u)):
        y[j] *= z[j] * sigmoid(z[j])


@njit(cache=True, **STRICT)
def _blocks(x, norm, into, into_bias, conv, conv_bias, split, step, step_bias, decay, skip, out, past, h):
    """Frames x (t, d) through every block, in place; past (blocks, k - 1, D) and h (blocks, n, D) go on."""
    width, state, rank = decay.shape[2], decay.shape[1], step.shape[1]
    inner, parts = np.empty(2 * width, np.float32), np.empty(rank + 2 * state, np.float32)
    u, y, dt = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(len(into)):
        for t in range(len(x)):
            _normalised(x[t], norm)
            inner[:] = into_bias[i]
            _add_product(norm, into[i], inner)
            _convolve(inner[:width], past[i], conv[i], conv_bias[i], u)
            parts[:] = 0
            _add_product(u, split[i], parts)
            dt[:] = step_bias[i]
            _add_product(parts[:rank], step[i], dt)
            B, C = parts[rank : rank + state], parts[rank + state :]
            _scan(u, inner[width:], dt, B, C, decay[i], skip[i], h[i], y)
            _add_product(y, out[i], x[t])


class Compiled(Carried):
    """The same, its blocks compiled; weights are copied. The state of all blocks is two tensors, (B, blocks, …)."""

    def __init__(self, model):
        super().__init__(model)

        def stacked(get):
            return np.ascontiguousarray(torch.stack([get(b) for b in model.blocks]).detach().float().numpy())

        self.weights = (
            stacked(lambda b: (b.mixer.in_proj.weight * b.norm.weight).T),  # LayerNorm's weights move into in_proj
            stacked(lambda b: b.mixer.in_proj.weight @ b.norm.bias),
            stacked(lambda b: b.mixer.conv1d.weight[:, 0].T),
            stacked(lambda b: b.mixer.conv1d.bias),
            stacked(lambda b: b.mixer.x_proj.weight.T),
            stacked(lambda b: b.mixer.dt_proj.weight.T),
            stacked(lambda b: b.mixer.dt_proj.bias),
            stacked(lambda b: -b.mixer.A_log.exp().T * float(LOG2E)),
            stacked(lambda b: b.mixer.D),
            stacked(lambda b: b.mixer.out_proj.weight.T),
        )
        count, m = len(model.blocks), model.blocks[0].mixer
        self.shapes = (count, m.d_conv - 1, m.d_inner), (count, m.d_state, m.d_inner)
        self.norm = np.empty(m.out_proj.out_features, np.float32)

    def blocks(self, x, state):
        past, h = (s.clone() for s in state) if state else (torch.zeros(len(x), *shape) for shape in self.shapes)
        for row in zip(x.numpy(), past.numpy(), h.numpy()):
            _blocks(row[0], self.norm, *self.weights, *row[1:])
        return x, [past, h]
