"""Sources: samples, the split that a name belongs to, and synthetic speech."""

import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from kwslib.data import corpus as corpus_module
from kwslib.data.audio import to_int16
from kwslib.data.corpus import pack
from kwslib.data.folder import which_set
from kwslib.data.synthetic import Synthetic
from kwslib.io import KwsError

sf = pytest.importorskip("soundfile")


def test_int16_is_exact():
    every = np.arange(-32768, 32768)
    samples, clipped = to_int16((every / 32768).astype(np.float32))
    np.testing.assert_array_equal(samples, every)
    assert not clipped and to_int16(np.array([1.5, -2.0]))[0].tolist() == [32767, -32768]


def test_hash_rule_gives_the_official_split_of_real_names(real_clips):
    names = [n.rsplit("/", 1)[1] for n in zipfile.ZipFile(real_clips).namelist() if "_nohash_" in n]
    count = Counter(which_set(n.split("_nohash_")[0]) for n in names)
    assert count == {"training": 16986, "validation": 2265, "testing": 2835}


TINY = {"words": ["yes", "three", "tree"], "speakers": (3, 2, 2)}


def test_synthetic_is_deterministic_and_splits_speakers(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE", 4)
    one = pack("synthetic", tmp_path / "one", workers=1, **TINY)
    two = pack("synthetic", tmp_path / "two", workers=2, **TINY)
    assert one.checksum == two.checksum and (one.noise == two.noise).all()
    other = pack("synthetic", tmp_path / "other", workers=2, seed=1, **TINY)
    assert other.checksum != one.checksum
    assert one.card["synthetic"] is True and "espeak-ng" in one.card["attribution"]
    assert one.card["clips"] == {"training": 9, "validation": 6, "testing": 6}
    assert one.card["speakers"] == {"training": 3, "validation": 2, "testing": 2}
    assert len(set(zip(one.speakers, one.splits))) == len(set(one.speakers)) == 7
    assert len({w.tobytes() for w in one.waves}) == 21 and one.waves.max(axis=1).min() > 500
    assert one.card["noise_seconds"] == 60 and one.card["skipped"] == []


def test_synthetic_snr_and_voices():
    source = Synthetic(snr=(40, 40))
    training, testing = (
        {v.split("+")[1] for split, (v, *_) in source.voices if split == wanted} for wanted in ("training", "testing")
    )
    assert len(training) > 30 and len(testing) > 15 and not training & testing
    # The same clip at 40 dB and at 0 dB differs in its noise alone: quiet parts rise.
    quiet, noisy = (Synthetic(words=["yes"], snr=(db, db)) for db in (40, 0))
    floor = [
        np.percentile(np.abs(s.decode(s.clips[0])[0]) / np.abs(s.decode(s.clips[0])[0]).max(), 20)
        for s in (quiet, noisy)
    ]
    assert floor[1] > 5 * floor[0]


@pytest.mark.parametrize(
    "match, options", [("cannot be spoken", {"words": ["no way"]}), ("three positive counts", {"speakers": (3, 0, 2)})]
)
def test_synthetic_refuses(tmp_path, match, options):
    with pytest.raises(KwsError, match=match) as e:
        pack("synthetic", tmp_path / "o", workers=1, **options)
    assert "\n" not in str(e.value) and not (tmp_path / "o").exists()


def test_synthetic_without_espeak(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(KwsError, match=r"needs espeak-ng; install it with: pip install kwslib\[synthetic\]"):
        pack("synthetic", tmp_path / "o", workers=1)


def test_packing_leaves_the_threads_of_the_caller(tmp_path):
    tone = 0.1 * np.sin(np.arange(12 * 44100) / 10)
    for name, samples in (("up/aa_nohash_0.wav", 44100), ("_background_noise_/hum.wav", 12 * 44100)):
        (tmp_path / "s" / name).parent.mkdir(parents=True)
        sf.write(tmp_path / "s" / name, tone[:samples], 44100)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        packed = pack(tmp_path / "s", tmp_path / "o", workers=1)
        assert torch.get_num_threads() == 2 and len(packed.noise) == 12 * 16000
    finally:
        torch.set_num_threads(before)
