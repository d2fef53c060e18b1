"""A trained model in plain operations, from the wave to the probabilities: what a file for other runtimes can hold.

Two things are written anew here, as no exporter knows them: the spectrum, for which ONNX has no fast operator, and the
selective scan, whose kernels would go in as a constant. Symbols: B clips, N samples, T frames, F features."""

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.io import SAMPLE_RATE
from kwslib.scan import BACKENDS, use_backend
from kwslib.spotter import LISTENING


class Spectrum(nn.Module):
    """Padded waves (B, N) -> mel power (B, T, n_mels), as WaveToSpec.power has it, in products with small matrices.

    One step of Cooley & Tukey (1965): with n = N1 N2, sample N2 i + j and frequency k + N1 l,

        X[k + N1 l] = Σ_j  W_N2^(j l)  W_n^(j k)  Σ_i  W_N1^(i k)  x[N2 i + j],    W_m = exp(-2πi / m)

    in n (N1 + 2 N2) multiplications a frame, an eighth of a product with the whole Fourier matrix at n = 512. Of a real
    wave k in 0 … N1 / 2 is enough: |X[n - f]| = |X[f]|."""

    def __init__(self, frontend):
        super().__init__()
        self.size, self.hop = frontend.n_fft, frontend.hop_length
        self.n1 = n1 = min((d for d in range(1, self.size + 1) if self.size % d == 0), key=self._cost)
        self.n2, rows = self.size // n1, n1 // 2 + 1
        i, j, k = (torch.arange(n, dtype=torch.float64) for n in (n1, self.n2, rows))
        first = self._turns(k, i, n1)  # (rows, N1)
        second = self._turns(j, j, self.n2)  # (N2, N2)
        self.keep("first", torch.cat([first.real, first.imag]))
        self.keep(
            "second", torch.cat([torch.cat([second.real, second.imag], 1), torch.cat([-second.imag, second.real], 1)])
        )
        twiddle = self._turns(k, j, self.size)
        self.keep("re", twiddle.real)
        self.keep("im", twiddle.imag)
        window, short = frontend.window, self.size - frontend.win_length
        self.keep("window", F.pad(window, (short // 2, short - short // 2)).view(n1, self.n2))
        f = torch.arange(self.size // 2 + 1)
        f = torch.where(f % n1 < rows, f, self.size - f)
        mel = torch.zeros(rows * self.n2, frontend.mel.shape[1])
        mel[f % n1 * self.n2 + f // n1] = frontend.mel[::2].cpu()
        self.keep("mel", mel)

    def _cost(self, n1):
        return n1 + 2 * self.size // n1

    @staticmethod
    def _turns(a, b, period):
        return torch.exp(-2j * math.pi * torch.outer(a, b) / period)

    def keep(self, name, value):
        self.register_buffer(name, value.float(), persistent=False)

    def forward(self, wave):
        x = self.frames(wave).unflatten(2, (self.n1, self.n2)) * self.window
        re, im = (self.first @ x).chunk(2, 2)  # each (B, T, rows, N2)
        y = torch.cat([re * self.re - im * self.im, re * self.im + im * self.re], 3) @ self.second
        re, im = y.chunk(2, 3)
        return (re * re + im * im).flatten(2) @ self.mel

    def frames(self, wave):
        """(B, N) -> (B, T, n_fft): blocks that both the hop and the window are made of, gathered."""
        block = math.gcd(self.size, self.hop)
        count = 1 + (wave.shape[1] - self.size) // self.hop
        starts = torch.arange(count)[:, None] * (self.hop // block) + torch.arange(self.size // block)
        blocks = wave[:, : (count - 1) * self.hop + self.size].unflatten(1, (-1, block))
        return blocks[:, starts].flatten(2)


def padded(frontend, wave):
    """The waves (B, N) and what the windows at their ends reach: as WaveToSpec pads them."""
    half = frontend.n_fft // 2
    if not frontend.center:
        return F.pad(wave, (0, max(0, frontend.n_fft - wave.shape[1])))
    return F.pad(wave[:, None], (half, half), frontend.pad_mode)[:, 0]


def levels(frontend, mel):
    """Mel power -> its logarithm, without a floor below the loudest frame."""
    if frontend.scale == "log":
        return torch.log(mel + 1e-6)
    return torch.log(mel.clamp_min(1e-10)) * (10 / math.log(10))


class ClipGraph(nn.Module):
    """Waves (B, N) at 16 kHz, all of it valid -> logits (B, labels) and probabilities: a sigmoid for each label of a
    detector, else a softmax."""

    inputs, outputs = ("wave",), ("logits", "probabilities")

    def __init__(self, spotter):
        super().__init__()
        self.frontend, self.spectrum = spotter.frontend, Spectrum(spotter.frontend)
        self.normalise, self.model, self.detector = spotter.normalise, spotter.model, "detector" in spotter.card

    def forward(self, wave):
        x = levels(self.frontend, self.spectrum(padded(self.frontend, wave)))
        if self.frontend.scale == "db":
            x = torch.maximum(x, x.amax(dim=(1, 2), keepdim=True) - self.frontend.top_db)
        x = x if self.frontend.kind == "mel" else x @ self.frontend.dct
        logits = self.model(self.normalise(x), None)
        return logits, probabilities(logits, self.detector)


def window_of(spotter):
    """Samples in the window that the model listens by."""
    return round((LISTENING | spotter.card.get("detector", {}))["window_s"] * SAMPLE_RATE)


def probabilities(logits, detector):
    return logits.sigmoid() if detector else logits.softmax(1)


def plain_scan(u, delta, A, B, C, D, z, bias, initial, softplus):
    """`reference_scan` for a graph: all but the recurrence is done for every step at once, channels last, which is how
    they lie in memory. The recurrence is one node, whose meaning `unrolled` gives; outside an exporter it is void."""
    delta = delta if bias is None else delta + bias
    delta = delta.relu() + torch.log(1 + torch.exp(-delta.abs())) if softplus else delta  # softplus of fast operators
    decay = torch.exp(delta[:, :, None] * A.mT)  # (b, l, n, d)
    entering = (delta * u)[:, :, None] * B[..., None]
    initial = torch.zeros_like(decay[:, :1]) if initial is None else initial.mT[:, None]
    options = {"dtype": decay.dtype, "shape": decay.shape, "version": 1}
    states = torch.onnx.ops.symbolic(f"kwslib::Recurrence{u.shape[1]}", (decay, entering, initial), **options)
    y = (C[:, :, None] @ states)[:, :, 0]
    y = y if D is None else y + D * u
    return y if z is None else y * F.silu(z), states[:, -1].mT


def unrolled(name, opset):
    """The ONNX function Recurrence<l>: decay, entering (b, l, …), initial (b, 1, …) -> states (b, l, …), where a state
    is the one before it times its decay, plus what enters: two operators a step, of the 26 to 63 that a second has."""
    from onnx import helper

    length, nodes, last = int(name.removeprefix("Recurrence")), [], "initial"
    for part in ("decay", "entering"):
        pieces = [f"{part}{t}" for t in range(length)]
        nodes.append(helper.make_node("Split", [part], pieces, axis=1, num_outputs=length))
    for t in range(length):
        nodes.append(helper.make_node("Mul", [f"decay{t}", last], [f"kept{t}"]))
        nodes.append(helper.make_node("Add", [f"kept{t}", f"entering{t}"], [last := f"state{t}"]))
    nodes.append(helper.make_node("Concat", [f"state{t}" for t in range(length)], ["states"], axis=1))
    inputs, opsets = ["decay", "entering", "initial"], [helper.make_opsetid("", opset)]
    return helper.make_function("kwslib", name, inputs, ["states"], nodes, opsets)


@contextmanager
def plain(graph):
    """Inside, every scan of the graph is `plain_scan`."""
    named = [m for m in graph.modules() if getattr(m, "scan_backend", None)]
    before = [m.scan_backend for m in named]
    for m in named:
        m.scan_backend = None
    BACKENDS["plain"] = (lambda tensors, by_name: by_name, plain_scan)
    try:
        with use_backend("plain"), torch.no_grad():
            yield
    finally:
        del BACKENDS["plain"]
        for m, backend in zip(named, before):
            m.scan_backend = backend
