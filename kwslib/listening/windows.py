"""Recordings of any kind in windows, and how a detector scores them."""

import os

import numpy as np
import torch

from kwslib.data.audio import Unreadable, resample, stream, to_mono
from kwslib.io import CLIP, SAMPLE_RATE, KwsError

STEP = SAMPLE_RATE // 4  # samples between the starts of two windows of predict
BATCH = 64  # windows
# How a detector listens, unless its card says otherwise under "detector": windows of window_s seconds, hop_s apart, and
# a score is the mean over the last `smooth` of them.
LISTENING = {"window_s": CLIP / SAMPLE_RATE, "hop_s": 0.1, "smooth": 2}


def log_odds(logits, detector):
    """Logits (B, labels) -> log-odds (B, labels): a detector's logits are that, one sigmoid a label."""
    if detector:
        return logits
    p = logits.double().log_softmax(1)
    return (p - torch.log1p(-p.exp().clamp_max(1 - 1e-12))).float()


def recording(wave, sample_rate):
    """What `predict` takes -> its blocks, float32 (n,), mono, 16 kHz. Raises KwsError."""
    if not isinstance(wave, (str, os.PathLike)):
        wave = to_mono(wave)
        if sample_rate is None:
            raise KwsError("sample_rate is None; predict needs the rate of the samples, in Hz")
        yield resample(wave, sample_rate)
        return
    if not os.path.exists(wave):
        raise KwsError(f"{wave} does not exist; give the path of an audio file")
    try:
        yield from stream(wave)
    except Unreadable as e:
        raise KwsError(f"{wave} cannot be read as audio ({e}); give a whole wav, flac, ogg or mp3 file") from None


def cut(blocks, window=CLIP, step=STEP, whole=False):
    """The windows of a recording, `step` samples apart. The last ends where the recording does; with `whole`, only a
    recording shorter than a window has one that is not on that grid."""
    held, at = np.zeros(0, np.float32), 0  # the samples from the window before the next, which begins at `at`
    first = True
    for block in blocks:
        held, at = np.concatenate([held[max(at - step, 0) :], block]), min(at, step)
        while len(held) - at > window or (whole and len(held) - at == window):
            yield held[at : at + window]
            at, first = at + step, False
    if first or not whole:
        yield held[-window:]
