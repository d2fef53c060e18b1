"""A model with a carried state as a graph for one chunk of a stream, and what it must give: the same, all at once.

The graph takes the next `chunk` samples and the state, a row of numbers (zeros at the start), and gives the scores of
the last second and the next state. In the state lie the last samples, the borders of every convolution, the states of
the Mamba blocks and the frames of the last second; so each frame is computed once.

A clip's features have a floor below its loudest frame: in a stream, below the loudest of the last second."""

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.data.features import WaveToSpec
from kwslib.export.graph import Spectrum, levels, probabilities
from kwslib.io import CLIP, SAMPLE_RATE, KwsError
from kwslib.models.layers import ConvFrontEnd, LinearFrontEnd, SequenceKWS, StridedFrontEnd
from kwslib.models.mamba import MambaBlock

HOP = SAMPLE_RATE // 10  # samples in a chunk, as nearly as the strides allow
SILENT = 100.0  # dB below full scale: the least that `levels` gives


class Tape:
    """The state (B, S), read and written from its first number to its last; None stands for zeros of one stream.

    age (B, 1): chunks before this one. first: which position of the stream a layer's first frame of chunk 0 has; below
    zero are those that lie before the stream, as every layer looks ahead."""

    def __init__(self, state):
        self.state, self.at, self.kept, self.first = state, 0, [], 0
        self.age = self.take(1)
        self.keep((self.age + 1).clamp_max(1e6))

    def take(self, *shape):
        size, start = torch.Size(shape).numel(), self.at
        self.at += size
        if self.state is None:
            return torch.zeros(1, *shape)
        return self.state[:, start : self.at].unflatten(1, shape)

    def keep(self, tensor):
        self.kept.append(tensor.flatten(1))

    def join(self, x, count, dim=1):
        """`x` with the `count` items before it, along `dim`; the last ones are kept for the next chunk."""
        before = self.take(*x.shape[1:dim], count, *x.shape[dim + 1 :])
        x = torch.cat([before, x], dim)
        self.keep(x.narrow(dim, x.shape[dim] - count, count))
        return x

    def border(self, kernel, stride, padding):
        """How many items from before the chunk a layer's windows need: they begin at multiples of the stride, less the
        padding, and a chunk has one for each stride. `first` becomes that of the layer's outputs."""
        count = kernel - stride
        count += (self.first - count + padding) % stride
        self.first = (self.first - count + padding) // stride
        return count

    def valid(self, count):
        """(B, count): 1 for the frames from the stream's start on, 0 for those before it."""
        return (self.age * count + self.first + torch.arange(count) >= 0).float()


class StreamGraph(nn.Module):
    """chunk (B, `chunk` samples), state (B, `size`) -> logits and probabilities (B, labels) of the second before, and
    the next state.

    The first chunks speak of frames before the stream, which count as nothing. Raises KwsError for a model without
    a carried state."""

    inputs, outputs = ("chunk", "state"), ("logits", "probabilities", "next_state")

    def __init__(self, spotter):
        super().__init__()
        model, front = spotter.model, spotter.frontend
        named = f"model {spotter.card['model']}"
        if not isinstance(model, SequenceKWS) or not isinstance(model.blocks[0], MambaBlock):
            raise KwsError(f"{named} carries no state; leave out --streaming, and give it a window every 100 ms")
        if spotter.normalise.kind == "clip":
            raise KwsError(f"{named} normalises each clip by its own mean, which no stream has; leave out --streaming")
        self.spectrum, self.front, self.model, self.normalise = Spectrum(front), front, model, spotter.normalise
        self.detector = "detector" in spotter.card
        stride = {ConvFrontEnd: 2, StridedFrontEnd: 4, LinearFrontEnd: 1}[type(model.frontend)]
        self.step = front.hop_length * stride  # samples from one frame of the blocks to the next
        self.second = CLIP // self.step
        self.frames = max(1, round(HOP / self.step))  # of the blocks, in a chunk
        self.chunk, self.delay = self.frames * self.step, 0
        with torch.no_grad():
            self._run(torch.zeros(1, self.chunk), tape := Tape(None))
            # so that a chunk's frames lie all before the stream or all in it: the blocks then start with its first
            self.delay = tape.first % self.frames * self.step
            self._run(torch.zeros(1, self.chunk), tape := Tape(None))
        self.size, self.first = tape.at, tape.first

    def forward(self, chunk, state):
        logits = self._run(chunk, tape := Tape(state))
        return logits, probabilities(logits, self.detector), torch.cat(tape.kept, 1)

    def _run(self, chunk, tape):
        x = self.normalise(self._features(chunk, tape))
        if not isinstance(self.model.frontend, LinearFrontEnd):
            x = x[:, None]
            for conv, after, pool in self._convolutions():
                x = self._convolution(x, conv, after, pool, tape)
            x = x.permute(0, 2, 1, 3).flatten(2)
        x = self.model.frontend.project(x)
        alive = (tape.age * self.frames + tape.first >= 0).float()
        for block in self.model.blocks:
            mixer = block.mixer
            state = tape.take(mixer.d_conv - 1, mixer.d_inner), tape.take(mixer.d_inner, mixer.d_state)
            x, (past, h) = block(x, state, True)
            tape.keep(past * alive[..., None])
            tape.keep(h * alive[..., None])
        x = tape.join(self.model.head.norm(x) * tape.valid(self.frames)[..., None], self.second - self.frames)
        heard = (tape.age * self.frames + tape.first + self.frames).clamp(1, self.second)
        return self.model.head.classify(x.sum(1) / heard)

    def _features(self, chunk, tape):
        front, padding = self.front, self.front.n_fft // 2 if self.front.center else 0
        before = tape.border(front.n_fft, front.hop_length, padding)
        tape.first -= self.delay // front.hop_length
        wave = tape.join(chunk, before + self.delay)[:, : before + chunk.shape[1]]
        x = levels(front, self.spectrum(wave))
        if front.scale == "db":
            peaks = (x.amax(2) + SILENT) * tape.valid(x.shape[1])
            second = CLIP // front.hop_length
            peaks = F.max_pool1d(tape.join(peaks, second)[:, None], second + 1, 1)[:, 0]
            x = torch.maximum(x, peaks[..., None] - SILENT - front.top_db)
        return x if front.kind == "mel" else x @ front.dct

    def _convolutions(self):
        """(convolution, what follows it, pooling after that or None) of the front-end."""
        front = self.model.frontend
        if isinstance(front, StridedFrontEnd):
            return [(layer[0], layer[1:], None) for layer in front.layers]
        pairs = [(stage, pool) for stage, pool in zip(front.stages, ((2, 2), (1, 2)))]
        return [
            (stage[i], nn.Sequential(stage[i + 1], nn.SiLU()), pool if i else None)
            for stage, pool in pairs
            for i in (0, 2)
        ]

    def _convolution(self, x, conv, after, pool, tape):
        """x (B, channels, frames, bands), chunk by chunk what the layer gives of all frames."""
        x = x * tape.valid(x.shape[2])[:, None, :, None]
        before = tape.border(conv.kernel_size[0], conv.stride[0], conv.padding[0])
        x = after(F.conv2d(tape.join(x, before, 2), conv.weight, conv.bias, conv.stride, (0, conv.padding[1])))
        if pool:
            before = tape.border(pool[0], pool[0], 0)
            x = F.max_pool2d(tape.join(x, before, 2), pool)
        return x


@torch.no_grad()
def at_once(spotter, waves):
    """Logits (B, T, labels) of the second before each frame of the blocks, of whole waves (B, N), computed without any
    chunks: what the graph must give. The last frames lack what comes after them; they are not to be compared."""
    model, front = spotter.model, WaveToSpec(**spotter.frontend.options | {"pad_mode": "constant"})
    x = levels(front, front.power(waves))
    if front.scale == "db":
        second = CLIP // front.hop_length
        peaks = F.max_pool1d(F.pad(x.amax(2)[:, None], (second, 0), value=-SILENT), second + 1, 1)[:, 0]
        x = torch.maximum(x, peaks[..., None] - front.top_db)
    x, _ = model.frontend(spotter.normalise(x if front.kind == "mel" else x @ front.dct), None)
    for block in model.blocks:
        x = block(x)
    total = F.pad(model.head.norm(x).double().cumsum(1), (0, 0, 1, 0))
    ends = torch.arange(1, total.shape[1])
    starts = (ends - StreamGraph(spotter).second).clamp_min(0)
    return model.head.classify(((total[:, ends] - total[:, starts]) / (ends - starts)[:, None]).float())
