"""The estimate of what Opus costs: what it refuses, what it compares, and the page that states it."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_corpus import as_zip, sound

from kwslib.data.tasks import Split
from kwslib.io import KwsError
from paper import opus_cost


def test_refusals(tmp_path, monkeypatch):
    as_zip(
        tmp_path / "s.zip", {"up/bb57d562_nohash_0.wav": sound()} | {f"up/{i:08x}_nohash_0.wav": b"" for i in range(30)}
    )
    with pytest.raises(KwsError, match=r"clips of .*s.zip are not encoded with --bitrate 16 .*; change OPTIONS"):
        opus_cost.write_twice(tmp_path / "s.zip", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(KwsError, match="opusenc is not installed; on Debian: apt-get install opus-tools"):
        opus_cost.main([str(tmp_path / "s.zip")])


def test_compare():
    """A spotter whose logits are the first two samples, in fractions of full scale."""

    class Spotter:
        labels = ["a", "b"]
        logits = staticmethod(lambda waves, samples: waves[:, :2])

    def split(first_two):
        waves, n = torch.zeros(3, 16000, dtype=torch.int16), np.array(["x", "y", "z"])
        waves[:, :2] = torch.tensor(first_two)
        return Split(waves, torch.tensor([0, 1, 1]), torch.full((3,), 16000), n, n, ["a", "b"])

    once, twice = split([[16384, 0], [0, 8192], [4096, 0]]), split([[16384, 0], [8192, 0], [0, 4096]])
    found = opus_cost.compare(Spotter, once, twice)
    assert found["accuracy_once"] == found["accuracy_twice"] == pytest.approx(2 / 3)
    assert (found["answers_changed"], found["right_only_once"], found["right_only_twice"]) == (2, 1, 1)
    assert found["logits_moved_largest"] == 0.25 and found["logits_moved_mean"] == pytest.approx(0.75 / 6)
    assert found["margin_median"] == 0.25
    with pytest.raises(KwsError, match="are not the same"):
        twice.paths = twice.paths[::-1]
        opus_cost.compare(Spotter, once, twice)


def test_the_page_says_what_was_found(root):
    page = " ".join((root / "docs/reproduce.md").read_text().split())
    for found in json.loads((root / "results/opus.json").read_text())["models"].values():
        assert f"from {found['accuracy_once']:.2%} to {found['accuracy_twice']:.2%}".replace("%", " %") in page
        assert f"({found['right_only_once']} " in page and f"{found['right_only_twice']} gained)" in page
        assert f"{found['clips']:,} clips" in page
