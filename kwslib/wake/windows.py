"""Windows to train on: a word at a random place, what came before and after, then a room, a microphone and noise."""

import numpy as np
import torch

from kwslib.data.audio import coloured_noise, mix_at_snr
from kwslib.io import SAMPLE_RATE

SHARES = {"phrase": 0.28, "part": 0.08, "near": 0.12, "word": 0.1, "clip": 0.08, "speech": 0.2, "mined": 0.14}
LEVELS = (-24, 3)  # dB of the peak over full scale: loud recordings clip
ROOMS, TAIL = 256, 8192  # impulse responses, and their length in samples


class Windows:
    """Draws batches. positives: for each phrase a list of int16 waves that hold it and nothing else; negatives: dict of
    lists of int16 waves: `near` words, common `word`s, `sentence`s, and real speech, perhaps none, in a short `clip` or
    `long`; word_of: the class of each of `word`; noises: int16 waves of real noise, perhaps none; size: samples of a
    window; past: samples that are heard before it in half of the batches; shares:
    what a batch is made of.

    own: for each phrase its user's recordings, trimmed, which make up half of the positives where there are any;
    mined: windows that an earlier state of the model took for a phrase."""

    def __init__(self, positives, negatives, word_of, noises, size, seed=0, past=0, shares=SHARES):
        self.positives, self.negatives, self.word_of = positives, negatives, word_of
        self.size, self.rng, self.own = size, np.random.default_rng(seed), None
        self.mined, self.past, self.shares = [], past, shares
        made = [coloured_noise(self.rng, 10 * SAMPLE_RATE, e).astype(np.float32) * 0.1 for e in (0, 0.5, 1, 1.5, 2)]
        self.noises = [np.float32(n) / 32768 for n in noises if len(n) > 2 * size] or made
        self.noises += made if noises else []
        rooms = np.stack([_room(self.rng) for _ in range(ROOMS)])
        self.rooms, self.filters = torch.from_numpy(rooms), {}

    def draw(self, n):
        """(waves (n, size or past + size) float32, targets (n, phrases) in 0, 1, words int64 (n,): the class of a lone
        word or -1)."""
        kinds = self.rng.choice(list(self.shares), n, p=list(self.shares.values()))
        made = [self._one(kind) for kind in kinds]
        waves = np.stack([m[0] for m in made])
        if self.past and self.rng.uniform() < 0.5:
            waves = np.concatenate([np.stack([self._earlier() for _ in range(n)]), waves], 1)
        waves = torch.from_numpy(waves)
        targets = torch.zeros(n, len(self.positives))
        for i, (_, phrase, _) in enumerate(made):
            if phrase >= 0:
                targets[i, phrase] = 1
        return self._recorded(waves), targets, torch.tensor([m[2] for m in made])

    def _pick(self, waves):
        return waves[int(self.rng.integers(len(waves)))]

    def _one(self, kind):
        rng, word = self.rng, -1
        phrase = int(rng.integers(len(self.positives)))
        if kind in ("phrase", "part"):
            own = self.own and self.own[phrase] and rng.uniform() < 0.5
            wave = self._pick(self.own[phrase] if own else self.positives[phrase])
        elif kind == "mined" and self.mined:
            return self._pick(self.mined).astype(np.float32) / 32768, -1, -1
        elif kind == "word":
            index = int(rng.integers(len(self.word_of)))
            wave, word = self.negatives[kind][index], self.word_of[index]
        else:
            near = self.negatives["near"] or self.negatives["word"]  # a phrase may be too short for any
            wave = self._pick(near) if kind == "near" else self._speech(kind == "clip")
        window, size = np.zeros(self.size, np.float32), self.size
        speed = rng.uniform(0.87, 1.15)
        if len(wave) > 1.2 * size:  # speech: a cut of it
            cut = int(rng.integers(len(wave) - int(1.2 * size)))
            self._put(window, wave[cut : cut + int(1.2 * size)], 0, speed)
            return window, -1, -1
        length = int(len(wave) / speed)
        if kind == "part":  # a third to two thirds of it are outside, before or after
            lost = int(rng.uniform(0.35, 0.7) * length)
            at = -lost if rng.uniform() < 0.5 else size - length + lost
        elif kind == "phrase":  # whole, but for the fading ends of a long one
            at = int(rng.integers(min(0, size - length), max(1, size - length + 1)))
        else:
            at = int(rng.integers(-length // 4, size - 3 * length // 4))
        end = self._put(window, wave, at, speed)
        for before in (True, False):
            if rng.uniform() < 0.35:
                self._beside(window, at, end, before)
                word = -1
        return window, phrase if kind == "phrase" else -1, word

    def _put(self, window, wave, at, speed, gain=1.0):
        """Add the wave, played at `speed`, from sample `at` on, its ends faded; returns where it ends."""
        rms = max(1.0, np.sqrt(np.mean(np.square(wave, dtype=np.float32))))
        wave = np.interp(np.arange(0, len(wave) - 1, speed), np.arange(len(wave)), wave) * (gain * 0.1 / rms)
        start, end = max(0, at), min(len(window), at + len(wave))
        if end > start:
            window[start:end] += wave[start - at : end - at]
        return at + len(wave)

    def _beside(self, window, start, end, before):
        """Another word, or the middle of real speech, before `start` or after `end`, at a gap of up to 0.25 s."""
        rng = self.rng
        other = self._pick(self.negatives["word"]) if rng.uniform() < 0.4 else self._speech(rng.uniform() < 0.4)
        other = other[: len(window)] if len(other) < len(window) else self._cut(other, len(window))
        gap, gain = int(rng.uniform(0, 0.25) * SAMPLE_RATE), 10 ** (rng.uniform(-6, 3) / 20)
        if before and start - gap > 0:
            self._put(window, other, start - gap - int(len(other)), 1.0, gain)
        elif not before and end + gap < len(window):
            self._put(window, other, int(end) + gap, 1.0, gain)

    def _speech(self, short):
        """A short clip of real speech, or a long wave, three in ten synthetic; what there is."""
        order = ["clip"] if short else []
        order += ["long", "sentence"] if self.rng.uniform() < 0.7 else ["sentence"]
        return self._pick(next(self.negatives[k] for k in order if self.negatives[k]))

    def _earlier(self):
        """What is heard before a window: speech, another word or a phrase, or nothing."""
        rng, past = self.rng, np.zeros(self.past, np.float32)
        kind = rng.choice(["speech", "word", "phrase", "nothing"], p=[0.5, 0.1, 0.15, 0.25])
        if kind == "nothing":
            return past
        if kind == "speech":
            wave = self._speech(rng.uniform() < 0.3)
        else:
            wave = self._pick(self._pick(self.positives) if kind == "phrase" else self.negatives["word"])
        wave = self._cut(wave, self.past) if len(wave) > self.past else wave
        self._put(past, wave, int(rng.integers(self.past - len(wave) + 1)), 1.0)
        return past

    def _cut(self, wave, size):
        start = int(self.rng.integers(len(wave) - size + 1))
        return wave[start : start + size]

    def _recorded(self, waves):
        """Room, microphone, noise and level."""
        rng, (n, size) = self.rng, waves.shape
        if size not in self.filters:
            self.filters[size] = torch.fft.rfft(self.rooms, size + TAIL)
        frequency = torch.linspace(0, 8000, self.filters[size].shape[1]).clamp_min(60)
        octaves = (frequency / 1000).log2()
        tilt = torch.from_numpy(rng.uniform(-3, 3, (n, 1)).astype(np.float32)) * octaves
        phase, rate = (torch.from_numpy(rng.uniform(*r, (2, n, 1)).astype(np.float32)) for r in ((0, 6.3), (0.5, 2.5)))
        depth = torch.from_numpy(rng.uniform(0, 4, (2, n, 1)).astype(np.float32))
        tilt = tilt + sum(d * (r * octaves + p).sin() for d, r, p in zip(depth, rate, phase))  # dB
        filters = 10 ** (tilt / 20) * self.filters[size][rng.integers(ROOMS, size=n)]
        waves = torch.fft.irfft(torch.fft.rfft(waves, size + TAIL) * filters, size + TAIL)[:, :size]
        noise = torch.from_numpy(np.stack([self._cut(self._pick(self.noises), size) for _ in range(n)]))
        snr = torch.from_numpy(rng.uniform(0, 35, n).astype(np.float32))
        waves = mix_at_snr(waves, noise, snr, torch.from_numpy(rng.uniform(size=n) < 0.8))
        level = torch.from_numpy(10 ** (rng.uniform(*LEVELS, (n, 1)) / 20).astype(np.float32))
        return (waves * level / waves.abs().amax(1, keepdim=True).clamp_min(1e-6)).clamp(-1, 1)


def _room(rng):
    """An impulse response, float32 (TAIL,): the direct sound, and a tail 0 to 15 dB below it; a third has none."""
    tail = np.zeros(TAIL)
    if rng.uniform() > 0.33:
        decay = rng.uniform(0.08, 0.5)
        tail = rng.standard_normal(TAIL) * 10 ** (-3 * np.arange(TAIL) / (decay * SAMPLE_RATE))
        tail[:40] = 0  # the first reflection comes after 2.5 ms
        tail *= 10 ** (-rng.uniform(0, 15) / 20) / np.sqrt((tail**2).sum())
    tail[0] = 1
    return tail.astype(np.float32)
