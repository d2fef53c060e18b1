"""Synthetic speakers: every text-to-speech engine at hand, found by itself.

espeak-ng (formants; hundreds of variants, in the extra `synthetic`), flite (four recorded speakers; `apt install
flite`), SVOX Pico (two recorded speakers; `pip install ttspico`, which compiles it) and Piper (neural; `pip install
piper-tts` and a voice file NAME.onnx with NAME.onnx.json, in a folder of $PIPER_VOICES, in ~/.local/share/piper-voices,
or in an installed package whose name holds "piper_voice"). Engines made from few recorded speakers are played at 0.85
to 1.2 times their rate, which moves pitch and formants: other throats.

Three in eight of espeak-ng's variants are held out of training, to estimate thresholds with voices never heard."""

import _ctypes
import ctypes
import importlib.util
import io
import multiprocessing
import os
import pkgutil
import re
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from kwslib.data import corpus
from kwslib.data.audio import Unreadable, decode, resample, to_int16
from kwslib.data.fetch import progress
from kwslib.data.synthetic import ACCENTS, NATIVE, ODD, SPLIT_OF_VARIANT, Synthetic, to_16k
from kwslib.io import SAMPLE_RATE, KwsError, cores
from kwslib.wake.pronunciation import FLUENT, SHARE, Pace, full_phones, full_vowels

LICENCES = {
    "espeak-ng": "GPL-3.0, its speech free",
    "flite": "BSD-like, CMU",
    "pico": "Apache-2.0, SVOX",
    "piper": "GPL-3.0; each voice has its own licence",
}
MNEMONICS, IPA = 0, 2  # modes of espeak_TextToPhonemes


class Job(NamedTuple):
    """One text that a synthetic speaker says: engine, its voice (None draws one), seed; held-out voices or not, or a
    split's own; in a sentence's pace or alone."""

    text: str
    engine: str
    voice: str
    held: bool | str
    seed: int
    pace: Pace = FLUENT


def engines():
    """{engine: its voices}: what this machine can speak with. Raises KwsError where there is nothing.

    espeak-ng's list is empty: a variant is drawn anew for every clip. A list of some (see `variants`) keeps to them."""
    found = {}
    if importlib.util.find_spec("espeakng_loader"):
        found["espeak-ng"] = []
    if shutil.which("flite"):
        listed = subprocess.run(["flite", "-lv"], capture_output=True, text=True).stdout.split(":")[-1].split()
        found["flite"] = sorted(set(listed) - {"kal", "awb_time"})  # at 8 kHz; says nothing but the time
    if importlib.util.find_spec("piper") and (files := piper_files()):
        found["piper"] = files
    if importlib.util.find_spec("ttspico"):
        found["pico"] = ["en-GB", "en-US"]
    if "espeak-ng" not in found:
        raise KwsError("wake words need espeak-ng, for phonemes too; install it with: pip install kwslib[synthetic]")
    return found


def names(found):
    """{engine: voices} as a card says it: a Piper voice by the name of its file, wherever that lies."""
    return {engine: [Path(voice).name for voice in own] for engine, own in found.items()}


def only_formants(found):
    """Whether no voice of {engine: voices} is made from recordings of people."""
    return set(found) == {"espeak-ng"}


def piper_files():
    """Paths of the Piper voices at hand."""
    folders = [Path(p) for p in os.environ.get("PIPER_VOICES", "").split(os.pathsep) if p]
    folders.append(Path.home() / ".local/share/piper-voices")
    folders += [Path(m.module_finder.path, m.name) for m in pkgutil.iter_modules() if "piper_voice" in m.name]
    return sorted(str(p) for f in folders for p in f.rglob("*.onnx") if p.with_name(p.name + ".json").exists())


def jobs(texts, count, found, seed, held=False, pace=FLUENT):
    """`count` jobs for each text, said in `pace`. An engine has a share of them by its voices, espeak-ng that of three,
    unless its variants are listed; held-out voices are espeak-ng's alone."""
    rng, made = np.random.default_rng(seed), []
    shares = [(e, v) for e in found if not held for v in found[e]]
    shares = [("espeak-ng", None)] * 3 * (held or not found["espeak-ng"]) + shares
    for i, text in enumerate(texts):
        order = rng.permutation(len(shares)) if count < len(shares) else np.arange(len(shares))
        for j in range(count):
            engine, voice = shares[order[j % len(shares)]]
            made.append(Job(text, engine, voice, held, seed * 1_000_003 + i * 1009 + j, pace))
    return made


def speak(wanted, what="speaking", workers=None):
    """Jobs -> int16 waves at 16 kHz, in their order; None where an engine says nothing."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    workers = workers or min(cores(), 1 + len(wanted) // 50)
    with ProcessPoolExecutor(workers, spawn, corpus._begin, (None,)) as pool, progress(len(wanted), what) as bar:
        waves = []
        for wave in pool.map(_speak, wanted, chunksize=16):
            waves.append(wave)
            bar.update()
    return waves


def phonemes(texts):
    """The IPA of each text, as espeak-ng has it, without stress and length: list of str."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, corpus._begin, (None,)) as pool:
        found = pool.submit(_phonemes, list(texts), IPA).result()
    return [re.sub(r"[ˈˌː\s_‍-]|\(.*?\)", "", ipa) for ipa in found]


# -- in worker processes


@lru_cache
def _synthetic():
    return Synthetic()


def _phonemes(texts, mode):
    """What espeak-ng's American voice says for each text: in IPA, or in its own mnemonics."""
    library, found = ctypes.CDLL(_synthetic().library), []
    if library.espeak_Initialize(2, 0, str(_synthetic().data).encode(), 0) != NATIVE:
        raise KwsError("espeak-ng cannot start; reinstall espeakng-loader")
    library.espeak_SetVoiceByName(b"en-us")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    for text in texts:
        rest, parts = ctypes.c_char_p(text.encode()), []
        while rest.value:
            parts.append((library.espeak_TextToPhonemes(ctypes.byref(rest), 1, mode) or b"").decode())  # from UTF-8
        found.append("".join(parts))
    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)  # or `speak` would not load it afresh
    return found


@lru_cache(4096)
def _mnemonics(text):
    return _phonemes([text], MNEMONICS)[0]


@lru_cache(4096)
def _phones(text):
    command = ["flite", "-voice", "slt", "-ps", "-t", text, "-o", "/dev/null"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _speak(job):
    rng = np.random.default_rng(job.seed)
    try:
        wave = {"espeak-ng": _espeak, "flite": _flite, "piper": _piper, "pico": _pico}[job.engine](job, rng)
    except Unreadable:
        return None
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=1e-9))
    if len(loud) < SAMPLE_RATE // 20:
        return None
    wave = wave[loud[0] : loud[-1] + 1]
    return to_int16(_compressed(rng, 0.9 * wave / np.abs(wave).max()))[0]


def _compressed(rng, wave):
    """A third of the clips through Opus, as recordings from browsers come: or its traces would tell real from made."""
    if rng.uniform() < 0.67:
        return wave
    raw = io.BytesIO()
    level = rng.uniform(0.3, 1)
    soundfile.write(raw, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return decode(raw.getvalue())


def variants(held=False):
    """Names of espeak-ng's variants, in an order drawn once: those of training, the held-out ones, or a split's."""
    split = {False: ("training",), True: ("validation", "testing")}.get(held, (held,))
    names = np.random.default_rng(0).permutation(sorted(p.name for p in Path(_synthetic().data, "voices/!v").iterdir()))
    names = [str(n) for n in names if not ODD.search(n)]
    return [n for i, n in enumerate(names) if SPLIT_OF_VARIANT[i % len(SPLIT_OF_VARIANT)] in split]


def _in_full(job, rng):
    """Whether this clip has full vowels."""
    return job.pace != FLUENT and rng.uniform() < SHARE


def _espeak(job, rng):
    pool = [job.voice] if job.voice else variants(job.held)
    voice = f"{ACCENTS[rng.integers(len(ACCENTS))]}+{pool[rng.integers(len(pool))]}"
    slow, fast = job.pace.words
    pitch, spread, rate = rng.uniform((20, 20, slow), (85, 80, fast))
    said = full_vowels(_mnemonics(job.text), rng) if _in_full(job, rng) else job.text
    return to_16k(_synthetic().speak(said, voice, pitch, spread, rate))


def _flite(job, rng):
    stretch, pitch = rng.uniform(*job.pace.stretch), rng.uniform(0.8, 1.25)
    mean = round(pitch * {"slt": 180, "rms": 95}.get(job.voice, 120))
    options = [f"duration_stretch={stretch:.3f}", f"int_f0_target_mean={mean}"]
    options.append(f"int_f0_target_stddev={rng.uniform(5, 30):.1f}")
    flags = [x for option in options for x in ("--setf", option)]
    said = ["-p", full_phones(_phones(job.text), rng)] if _in_full(job, rng) else ["-t", job.text]
    command = ["flite", "-voice", job.voice, *flags, *said, "-o", "/dev/stdout"]
    spoken = subprocess.run(command, capture_output=True).stdout[44:]  # without the header of a wav file
    if not spoken:
        raise Unreadable(f"flite says nothing for {job.text!r}")
    return _throat(rng, np.frombuffer(spoken, np.int16) / 32768)


@lru_cache
def _piper_voice(path):
    from piper import PiperVoice

    try:
        return PiperVoice.load(path)
    except Exception as e:  # onnxruntime has kinds of its own
        why = str(e).split("\n")[0][:200]
        raise KwsError(f"Piper voice {path} cannot be loaded ({why}); fetch it again, or remove it") from None


def _piper(job, rng):
    from piper import SynthesisConfig

    voice = _piper_voice(job.voice)
    people = voice.config.num_speakers
    how = SynthesisConfig(
        speaker_id=int(rng.integers(people)) if people > 1 else None,
        length_scale=float(rng.uniform(*job.pace.stretch)),
        noise_scale=float(rng.uniform(0.4, 1)), noise_w_scale=float(rng.uniform(0.5, 1.1)),
    )  # fmt: skip
    wave = np.concatenate([chunk.audio_float_array for chunk in voice.synthesize(job.text, how)])
    return _throat(rng, resample(wave.astype(np.float32), voice.config.sample_rate))


def _pico(job, rng):
    from ttspico import TtsEngine

    try:
        voice = TtsEngine(job.voice)  # anew: what it says depends on what it has said before
    except RuntimeError as e:
        raise KwsError(f"Pico cannot speak {job.voice} ({e}); install ttspico again, or remove it") from None
    voice.volume = 50  # at 100 it clips
    voice.rate = round(100 / rng.uniform(*job.pace.stretch))  # % of its usual rate
    voice.pitch = round(100 * rng.uniform(0.8, 1.25))
    if not (spoken := voice.speak(job.text)):  # at 16 kHz
        raise Unreadable(f"Pico says nothing for {job.text!r}")
    return _throat(rng, np.frombuffer(spoken, np.int16) / 32768)


def _throat(rng, wave):
    """The wave played at 0.85 to 1.2 times its rate."""
    return np.interp(np.arange(0, len(wave) - 1, rng.uniform(0.85, 1.2)), np.arange(len(wave)), wave)
