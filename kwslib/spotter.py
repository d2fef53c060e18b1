"""Inference: the most probable word of a recording."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import TrainedModel, load_model
from kwslib.data.audio import Unreadable, resample, stream, to_mono
from kwslib.io import CLIP, SAMPLE_RATE, KwsError

STEP = SAMPLE_RATE // 4  # samples between the starts of two windows
BATCH = 64  # windows


def load(path, device="cpu"):
    """The KeywordSpotter of a checkpoint: its file, its folder, or a pretrained name such as "mamba_light"."""
    return load_model(path, device, KeywordSpotter)


class KeywordSpotter(TrainedModel):
    """A trained model that names the keyword in a recording of any rate and length: `predict`."""

    def predict(self, wave, sample_rate=None):
        """[(label, probability), …] of one recording, most probable first; of a list of paths, a list of these.

        wave: path of an audio file, or samples (N,), (channels, N) or (N, channels) as an array or tensor: floats in
        [-1, 1], int16, int32 or uint8. sample_rate: that of the samples, in Hz; a file has its own.

        A recording of less than a second is padded with zeros, which the mean over time leaves out. A longer one is cut
        into one-second windows that start a quarter of a second apart; the most confident window gives the answer.
        Files are read a minute at a time. Raises KwsError, in one sentence, for what is not a recording."""
        if isinstance(wave, (list, tuple)) and any(isinstance(w, (str, os.PathLike)) for w in wave):
            return [self.predict(w, sample_rate) for w in wave]
        windows, best = cut(recording(wave, sample_rate)), None
        while batch := list(islice(windows, BATCH)):
            samples = torch.tensor([len(w) for w in batch])
            padded = torch.stack([F.pad(torch.from_numpy(w), (0, CLIP - len(w))) for w in batch])
            p = self.logits(padded, samples).softmax(1).cpu()
            top = p[p.max(1).values.argmax()]
            best = top if best is None or top.max() > best.max() else best
        order = best.argsort(descending=True, stable=True)
        return [(self.labels[i], float(best[i])) for i in order]


def recording(wave, sample_rate):
    """What `predict` takes -> its blocks, float32 (n,), mono, 16 kHz. Raises KwsError."""
    if not isinstance(wave, (str, os.PathLike)):
        wave = to_mono(wave)
        if sample_rate is None:
            raise KwsError("sample_rate is None; predict needs the rate of the samples, in Hz")
        yield resample(wave, sample_rate)
        return
    if not Path(wave).exists():
        raise KwsError(f"{wave} does not exist; give the path of an audio file")
    try:
        yield from (to_mono(block, "it") for block in stream(wave))
    except Unreadable as e:
        raise KwsError(f"{wave} cannot be read as audio ({e}); give a whole wav, flac, ogg or mp3 file") from None


def cut(blocks):
    """The one-second windows of a recording, STEP samples apart; the last ends where the recording does."""
    held, at = np.zeros(0, np.float32), 0  # the samples from the window before the next, which begins at `at`
    for block in blocks:
        held, at = np.concatenate([held[max(at - STEP, 0) :], block]), min(at, STEP)
        while len(held) - at > CLIP:
            yield held[at : at + CLIP]
            at += STEP
    yield held[-CLIP:]
