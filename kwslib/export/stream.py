"""A model with a carried state as a graph for one chunk of a stream, and what it must give: the same, all at once.

The graph takes the next `chunk` samples and the state, a row of numbers (zeros at the start), and gives the scores of
the last window and the next state. In the state lie the last samples, the borders of every convolution, the states of
the Mamba blocks and the frames of the last window; so each frame is computed once.

The scores are of mode "carried" of kwslib.listening.stream, at times that the strides of the convolutions choose."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.data.features import WaveToSpec
from kwslib.export.graph import Spectrum, levels, probabilities, window_of
from kwslib.io import SAMPLE_RATE, KwsError
from kwslib.listening.stream import rule
from kwslib.models.ensemble import members_of
from kwslib.models.layers import Carried

HOP = SAMPLE_RATE // 10  # samples in a chunk, as nearly as the strides allow
SILENT = 100.0  # dB below full scale: the least that `levels` gives


class Tape:
    """The state (B, S), read and written from its first number to its last; None stands for zeros of one stream.

    age (B, 1): chunks before this one; after a million of them `period` less, so that it stays exact. first: which
    position of the stream a layer's first frame of chunk 0 has; below zero are those that lie before the stream, as
    every layer looks ahead."""

    def __init__(self, state, period=1):
        self.state, self.at, self.kept, self.first = state, 0, [], 0
        self.age = self.take(1)
        self.keep(self.age + 1 - (self.age >= 1e6) * float(period))

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
    """chunk (B, `chunk` samples), state (B, `size`) -> logits and probabilities (B, labels) of the window before, and
    the next state.

    The first chunks speak of frames before the stream, which count as nothing. Raises KwsError for a model without
    a carried state."""

    inputs, outputs = ("chunk", "state"), ("logits", "probabilities", "next_state")

    def __init__(self, spotter):
        super().__init__()
        front, self.members = spotter.frontend, torch.nn.ModuleList(members_of(spotter.model))
        named = f"model {spotter.card['model']}"
        if not all(map(Carried.fits, self.members)):
            raise KwsError(f"{named} carries no state; leave out --streaming, and give it a window every 100 ms")
        if "carried" not in spotter.card.get("detector", {}).get("modes", ["carried"]):
            raise KwsError(f"{named} was trained for windows alone; leave out --streaming")
        if spotter.normalise.kind == "clip":
            raise KwsError(f"{named} normalises each clip by its own mean, which no stream has; leave out --streaming")
        self.spectrum, self.front, self.model, self.normalise = Spectrum(front), front, spotter.model, spotter.normalise
        self.detector, self.layers = (
            "detector" in spotter.card,
            [[*m.frontend.layers_over_time()] for m in self.members],
        )
        self.step = (
            front.hop_length * self.members[0].frontend.stride
        )  # samples from one frame of the blocks to the next
        window = window_of(spotter)
        self.mean, self.span = round(window / self.step), front.frames(window)  # frames of blocks and of features in it
        self.frames = max(1, round(HOP / self.step))  # of the blocks, in a chunk
        self.chunk, self.delay = self.frames * self.step, 0
        restart = rule(spotter.card, "carried")["restart_s"] * SAMPLE_RATE
        self.restart = math.ceil(restart / self.chunk)  # chunks until the next of two states starts anew; 0: never
        with torch.no_grad():
            self._run(torch.zeros(1, self.chunk), tape := Tape(None))
            # so that a chunk's frames lie all before the stream or all in it: the blocks then start with its first
            self.delay = tape.first % self.frames * self.step
            self._run(torch.zeros(1, self.chunk), tape := Tape(None))
        self.size, self.first = tape.at, tape.first

    def forward(self, chunk, state):
        logits = self._run(chunk, tape := Tape(state, 2 * self.restart or 1))
        return logits, probabilities(logits, self.detector), torch.cat(tape.kept, 1)

    def _run(self, chunk, tape):
        x = self.normalise(self._features(chunk, tape))
        first, logits = tape.first, []
        for member, layers in zip(self.members, self.layers):
            tape.first = first  # all members hear the same frames
            logits.append(self._logits(member, layers, x, tape))
        return sum(logits) / len(logits)

    def _logits(self, member, layers, x, tape):
        x = x[:, None]  # (B, channels, frames, bands)
        for layer, kernel, stride, padding in layers:
            x = x * tape.valid(x.shape[2])[:, None, :, None]
            x = layer(tape.join(x, tape.border(kernel, stride, padding), 2))
        x = member.frontend.project(x.permute(0, 2, 1, 3).flatten(2))
        if not self.restart:
            return member.head.classify(self._mean(member, x, tape))
        clock = tape.age + tape.first / self.frames  # chunks before this one of what the blocks hear
        turn, begins = (clock / self.restart).floor() % 2, (clock % self.restart == 0) & (clock > 0)
        means = [self._mean(member, x, tape, 1 - (begins & (turn != lane)).float()) for lane in (0, 1)]
        return member.head.classify(torch.where(turn == 1, means[1], means[0]))

    def _mean(self, member, x, tape, goes_on=None):
        """(B, d): the mean of the window's frames, by blocks whose state is zero before the stream, and where it does
        not go on (B, 1)."""
        alive = (tape.age * self.frames + tape.first >= 0).float()
        for block in member.blocks:
            mixer = block.mixer
            state = [tape.take(mixer.d_conv - 1, mixer.d_inner), tape.take(mixer.d_inner, mixer.d_state)]
            if goes_on is not None:
                state = [s * goes_on[..., None] for s in state]
            x, (past, h) = block(x, state, True)
            tape.keep(past * alive[..., None])
            tape.keep(h * alive[..., None])
        x = tape.join(member.head.norm(x) * tape.valid(self.frames)[..., None], self.mean - self.frames)
        return x.sum(1) / (tape.age * self.frames + tape.first + self.frames).clamp(1, self.mean)

    def _features(self, chunk, tape):
        front, padding = self.front, self.front.n_fft // 2 if self.front.center else 0
        before = tape.border(front.n_fft, front.hop_length, padding)
        tape.first -= self.delay // front.hop_length
        wave = tape.join(chunk, before + self.delay)[:, : before + chunk.shape[1]]
        x = levels(front, self.spectrum(wave))
        if front.scale == "db":
            peaks = (x.amax(2) + SILENT) * tape.valid(x.shape[1])
            peaks = F.max_pool1d(tape.join(peaks, self.span - 1)[:, None], self.span, 1)[:, 0]
            x = torch.maximum(x, peaks[..., None] - SILENT - front.top_db)
        return x if front.kind == "mel" else x @ front.dct


@torch.no_grad()
def at_once(spotter, waves):
    """Logits (B, T, labels) of the window before each frame of the blocks, of whole waves (B, N), computed without any
    chunks: what the graph must give. The last frames lack what comes after them; they are not to be compared."""
    front = WaveToSpec(**spotter.frontend.options | {"pad_mode": "constant"})
    span, mean = (graph := StreamGraph(spotter)).span, graph.mean
    x = levels(front, front.power(waves))
    if front.scale == "db":
        peaks = F.max_pool1d(F.pad(x.amax(2)[:, None], (span - 1, 0), value=-SILENT), span, 1)[:, 0]
        x = torch.maximum(x, peaks[..., None] - front.top_db)
    x, logits = spotter.normalise(x if front.kind == "mel" else x @ front.dct), []
    for member in graph.members:
        means = [mean_of_last(frames, mean) for frames in of_states(member, x, graph.restart * graph.frames)]
        turn = torch.arange(means[0].shape[1]) // (graph.restart * graph.frames or means[0].shape[1]) % 2
        logits.append(member.head.classify(torch.where(turn[:, None] == 1, means[-1], means[0])))
    return sum(logits) / len(logits)


def of_states(member, x, every):
    """Features (B, N, F) -> a list of frames (B, T, d): those of one state, or, where the next of two starts anew after
    `every` frames, of both."""
    x, _ = member.frontend(x, None)
    cuts = [[0, *range(first, x.shape[1], 2 * every), x.shape[1]] for first in (every, 2 * every) if every]
    found = []
    for each in cuts or [[0, x.shape[1]]]:
        parts = [x[:, a:b] for a, b in pairwise(each)]
        for block in member.blocks:
            parts = [block(part) for part in parts]
        found.append(member.head.norm(torch.cat(parts, 1)))
    return found


def mean_of_last(frames, count):
    """Each frame's mean with the `count` - 1 before it, or as many as there are, of (B, T, d)."""
    total = F.pad(frames.double().cumsum(1), (0, 0, 1, 0))
    ends = torch.arange(1, total.shape[1])
    starts = (ends - count).clamp_min(0)
    return ((total[:, ends] - total[:, starts]) / (ends - starts)[:, None]).float()
