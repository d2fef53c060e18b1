"""Clips to batches: whole on the device that trains, and the paper's clip-by-clip interface beside it.

`Batches` keeps a split's waveforms on the device as int16 and makes features there: no Python per
clip and no worker processes. `SpeechCommands`, `collate_seq` and `collate_image` are the interface
that the paper's README shows; they give the same numbers, slower.
"""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from kwslib.data.features import to_float


class Batches:
    """A split on a device, as batches of (inputs (B, T, F), targets (B,), lengths (B,)).

    Every epoch's order and augmentation are functions of (seed, epoch) alone. With `world` processes,
    process `rank` gets its share of each batch.
    """

    def __init__(
        self, split, frontend, normalise, batch_size, device="cpu", augment=None, mask=None, seed=0, rank=0, world=1
    ):
        self.waves, self.targets = split.waves.to(device), split.targets.to(device)
        self.samples = split.samples.to(device)
        self.frontend, self.normalise, self.augment, self.mask = frontend, normalise, augment, mask
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world

    def __len__(self):
        """Batches in an epoch of training: the last, partial batch is dropped unless it is the only one."""
        return max(1, len(self.targets) // self.batch_size)

    def epoch(self, epoch):
        """Shuffled, augmented, masked batches."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) * 64 + self.rank)
        shuffle = torch.Generator().manual_seed(self.seed * 9_973 + epoch)
        batches = torch.randperm(len(self.targets), generator=shuffle).split(self.batch_size)
        for rows in batches[: len(self)]:
            rows = rows[self.rank :: self.world].to(self.targets.device)
            yield self.batch(rows, self.augment, self.mask, generator)

    def all(self):
        """Every clip once, in order, as it is."""
        rows = torch.arange(len(self.targets), device=self.targets.device)
        yield from map(self.batch, rows.split(max(self.batch_size, 64)))

    def batch(self, rows, augment=None, mask=None, generator=None):
        waves, samples = to_float(self.waves[rows]), self.samples[rows]
        if augment is not None:
            waves, samples = augment.apply(waves, augment.draw(*waves.shape, generator), samples)
        inputs = self.normalise(self.frontend(waves))
        if mask is not None:
            inputs = mask(inputs, generator)
        lengths = self.frontend.frames(samples.to(inputs.device))
        return inputs, self.targets[rows], lengths


class SpeechCommands(Dataset):
    """Clip by clip: `SpeechCommands(data, augment, frontend)[i] -> (features (T, F), target, frames)`.

    data: a `kwslib.data.tasks.Split`, or any sequence of (wave, target) with float waves (N,) at 16 kHz.
    augment: None or a `kwslib.data.augment.Augment`. frontend: a `WaveToSpec`, or that followed by `Normalise`
    in an `nn.Sequential`.
    """

    def __init__(self, data, augment, frontend):
        self.data, self.augment, self.frontend = data, augment, frontend
        self.spec = frontend if hasattr(frontend, "frames") else frontend[0]

    def __len__(self):
        return len(self.data.targets) if hasattr(self.data, "targets") else len(self.data)

    def __getitem__(self, i):
        if hasattr(self.data, "targets"):
            wave, target = to_float(self.data.waves[i]), int(self.data.targets[i])
            samples = self.data.samples[i : i + 1]
        else:
            wave, target = self.data[i]
            wave, samples = torch.as_tensor(wave, dtype=torch.float32), torch.tensor([len(wave)])
        if self.augment is not None:
            (wave,), samples = self.augment.apply(wave[None], self.augment.draw(1, len(wave)), samples)
        return self.frontend(wave), target, int(self.spec.frames(samples[0]))


def collate_seq(items):
    """Items of `SpeechCommands` -> inputs (B, T, F) padded with zeros, targets (B,), lengths (B,)."""
    features, targets, lengths = zip(*items)
    inputs = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    return inputs, torch.tensor(targets), torch.tensor(lengths)


def collate_image(items):
    """As `collate_seq`, with inputs as one-channel images (B, 1, F, T)."""
    inputs, targets, lengths = collate_seq(items)
    return inputs.transpose(1, 2)[:, None], targets, lengths
