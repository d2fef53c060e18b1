"""Classification tasks: a task selects clips of one split of a corpus and gives each its class.

Tasks: "all" (every word of the corpus), "v2-35" (the 35 words of Speech Commands V2), "v2-12" (ten commands,
`_unknown_`, `_silence_`; Warden 2018, arXiv 1804.03209, section 7) or a list of words, in which `_unknown_`
stands for all other words of the corpus and `_silence_` for background noise alone."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from kwslib.data.columns import Column, Reader
from kwslib.data.folder import NOISE, SPLITS
from kwslib.io import CLIP, SAMPLE_RATE, KwsError

UNKNOWN, SILENCE = "_unknown_", "_silence_"
COMMANDS = "yes no up down left right on off stop go".split()
V2_35 = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no "
    "off on one right seven sheila six stop three tree two up visual wow yes zero"
).split()
SHARE = 0.1  # of the wanted clips, each for unknown and for silence
FEW = 1 << 15  # clips that are held in memory: 1 GB


class Rows:
    """The waves of many clips, left where they are: indexed as a tensor int16 (n, 16000) is, it gives that tensor.

    Row i is waves[index[i]], or where that is negative cut ~index[i]: a (piece, start, gain) of `noise`."""

    dtype = torch.int16

    def __init__(self, waves, index, noise=None, cuts=()):
        self.waves, self.index, self.noise, self.cuts = waves, index, noise, cuts
        self.read = Reader(waves)
        self.shape = torch.Size((len(index), CLIP))

    def __len__(self):
        return len(self.index)

    def __getitem__(self, key):
        index = self.index[np.asarray(key) if isinstance(key, torch.Tensor) else key]
        out = np.empty((index.size, CLIP), np.int16)
        for row, i in zip(out, np.atleast_1d(index).tolist()):
            if i >= 0:
                self.read(i, row)
            else:
                piece, start, gain = self.cuts[~i]
                row[:] = np.rint(self.noise[piece, start : start + CLIP] * gain)
        return torch.from_numpy(out if index.ndim else out[0])

    def split(self, size):
        """As a tensor's: one after the other, the tensors of `size` rows."""
        return (self[i : i + size] for i in range(0, len(self), size))

    def some(self, most):
        """At most so many of these rows, evenly spaced."""
        return Rows(self.waves, self.index[:: -(-len(self) // most)], self.noise, self.cuts)

    def is_floating_point(self):
        return False


@dataclass
class Split:
    """waves: int16 (n, 16000), a tensor or, of more than FEW clips, their `Rows`; targets: int64 (n,), indices into
    labels; samples: int64 (n,), true lengths; speakers, paths: str (n,), arrays or, of more than FEW clips, a
    `Column`; labels: the names of the classes."""

    waves: torch.Tensor | Rows
    targets: torch.Tensor
    samples: torch.Tensor
    speakers: np.ndarray | Column
    paths: np.ndarray | Column
    labels: list


def task_labels(corpus, task):
    """The classes of a task, in the order of the model's outputs: words sorted (v2-12: as published), then
    `_unknown_` and `_silence_`. Raises KwsError where the corpus lacks a word."""
    held = corpus.words.distinct()
    names = {"all": held, "v2-35": V2_35, "v2-12": [*COMMANDS, UNKNOWN, SILENCE]}
    if not isinstance(task, (list, tuple)) and task not in names:
        raise KwsError(f"task {task!r} is not known; give all, v2-35, v2-12 or a list of words")
    wanted = names[task] if isinstance(task, str) else list(task)
    words = [w for w in wanted if w not in (UNKNOWN, SILENCE)]
    missing = [w for w in words if w not in held]
    if missing or not words:
        lacking = ", ".join(missing) or "(none is asked for)"
        raise KwsError(f"corpus {corpus.root} has no word {lacking}; choose from: {', '.join(held)}")
    words = words if isinstance(task, str) else sorted(set(words))
    return words + [label for label in (UNKNOWN, SILENCE) if label in wanted]


def noise_of(corpus, split):
    """The background noise of one split, int16 (pieces, samples), so that no noise is in two splits.

    Whole files are held out: of every ten, in order of their names, the first is for testing and the fifth, or else the
    last but one, for validation. (Of Speech Commands' six, that is running_tap, as in its copy at Hugging Face.) Where
    these are too few, of every 10 s of all files 8 are for training, one for validation and one for testing. Raises
    KwsError below 10 s."""
    ten = 10 * SAMPLE_RATE
    files = np.split(corpus.noise, np.cumsum(corpus.card.get("noise_files", []))[:-1])
    held = {0: "testing", min(4, len(files) - 2): "validation"}
    shares = {s: [f for i, f in enumerate(files) if held.get(i % 10, "training") == s] for s in SPLITS}
    if all(sum(map(len, share)) >= ten for share in shares.values()):
        noise = np.concatenate(shares[split])
        return noise[: len(noise) // ten * ten].reshape(-1, ten)
    if not (tens := len(corpus.noise) // ten):
        unset = "set background_snr and background_volume to null"
        remedy = f"add sound files to {NOISE}, or leave {SILENCE} out of the task and {unset}"
        raise KwsError(f"corpus {corpus.root} has less than 10 s of background noise; {remedy}")
    first, last = {"training": (0, 8), "validation": (8, 9), "testing": (9, 10)}[split]
    blocks = corpus.noise[: tens * ten].reshape(tens, ten)
    return blocks[:, first * SAMPLE_RATE : last * SAMPLE_RATE]


def select(corpus, task, split, seed=0):
    """The clips of a split (training, validation, testing) for a task -> Split, in the order of the corpus.

    `_unknown_` and `_silence_` each add ceil(10 %) of the number of wanted clips, as TensorFlow's
    speech_commands/input_data.py does: unknown words drawn without repeats, silence as one-second cuts of
    background noise at a gain drawn from U(0, 1); both follow from `seed` and the split. Raises KwsError."""
    if split not in SPLITS:
        raise KwsError(f"split {split!r} is not known; give {', '.join(SPLITS)}")
    if corpus.waves.shape[1:] != (CLIP,):
        raise KwsError(f"corpus.waves has shape {corpus.waves.shape}; a corpus holds clips of {CLIP} samples")
    labels = task_labels(corpus, task)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    wanted = {word: i for i, word in enumerate(labels) if word not in (UNKNOWN, SILENCE)}
    inside, classes = corpus.splits == split, corpus.words.numbered(wanted, -1)
    rows = np.flatnonzero(inside & (classes >= 0))
    if not len(rows):
        raise KwsError(f"corpus {corpus.root} has no {split} clips of these words; choose others")
    share, noise, cuts = math.ceil(SHARE * len(rows)), None, []
    if UNKNOWN in labels:
        others = np.flatnonzero(inside & (classes < 0))
        if not len(others):
            raise KwsError(f"corpus {corpus.root} has no other words in {split} for {UNKNOWN}; leave that out")
        rows = np.sort(np.concatenate([rows, rng.permutation(others)[:share]]))
        classes[classes < 0] = labels.index(UNKNOWN)
    targets = classes[rows]
    if SILENCE in labels:
        noise = noise_of(corpus, split)
        for _ in range(share):
            piece, start = int(rng.integers(len(noise))), int(rng.integers(noise.shape[1] - CLIP + 1))
            cuts.append((piece, start, rng.uniform()))
        targets = np.concatenate([targets, np.full(share, labels.index(SILENCE))])
    quiet = len(cuts)
    waves = Rows(corpus.waves, np.concatenate([rows, ~np.arange(quiet)]), noise, cuts)
    paths = corpus.paths.take(rows, [f"{NOISE}/{split}-{piece}-{start}" for piece, start, _ in cuts])
    speakers = corpus.speakers.take(rows, [SILENCE] * quiet)
    samples = torch.from_numpy(np.concatenate([corpus.samples[rows], np.full(quiet, CLIP)]))
    if len(waves) <= FEW:
        waves, speakers, paths = waves[:], speakers[:], paths[:]
    return Split(waves, torch.from_numpy(targets), samples, speakers, paths, labels)
