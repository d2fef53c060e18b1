"""Wake words: phrases, recordings and numbers that cannot be trained on, and phrases that are short or near another."""

import zipfile

import numpy as np
import pytest
import soundfile

from kwslib.io import KwsError
from kwslib.wake import loop, negatives, train
from kwslib.wake.loop import clean, own_takes
from kwslib.wake.windows import Windows

RATE = 16_000


def test_a_zip_that_cannot_be_unpacked_is_named(tmp_path):
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.wav", bytes(1000))
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 1  # the checksum is of other bytes now
    path.write_bytes(damaged)
    with pytest.raises(KwsError, match=r"mine.zip: one.wav cannot be unpacked .*; unpack it"):
        list(negatives.recordings(path))


def test_a_phrase_that_has_no_near_words_trains_with_common_ones():
    assert negatives.near(["mat", "top"], ["mat", "tɑp"], "ʌp", 5) == {}
    silence = np.full(RATE, 5, np.int16)
    pools = {"near": [], "word": [silence], "sentence": [silence], "long": [], "clip": []}
    drawn = Windows([[silence]], pools, [0], [], RATE, shares={"near": 1.0})
    assert drawn.draw(4)[1].sum() == 0


def test_words_near_one_phrase_are_not_those_of_another():
    """Else a phrase would be a negative of the other."""
    words = ["computer", "commuter", "snowboard"]
    sounds = ["kəmpjuɾɚ", "kəmjuɾɚ", "snoʊboɹd"]
    alone = negatives.near(words, sounds, "heɪkəmpjuɾɚ", 9)
    assert "computer" in alone and "computer" not in negatives.near(words, sounds, "heɪkəmpjuɾɚ", 9, ["kəmpjuɾɚ"])


@pytest.mark.parametrize(
    "phrases, options, message",
    [
        (["computer", "hey computer"], {}, "'hey computer' holds 'computer'"),
        (["computer"], {"clips": 0}, "clips is 0; give 1 or more"),
        (["computer"], {"steps": -1}, "steps is -1; give 1 or more"),
        (["computer"], {"seed": -1}, "seed is -1; give 0 or more"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anybody_speaks(phrases, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "speak", lambda *_: pytest.fail("it speaks"))
    with pytest.raises(KwsError, match=message):
        loop.train(phrases, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_phrases_and_recordings_are_checked(tmp_path):
    assert clean("Hey_Computer ") == "hey computer" and clean("what's up") == "whats up"
    with pytest.raises(KwsError, match="letters a to z"):
        clean("r2d2")
    (tmp_path / "other").mkdir()
    with pytest.raises(KwsError, match="no folder named"):
        own_takes([tmp_path], ["one", "two"])
    with pytest.raises(KwsError, match="different"):
        train(["stop", "Stop"], tmp_path / "out")
    with pytest.raises(KwsError, match="alarms_per_hour is -1; give a rate above 0"):
        train(["stop"], tmp_path / "out", alarms_per_hour=-1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(KwsError, match="holds no wav"):
        own_takes([tmp_path / "other"], ["one"])
    soundfile.write(tmp_path / "other/a.wav", np.ones(RATE) / 2, RATE)
    (tmp_path / "session_1").mkdir()  # no phrase, and none that could be said
    assert [len(t) for t in own_takes([tmp_path], ["other", "one"])] == [1, 0]
    assert [len(t) for t in own_takes([tmp_path], ["one"])] == [1]  # all that is there
