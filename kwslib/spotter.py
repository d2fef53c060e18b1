"""Inference: the most probable word of a recording."""

import os
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import TrainedModel, load_model
from kwslib.data.audio import Unreadable, resample, stream, to_mono
from kwslib.io import CLIP, SAMPLE_RATE, KwsError

STEP = SAMPLE_RATE // 4  # samples between the starts of two windows of predict
BATCH = 64  # windows
# How a detector listens, unless its card says otherwise under "detector": windows of window_s seconds, hop_s apart, and
# a score is the mean over the last `smooth` of them.
LISTENING = {"window_s": CLIP / SAMPLE_RATE, "hop_s": 0.1, "smooth": 2}


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

    @torch.no_grad()
    def scores(self, wave, sample_rate=None):
        """(times (T,), scores (T, labels)), float64 and float32: how sure the model is, at every time, of each label.

        wave, sample_rate: as for `predict`. A time, in s, is the end of the window that it speaks of: the first window
        begins with the recording, which is padded with zeros if it is shorter, and the next follow `hop_s` apart. A
        score is a log-odds, the mean over the last `smooth` windows (see LISTENING): of the label alone for a detector,
        of the label against all others for a classifier. A threshold is compared with it."""
        how = LISTENING | self.card.get("detector", {})
        window, step = round(how["window_s"] * SAMPLE_RATE), round(how["hop_s"] * SAMPLE_RATE)
        windows, found = cut(recording(wave, sample_rate), window, step, whole=True), []
        while batch := list(islice(windows, BATCH)):
            padded = torch.stack([F.pad(torch.from_numpy(w), (0, window - len(w))) for w in batch])
            found.append(log_odds(self.logits(padded), "detector" in self.card).cpu())
        total = F.pad(torch.cat(found).double().cumsum(0), (0, 0, 1, 0))
        ends = torch.arange(1, len(total))
        starts = (ends - how["smooth"]).clamp_min(0)
        means = (total[ends] - total[starts]) / (ends - starts)[:, None]
        return (window + step * np.arange(len(ends))) / SAMPLE_RATE, means.float().numpy()

    def stream(self, **how):
        """A `kwslib.stream.Stream`, which hears this model's words in chunks of samples; how: its options."""
        from kwslib.stream import Stream

        return Stream(self, **how)

    def spot(self, wave, sample_rate=None, **how):
        """[Event(word, time, score), …]: every word in a recording of any length, each with its time in s.

        wave, sample_rate: as for `predict`; of a long file, a minute is in memory. how: the options of
        `kwslib.stream.Stream`, such as threshold."""
        stream, found = self.stream(**how), []
        for block in recording(wave, sample_rate):
            found += stream.feed(block)
        return found + stream.finish()


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
