"""A small corpus of tones, and trainings on it that take seconds: for the tests of training and of what follows it."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kwslib.io import write_csv, write_json
from kwslib.training.config import Config
from kwslib.training.loop import train

WORDS = {"high": 2400, "low": 300, "middle": 900}
SPLITS = {"training": 8, "validation": 2, "testing": 2}  # speakers


def write_tones(root, words=WORDS, speakers=SPLITS, takes=4, hiss=1000, noise_seconds=10):
    """A packed corpus: each word a tone in `hiss`; each speaker has a pitch, and `takes` clips of each word."""
    rng = np.random.default_rng(0)
    rows, waves = [], []
    for i, split in enumerate(s for s, n in speakers.items() for _ in range(n)):
        pitch = rng.uniform(0.9, 1.1)
        for word, hz in words.items():
            for take in range(takes):
                samples = int(rng.integers(9000, 16001))
                wave = 3000 * np.sin(2 * np.pi * hz * pitch * np.arange(16000) / 16000) + rng.normal(0, hiss, 16000)
                waves.append(np.where(np.arange(16000) < samples, wave, 0).astype(np.int16))
                rows.append(
                    {
                        "path": f"{word}/s{i}_nohash_{take}.wav",
                        "word": word,
                        "speaker": f"s{i}",
                        "split": split,
                        "samples": samples,
                    }
                )
    root.mkdir()
    np.save(root / "waves.npy", np.array(waves))
    np.save(root / "noise.npy", rng.normal(0, 500, noise_seconds * 16000).astype(np.int16))
    write_csv(root / "index.csv", rows)
    write_json(
        root / "card.json",
        {
            "name": "tones",
            "source": "made",
            "synthetic": True,
            "licence": "CC0",
            "attribution": "",
            "checksum": "0" * 64,
            "clips": {s: len(words) * takes * n for s, n in speakers.items()},
            "speakers": speakers,
            "words": {w: {s: takes * n for s, n in speakers.items()} for w in words},
        },
    )
    return root


def recipe(corpus, out, **changes):
    small = dict(
        model="keyword_cnn",
        n_mels=16,
        n_fft=2048,
        hop_length=1600,
        epochs=3,
        batch_size=16,
        lr=5e-3,
        grad_clip=1.0,
        freq_mask=[1, 2],
        time_mask=[1, 2],
        shift_ms=20,
        noise=[0, 0.005],
        background_snr=[10, 30],
        precision="fp32",
        device="cpu",
        threads=1,
    )
    return Config(**{**small, "corpus": corpus, "out": out, **changes})


MAMBA = dict(model="mamba_mfcc_small", n_mels=40, lr=3e-3)


def run(*arguments, **changes):
    return train(recipe(*arguments, **changes), progress=False)


def same(a, b):
    a, b = (load_file(Path(x) / "model.safetensors") for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
