"""Spotters that hear, and sounds for them, in chunks."""

import itertools

import numpy as np
import torch

import kwslib
from kwslib.checkpoint import frontend_of
from kwslib.models.ensemble import members_of
from kwslib.models.registry import build
from kwslib.spotter import KeywordSpotter
from kwslib.training.config import Config

LABELS = ["go", "stop", "yes"]
CLOSE = dict(atol=1e-5, rtol=1e-5)


def a_spotter(name, detector=None, normalise=None, members=1, **features):
    """A model that was never trained, with weights that tell sounds apart."""
    torch.manual_seed(0)
    model = build(name, len(LABELS), members)
    if name in ("mamba_light", "mamba_mel_small"):
        width = members_of(model)[0].frontend.project[0].in_features // 8
        features = {"n_mels": width if name == "mamba_light" else 128} | features
    options = Config(model=name, corpus="-", out="-", **features)
    card = {"model": name, "labels": LABELS, "features": frontend_of(options).options}
    card["normalisation"] = normalise or {"mean": -30.0, "std": 20.0}
    return KeywordSpotter(model, card | ({"detector": detector} if detector else {}))


LOG = {"scale": "log", "center": False, "n_fft": 512, "hop_length": 160, "win_length": 400}
SPOTTERS = {
    "light": lambda: kwslib.load("mamba_light"),
    "mel small": lambda: kwslib.load("mamba_mel_small"),  # its hop does not divide that of the decisions
    "mfcc small": lambda: kwslib.load("mamba_mfcc_small"),
    "log": lambda: a_spotter("mamba_light", {"window_s": 1.5, "smooth": 3}, {"mean": -5.0, "std": 4.0}, **LOG),
    "two": lambda: a_spotter("mamba_light", {"window_s": 1.5, "smooth": 3}, {"mean": -5.0, "std": 4.0}, 2, **LOG),
    "reflect": lambda: a_spotter("mamba_light", n_fft=512, hop_length=160, pad_mode="reflect"),
    "retnet": lambda: a_spotter("retnet", n_mels=128),
    "cnn": lambda: a_spotter("keyword_cnn", n_fft=400, hop_length=200),
}
CARRY = ("light", "mel small", "mfcc small", "log", "two")


def sound(seconds=3.2, rate=16000, seed=0):
    """Tones that come and go over noise, with a pause in which there is next to nothing."""
    t = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (300 + 400 * np.floor(t * 3)) * t) * np.sin(np.pi * t) ** 2
    wave += np.random.default_rng(seed).normal(0, 0.01, len(t))
    return np.where((t > 1.5) & (t < 1.8), 1e-4 * wave, wave).astype(np.float32)


def fed(stream, wave, rate, sizes):
    """(times, scores, events) of a wave that comes in chunks of these sizes, again and again."""
    at, times, scores, events = 0, [], [], []
    for size in itertools.cycle(sizes):
        events += stream.feed(wave[at : at + size], rate) if at < len(wave) else stream.finish()
        times.append(stream.times)
        scores.append(stream.scores)
        if at >= len(wave):
            return np.concatenate(times), np.concatenate(scores), events
        at += size


CHUNKS = {"80 ms": [1280], "10 s": [160_000], "odd": [1, 7, 4801, 0, 333, 29]}
