"""Continuous audio that is made: keywords at known times, noise without seams, sentences of voices never trained on."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass

import numpy as np
import torch

from kwslib.data.audio import to_float
from kwslib.data.tasks import noise_of
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, replacing
from kwslib.wake import negatives, report, voices

FADE = SAMPLE_RATE  # samples over which one piece of noise gives way to the next


@dataclass
class Stream:
    """wave: float32 (N,) at 16 kHz. events: (start s, end s, keyword) of every keyword's clip; other words are not
    listed. speakers: who says each keyword, a str for each event. rows: its clip in the corpus."""

    wave: np.ndarray
    events: list
    speakers: list
    rows: list = ()

    @property
    def hours(self):
        return len(self.wave) / SAMPLE_RATE / 3600


def noise_bed(rng, noise, size, levels=(1.0, 1.0), piece=20 * SAMPLE_RATE):
    """Noise float32 (size,) without a click: pieces of `noise` (n,) from random places, each at a mean level drawn
    evenly in dB between the two of `levels`; sine and cosine fades over FADE keep the power where pieces meet."""
    noise = np.asarray(noise, np.float32)
    piece, bed = min(piece, len(noise)), np.zeros(size + FADE, np.float32)
    fade = min(FADE, piece // 2)
    ramp = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
    for start in range(-fade, size, piece - fade):  # the first fade lies before the stream
        at = int(rng.integers(len(noise) - piece + 1))
        cut = noise[at : at + piece].copy()
        cut *= np.exp(rng.uniform(*np.log(levels))) / max(1e-6, np.sqrt(np.mean(cut**2)))
        cut[:fade] *= ramp
        cut[-fade:] *= ramp[::-1]
        first, last = max(0, start), min(len(bed), start + piece)
        bed[first:last] += cut[first - start : last - start]
    return bed[:size]


def kept(path, make):
    """What `make` gives, or the file that an earlier run left: our own programs' alone."""
    if not path.exists():
        print(f"  making {path}", file=sys.stderr, flush=True)
        made = pickle.dumps(make())
        with replacing(path) as scratch:
            scratch.write_bytes(made)
    return pickle.loads(path.read_bytes())


def joined(waves, seconds=600):
    """The int16 waves one after the other, their ends faded over 20 ms, in pieces of at least so many seconds: as they
    are heard where listening goes on. A detector that starts anew with each decides nothing for a window's length."""
    parts, fade = [], np.sin(np.linspace(0, np.pi / 2, SAMPLE_RATE // 50)) ** 2
    for wave in waves:
        wave, n = np.float32(wave), min(len(fade), len(wave))
        wave[:n] *= fade[:n]
        wave[len(wave) - n :] *= fade[:n][::-1]
        parts.append(np.int16(wave))
        if sum(map(len, parts)) >= seconds * SAMPLE_RATE:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)


def make_stream(
    corpus, keywords, split, hours, seed=0, heard_others=True, words_a_minute=12, keyword_share=0.5, snr=(5.0, 25.0)
):
    """A Stream of `split`'s speakers: words at random moments without overlap, half of them keywords, over noise.

    Every word is as loud as it was recorded, and no clip comes again before all have come. The noise, of whole files
    held out, is `snr` dB below the words' average and changes every 20 s without a click. With `heard_others` false,
    the validation stream takes other words from the training speakers too: the model was not trained on them. Raises
    KwsError where the corpus has no such words, or no noise.
    """
    rng = np.random.default_rng([seed, len(split)])
    known = np.isin(corpus.words, keywords)
    inside = corpus.splits == split
    outside = inside | (corpus.splits == "training") if split == "validation" and not heard_others else inside
    pools = [np.flatnonzero(inside & known), np.flatnonzero(outside & ~known)]
    if not all(map(len, pools)):
        raise KwsError(
            f"corpus {corpus.root} has no {'keywords' if not len(pools[0]) else 'other words'} in {split} "
            "for a stream; take another corpus or task"
        )
    size, order = round(hours * 3600 * SAMPLE_RATE), [[], []]
    loud = np.sqrt(np.mean(to_float(torch.from_numpy(np.asarray(corpus.waves[pools[0][:500]]))).numpy() ** 2))
    # Not audio.mix_at_snr: one level for all words, which are added where they fall, not a ratio for each clip.
    levels = loud / 10 ** (np.array(snr[::-1]) / 20)
    wave = noise_bed(rng, noise_of(corpus, split).flatten(), size, levels)
    events, speakers, rows, at, gap = [], [], [], 0.0, 60 / words_a_minute - CLIP / SAMPLE_RATE
    while True:
        at += rng.exponential(gap)
        first = round(at * SAMPLE_RATE)
        if first + CLIP > size:
            return Stream(np.clip(wave, -1, 1), events, speakers, rows)
        kind = 0 if rng.random() < keyword_share else 1
        order[kind] = order[kind] or rng.permutation(pools[kind]).tolist()
        row = order[kind].pop()
        samples = int(corpus.samples[row])
        wave[first : first + samples] += corpus.waves[row, :samples] / np.float32(32768)
        if kind == 0:
            events.append((first / SAMPLE_RATE, (first + samples) / SAMPLE_RATE, str(corpus.words[row])))
            speakers.append(str(corpus.speakers[row]))
            rows.append(int(row))
        at = (first + CLIP) / SAMPLE_RATE


def sentences(words, hours, split, flite=None, noise=None, seed=0, at_once=200, workers=1):
    """Waves, int16, of at least `hours` of ordinary speech, made in pieces: sequences of 3 to 8 of the `words`, said by
    the voices of a split of espeak-ng and, one in four, by the recorded speaker `flite`; each in a room, over coloured
    noise, or a random piece of `noise` (n,) int16, 10 to 30 dB below."""
    rng, left = np.random.default_rng(seed), hours * 3600 * SAMPLE_RATE
    found = voices.engines()
    if flite not in found.get("flite", []):
        flite = None
    while left > 0:
        texts = negatives.sentences(words, at_once, int(rng.integers(1 << 31)))
        jobs = [
            voices.Job(text, *(("flite", flite) if flite and i % 4 == 0 else ("espeak-ng", None)), split, seed)
            for i, (text, seed) in enumerate(zip(texts, rng.integers(1 << 31, size=len(texts)).tolist()))
        ]
        for wave in voices.speak(jobs, "sentences", workers):
            if wave is not None and left > 0:
                wave = report.scene(rng, wave, noise)
                left -= len(wave)
                yield wave
