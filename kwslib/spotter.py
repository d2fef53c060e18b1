"""The trained spotter that a checkpoint makes: `kwslib.load(path).predict(wave_or_path, sample_rate)`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F

from kwslib.checkpoint import TrainedModel, load_model
from kwslib.data.audio import Unreadable, decode, resample, to_mono
from kwslib.io import CLIP, SAMPLE_RATE, KwsError


def load(path, device="cpu"):
    """KeywordSpotter of a checkpoint: its file, its folder, or the name of one of `kwslib.pretrained()`."""
    return load_model(path, device, KeywordSpotter)


class KeywordSpotter(TrainedModel):
    """A trained model that names the keyword in a recording of any rate and length: `predict`."""

    def predict(self, wave, sample_rate=None):
        """[(label, probability), …] of one recording, most probable first.

        wave: path of an audio file, or samples (N,), (channels, N) or (N, channels) as an array, tensor or list: floats
        in [-1, 1], int16, int32 or uint8. sample_rate: that of the samples, in Hz; a file has its own.

        A recording of less than a second is padded with zeros, which the mean over time leaves out. A longer one is cut
        into one-second windows that start a quarter of a second apart; the most confident window gives the answer.
        Raises KwsError, in one sentence, for what is not a recording.
        """
        wave = torch.from_numpy(recording(wave, sample_rate))
        last = max(len(wave) - CLIP, 0)
        starts = [*range(0, last, SAMPLE_RATE // 4), last]  # the last window ends where the recording does
        posteriors = []
        for i in range(0, len(starts), 64):  # never all windows at once: they hold every sample four times
            windows = [wave[s : s + CLIP] for s in starts[i : i + 64]]
            samples = torch.tensor([len(w) for w in windows])
            windows = torch.stack([F.pad(w, (0, CLIP - len(w))) for w in windows])
            posteriors.append(self.logits(windows, samples).softmax(1).cpu())
        p = torch.cat(posteriors)
        best = p[p.max(1).values.argmax()]
        order = best.argsort(descending=True, stable=True)
        return [(self.labels[i], float(best[i])) for i in order]


def recording(wave, sample_rate):
    """What `predict` takes -> float32 (N,), mono, 16 kHz. Raises KwsError."""
    if isinstance(wave, (str, os.PathLike)):
        if not Path(wave).is_file():
            raise KwsError(f"{wave} does not exist; give the path of an audio file")
        try:
            samples = decode(wave)
        except Unreadable as e:
            raise KwsError(f"{wave} cannot be read as audio ({e}); give a whole wav, flac, ogg or mp3 file") from None
        return to_mono(samples, str(wave))
    if isinstance(wave, (list, tuple)) and any(isinstance(w, (str, os.PathLike)) for w in wave):
        raise KwsError("the wave is a list of paths; predict takes one recording, so call it once for each path")
    if sample_rate is None:
        raise KwsError("sample_rate is None; predict needs the rate of the samples, in Hz")
    return resample(to_mono(wave), sample_rate)
