"""Clips to batches: whole on the device that trains, and the paper's clip-by-clip interface beside it.

`Batches` keeps a split's waveforms on the device as int16 and makes features there: no Python per clip and no worker
processes. What is too large for that stays in its files (`tasks.Rows`), and threads gather the next batches.
`SpeechCommands`, `collate_seq` and `collate_image` are the interface that the paper's README shows; they give the same
numbers, slower."""

import operator
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import Dataset

from kwslib.data.audio import Unreadable, resample, to_float, to_mono
from kwslib.data.augment import played
from kwslib.data.corpus import Corpus, load_corpus
from kwslib.data.features import within
from kwslib.data.tasks import Rows, Split, select
from kwslib.io import CLIP, SAMPLE_RATE, KwsError

TAKES = (
    'a packed corpus or its path, or a sequence of rows {"audio": {"array", "sampling_rate"}, "label"} or of pairs '
    "(wave, class), the classes as integers"
)
GATHERERS, AHEAD = 2, 4  # threads, and batches that are ready before they are asked for


def epoch_seed(seed, epoch, rank=0):
    """The seed of what process `rank` draws in an epoch: augmentation, masks, dropout."""
    return (seed * 1_000_003 + epoch) * 64 + rank


class Batches:
    """A split on a device, as batches of (inputs (B, T, F), targets (B,), lengths (B,)).

    Every epoch's order and augmentation are functions of (seed, epoch) alone. With `world` processes, process `rank`
    gets its share of each batch. drop_last: an epoch of training leaves out its last, partial batch, unless it is the
    only one; false keeps it, unless a process would get one clip of it or none, too few for batch norm. full: every
    frame of a padded clip counts in `lengths`, not only those of its recorded samples."""

    def __init__(
        self, split, frontend, normalise, batch_size, device="cpu", augment=None, mask=None, seed=0, rank=0, world=1,
        drop_last=True, full=False,
    ):  # fmt: skip
        self.waves = split.waves if isinstance(split.waves, Rows) else split.waves.to(device)
        self.targets = split.targets.to(device)
        self.samples = split.samples.cpu()  # with the random numbers: asking a GPU would wait for it
        self.frontend, self.normalise, self.augment, self.mask = frontend, normalise, augment, mask
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.drop_last, self.full = drop_last, full

    def __len__(self):
        """Batches in an epoch of training."""
        whole, rest = divmod(len(self.targets), self.batch_size)
        return max(1, whole + (not self.drop_last and rest >= 2 * self.world))

    def clips(self):
        """Clips in an epoch of training."""
        return min(len(self) * self.batch_size, len(self.targets))

    def epoch(self, epoch):
        """Shuffled, augmented, masked batches."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch, self.rank))
        shuffle = torch.Generator().manual_seed(self.seed * 9_973 + epoch)
        batches = torch.randperm(len(self.targets), generator=shuffle).split(self.batch_size)
        shares = (rows[self.rank :: self.world] for rows in batches[: len(self)])
        for rows, waves in self._gathered(shares):
            yield self.batch(rows, self.augment, self.mask, generator, waves)

    def all(self):
        """Every clip once, in order, as it is."""
        batches = torch.arange(len(self.targets)).split(max(self.batch_size, 64))
        for rows, waves in self._gathered(batches):
            yield self.batch(rows, waves=waves)

    def _gathered(self, batches):
        """Each batch's rows, and its waves on the device, or None where all are there already."""
        if not isinstance(self.waves, Rows):
            yield from ((rows, None) for rows in batches)
            return
        with ThreadPoolExecutor(GATHERERS) as pool:
            waiting = deque()
            for rows in batches:
                waiting.append((rows, pool.submit(self._gather, rows)))
                if len(waiting) > AHEAD:
                    rows, waves = waiting.popleft()
                    yield rows, waves.result()
            yield from ((rows, waves.result()) for rows, waves in waiting)

    def _gather(self, rows):
        waves, device = self.waves[rows], self.targets.device
        return waves.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else waves

    def batch(self, rows, augment=None, mask=None, generator=None, waves=None):
        """The clips of these rows. Where tempo gave them different lengths, zeros follow the shorter ones' inputs.
        waves: theirs, int16 on the device, where they were gathered before."""
        here = rows.to(self.targets.device)
        waves = self.waves[here] if waves is None else waves
        waves, samples = to_float(waves), self.samples[rows]
        ends = frames = None
        if augment is not None:
            draw = augment.draw(*waves.shape, generator)
            if "tempo" in draw:
                ends = played(waves.shape[1], draw)
                frames = self.frontend.frames(ends)
            waves, samples = augment.apply(waves, draw, samples)

        def masked(x, on):
            return mask(x, generator, frames) if mask is not None and mask.on == on else x

        mel = masked(self.frontend.power(waves, ends), "power")
        features = masked(self.frontend.features(mel), "features")
        inputs = masked(self.normalise(features, frames), "normalised")
        if frames is not None:
            inputs = inputs * within(inputs, frames)
        lengths = self.frontend.frames(samples)
        if self.full:
            lengths = torch.full_like(lengths, inputs.shape[1]) if frames is None else frames
        return inputs, self.targets[here], lengths.to(inputs.device)


class SpeechCommands(Dataset):
    """Clip by clip: `SpeechCommands(data, augment, frontend)[i] -> (features (T, F), target, frames)`.

    data: a sequence of rows `{"audio": {"array", "sampling_rate"}, "label"}`, such as one split of a Hugging Face data
    set; a `Corpus` or its path, of which `split` and `task` choose the clips (see `tasks.select`); a `Split`; or a
    sequence of (wave, target) with waves (N,) at 16 kHz. Rows are resampled to 16 kHz and, as in the paper, cut to
    their first second or padded with zeros to one. augment: None or an `Augment`. frontend: a `WaveToSpec`, or that
    followed by `Normalise` in an `nn.Sequential`. Raises KwsError for anything else.

    labels: the names of the classes, where data has them, else None."""

    def __init__(self, data, augment, frontend, split="training", task="all"):
        if isinstance(data, (str, os.PathLike)):
            data = load_corpus(data)
        if isinstance(data, Corpus):
            data = select(data, task, split)
        if isinstance(data, Mapping):  # several splits, or a batch
            raise KwsError(f"data is a dict of {', '.join(map(str, data))}; give one split of it, a sequence of rows")
        if not isinstance(data, Split) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise KwsError(f"data is of type {type(data).__name__}; SpeechCommands takes {TAKES}")
        self.data, self.augment, self.frontend = data, augment, frontend
        self.labels = getattr(data, "labels", None)
        self.spec = frontend[0] if isinstance(frontend, torch.nn.Sequential) and len(frontend) else frontend
        if not (augment is None or hasattr(augment, "apply")) or not hasattr(self.spec, "frames"):
            given = f"augment is of type {type(augment).__name__}, frontend of type {type(frontend).__name__}"
            raise KwsError(f"{given}; SpeechCommands takes (data, augment or None, a WaveToSpec)")
        if not len(self):
            raise KwsError("data is empty; give at least one clip")
        self.clip(0)  # what is wrong with all rows is said at once

    def __len__(self):
        return len(self.data.targets) if isinstance(self.data, Split) else len(self.data)

    def clip(self, i):
        """Clip i: its float wave (N,), its target, and how many of its samples were recorded. Raises KwsError."""
        if isinstance(self.data, Split):
            return to_float(self.data.waves[i]), int(self.data.targets[i]), int(self.data.samples[i])
        item, rate = self.data[i], SAMPLE_RATE
        try:
            if row := isinstance(item, Mapping):
                target, wave, rate = item["label"], item["audio"]["array"], item["audio"]["sampling_rate"]
            else:
                wave, target = item
            target = operator.index(target)
        except (KeyError, TypeError, ValueError):
            raise KwsError(f"data[{i}] is not a clip with its class; SpeechCommands takes {TAKES}") from None
        if target < 0:
            raise KwsError(f"data[{i}] has label {target}; classes count from 0, so leave out clips without one")
        try:
            wave = resample(to_mono(wave), rate)[: CLIP if row else None]
        except Unreadable as e:
            raise KwsError(f"data[{i}] cannot be used: {e}") from None
        padding = CLIP - len(wave) if row else 0
        return torch.from_numpy(np.pad(wave, (0, padding))), target, len(wave)

    def __getitem__(self, i):
        wave, target, samples = self.clip(i)
        if self.augment is not None:
            draw = self.augment.draw(1, len(wave))
            (wave,), (samples,) = self.augment.apply(wave[None], draw, torch.tensor([samples]))
        return self.frontend(wave), target, int(self.spec.frames(samples))


def collate_seq(items):
    """Items of `SpeechCommands` -> inputs (B, T, F) padded with zeros, targets (B,), lengths (B,)."""
    features, targets, lengths = zip(*items)
    inputs = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    return inputs, torch.tensor(targets), torch.tensor(lengths)


def collate_image(items):
    """As `collate_seq`, with inputs as one-channel images (B, 1, F, T)."""
    inputs, targets, lengths = collate_seq(items)
    return inputs.transpose(1, 2)[:, None], targets, lengths
