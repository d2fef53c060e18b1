"""Classification tasks: a task selects clips of one split of a corpus and gives each its class.

Tasks: "all" (every word of the corpus), "v2-35" (the 35 words of Speech Commands V2), "v2-12" (ten commands,
`_unknown_`, `_silence_`; Warden 2018, arXiv 1804.03209, section 7) or a list of words, in which `_unknown_`
stands for all other words of the corpus and `_silence_` for background noise alone."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from kwslib.data.folder import NOISE, SPLITS
from kwslib.io import CLIP, SAMPLE_RATE, KwsError

UNKNOWN, SILENCE = "_unknown_", "_silence_"
COMMANDS = "yes no up down left right on off stop go".split()
V2_35 = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no "
    "off on one right seven sheila six stop three tree two up visual wow yes zero"
).split()
SHARE = 0.1  # of the wanted clips, each for unknown and for silence


@dataclass
class Split:
    """waves: int16 (n, 16000); targets: int64 (n,), indices into labels; samples: int64 (n,), true lengths;
    speakers, paths: str (n,); labels: the names of the classes."""

    waves: torch.Tensor
    targets: torch.Tensor
    samples: torch.Tensor
    speakers: np.ndarray
    paths: np.ndarray
    labels: list


def task_labels(corpus, task):
    """The classes of a task, in the order of the model's outputs: words sorted (v2-12: as published), then
    `_unknown_` and `_silence_`. Raises KwsError where the corpus lacks a word."""
    held = sorted(set(corpus.words.tolist()))
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
    place = {word: i for i, word in enumerate(labels)}
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    inside = corpus.splits == split
    known = np.isin(corpus.words, [w for w in labels if w not in (UNKNOWN, SILENCE)])
    rows = np.flatnonzero(inside & known)
    if not len(rows):
        raise KwsError(f"corpus {corpus.root} has no {split} clips of these words; choose others")
    share, quiet = math.ceil(SHARE * len(rows)), 0
    if UNKNOWN in labels:
        others = np.flatnonzero(inside & ~known)
        if not len(others):
            raise KwsError(f"corpus {corpus.root} has no other words in {split} for {UNKNOWN}; leave that out")
        rows = np.sort(np.concatenate([rows, rng.permutation(others)[:share]]))
    if SILENCE in labels:
        noise, quiet = noise_of(corpus, split), share
    waves = np.empty((len(rows) + quiet, CLIP), np.int16)
    np.take(corpus.waves, rows, axis=0, out=waves[: len(rows)], mode="clip")  # other modes copy twice
    targets = [place.get(word, place.get(UNKNOWN)) for word in corpus.words[rows].tolist()]
    targets = torch.tensor(targets + [place.get(SILENCE)] * quiet)
    paths = corpus.paths[rows].tolist()
    for i in range(len(rows), len(waves)):
        piece, start = rng.integers(len(noise)), rng.integers(noise.shape[1] - CLIP + 1)
        waves[i] = np.rint(noise[piece, start : start + CLIP] * rng.uniform())
        paths.append(f"{NOISE}/{split}-{piece}-{start}")
    samples = torch.from_numpy(np.concatenate([corpus.samples[rows], np.full(quiet, CLIP)]))
    speakers = np.concatenate([corpus.speakers[rows], np.full(quiet, SILENCE)])
    return Split(torch.from_numpy(waves), targets, samples, speakers, np.array(paths), labels)
