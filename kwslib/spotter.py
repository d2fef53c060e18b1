"""Inference: the most probable word of a recording."""

import os
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import TrainedModel, load_model
from kwslib.io import CLIP, SAMPLE_RATE
from kwslib.listening.windows import BATCH, LISTENING, cut, log_odds, recording


def load(path, device="cpu"):
    """The KeywordSpotter of a checkpoint: its file, its folder, or a pretrained name such as "mamba_light"."""
    spotter = load_model(path, device, KeywordSpotter)
    if spotter.card.get("detector") is None:  # a card may say null: no detector
        spotter.card.pop("detector", None)
    return spotter


class KeywordSpotter(TrainedModel):
    """A trained model that names the keyword in a recording of any rate and length: `predict`."""

    def predict(self, wave, sample_rate=None):
        """[(label, probability), …] of one recording, most probable first; of a list of paths, a list of these.

        wave: path of an audio file, or samples (N,), (channels, N) or (N, channels) as an array or tensor: floats in
        [-1, 1], int16, int32 or uint8. sample_rate: that of the samples, in Hz; a file has its own.

        A recording of less than a second is padded with zeros, which the mean over time leaves out. A longer one is cut
        into one-second windows that start a quarter of a second apart; the most confident window gives the answer.
        Files are read a minute at a time. A detector's probabilities, each of one label alone, are those of its highest
        `scores`: they need not sum to 1. Raises KwsError, in one sentence, for what is not a recording."""
        if isinstance(wave, (list, tuple)) and any(isinstance(w, (str, os.PathLike)) for w in wave):
            return [self.predict(w, sample_rate) for w in wave]
        if "detector" in self.card:
            return self._ranked(torch.from_numpy(self.scores(wave, sample_rate)[1]).amax(0).sigmoid())
        windows, best = cut(recording(wave, sample_rate)), None
        while batch := list(islice(windows, BATCH)):
            samples = torch.tensor([len(w) for w in batch])
            padded = torch.stack([F.pad(torch.from_numpy(w), (0, CLIP - len(w))) for w in batch])
            p = self.logits(padded, samples).softmax(1).cpu()
            top = p[p.max(1).values.argmax()]
            best = top if best is None or top.max() > best.max() else best
        return self._ranked(best)

    def _ranked(self, p):
        return [(self.labels[i], float(p[i])) for i in p.argsort(descending=True, stable=True)]

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
        """A `kwslib.listening.stream.Stream`, which hears this model's words in chunks of samples; how: its options."""
        from kwslib.listening.stream import Stream

        return Stream(self, **how)

    def spot(self, wave, sample_rate=None, **how):
        """[Event(word, time, score), …]: every word in a recording of any length, each with its time in s.

        wave, sample_rate: as for `predict`; of a long file, a minute is in memory. how: the options of
        `kwslib.listening.stream.Stream`, such as threshold."""
        stream, found = self.stream(**how), []
        for block in recording(wave, sample_rate):
            found += stream.feed(block)
        return found + stream.finish()
