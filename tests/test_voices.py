"""Synthetic speakers: what each engine is asked for, and which voices train."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from kwslib.io import KwsError
from kwslib.wake import voices
from kwslib.wake.pronunciation import ALONE, FLUENT, full_phones, full_vowels


def test_vowels_are_made_full_and_consonants_stay():
    """Only reduced vowels change; a diphthong that ends in a schwa is none of them."""
    rng = np.random.default_rng(0)
    said = [full_vowels("k@mpj'u:t#3", rng) for _ in range(40)]
    assert all(s.startswith("[[k") and s.endswith("]]") and "mpj'u:t" in s for s in said)
    assert len(set(said)) > 10 and any("@m" not in s for s in said)
    assert {full_vowels("sm'A@t", rng) for _ in range(20)} == {"[[sm'A@t]]"}
    spelled = [full_phones("pau k ax m p y uw t er pau", rng).split() for _ in range(40)]
    assert all([p for p in s if p in ("k", "m", "p", "y", "t")] == list("kmpyt") for s in spelled)
    assert {s[2] for s in spelled} >= {"aa", "eh", "ao"}


def test_a_phrase_said_alone_is_slower():
    jobs = [voices.jobs(["computer"], 12, {"espeak-ng": []}, 0, pace=pace) for pace in (FLUENT, ALONE)]
    fluent, alone = ([len(w) for w in voices.speak(j, workers=1) if w is not None] for j in jobs)
    assert len(alone) == 12 and np.mean(alone) > 1.15 * np.mean(fluent)


def test_listed_variants_speak_and_others_do_not():
    """Those of training, as many as asked for; the held-out ones stay out of every list."""
    few = voices.variants()[:2]
    made = voices.jobs(["hello", "world"], 5, {"espeak-ng": few, "flite": ["slt"]}, 0)
    assert {job.voice for job in made if job.engine == "espeak-ng"} == set(few)
    assert {job.engine for job in made} == {"espeak-ng", "flite"}
    assert {job.voice for job in voices.jobs(["hello"], 5, {"espeak-ng": few}, 0, held=True)} == {None}
    assert not set(voices.variants()) & set(voices.variants(held=True))


def test_pico_is_found_and_speaks_in_the_pace_that_was_asked_for(monkeypatch):
    """Through a stand-in for the package, which is to be compiled: like Pico, it goes on from what it has said."""

    class TtsEngine:
        def __init__(self, language):
            if language not in ("en-GB", "en-US"):
                raise RuntimeError("no such language")
            self.language, self.said = language, 0

        def speak(self, text):
            asked.append((self.language, self.rate, self.pitch))
            self.said += 1
            return (1000 * np.sin(np.arange(8000) * self.said)).astype(np.int16).tobytes() if text == "hello" else None

    asked, find = [], voices.importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "ttspico", SimpleNamespace(TtsEngine=TtsEngine))
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda name, *rest: name == "ttspico" or find(name, *rest))
    assert voices.engines()["pico"] == ["en-GB", "en-US"]
    jobs = [voices.Job("hello", "pico", voice, False, i, ALONE) for i in range(10) for voice in ("en-GB", "en-US")]
    said = [voices._speak(job) for job in jobs]
    assert np.array_equal(said[3], voices._speak(jobs[3]))  # whatever was said before
    languages, rates, pitches = zip(*asked)
    assert len(set(languages)) == 2 and 100 / 1.7 - 1 <= min(rates) < 75 and 90 < max(rates) <= 100 / 0.85 + 1
    assert 80 <= min(pitches) < max(pitches) <= 125
    assert 8000 / 1.2 - 20 < min(map(len, said)) < 7500 and 8500 < max(map(len, said)) < 8000 / 0.85 + 20  # throats
    assert voices._speak(jobs[0]._replace(text="…")) is None
    with pytest.raises(KwsError, match="install ttspico again"):
        voices._speak(jobs[0]._replace(voice="en-XX"))
