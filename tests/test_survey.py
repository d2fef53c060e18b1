"""What `kws data` says of a corpus whose faults are known."""

import csv
import sys

import numpy as np
import pytest
from test_corpus import as_folder, sound

from kwslib import cli
from kwslib.data.corpus import pack
from kwslib.data.survey import draw, survey
from kwslib.io import KwsError

pytest.importorskip("soundfile")
N = 16000
TONE = 0.25 * np.sin(2 * np.pi * 440 * np.arange(N) / N)
INSIDE = TONE * (np.abs(np.arange(N) - 8000) < 4000)  # half a second in the middle


def waves():
    """{path: samples}; each clip has one fault, or none."""
    cut = np.where(np.arange(N) > 10000, TONE, 0.0001 * TONE)
    loud = np.clip(6 * np.roll(INSIDE, 3), -1, 1)
    return {
        "train/up/fine.wav": INSIDE,
        "train/up/tone.wav": 0.5 * TONE,  # touches both ends, but has no pauses
        "train/up/loud.wav": loud,
        "dev/up/cut.wav": cut,
        "dev/up/cut_too.wav": cut[::-1],
        "test/up/zero.wav": np.zeros(N),
        "test/up/quiet.wav": INSIDE / 1000,
        "test/up/again.wav": INSIDE,
        "train/up/ann_nohash_0.wav": 0.9 * INSIDE,
        "test/up/ann_nohash_1.wav": 0.8 * INSIDE,
    }


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    path = tmp_path_factory.mktemp("faulty")
    source = as_folder(path / "s", {name: sound(wave=w, subtype="PCM_16") for name, w in waves().items()})
    return pack(source, path / "o", workers=1)


def test_every_fault_is_found_and_nothing_else(faulty):
    found = survey(faulty)
    assert {(s["kind"], s["path"]): s["why"] for s in found["suspects"]} == {
        ("clipped", "train/up/loud.wav"): f"{(np.abs(waves()['train/up/loud.wav']) >= 32767 / 32768).sum()} samples",
        ("cut", "dev/up/cut.wav"): "at its end",
        ("cut", "dev/up/cut_too.wav"): "at its start",
        ("silent", "test/up/zero.wav"): "-100 dBFS",
        ("silent", "test/up/quiet.wav"): "-78 dBFS",
        ("duplicate", "train/up/fine.wav"): "as test/up/again.wav of testing",
        ("speaker", "test/up/ann_nohash_1.wav"): "in testing and training",
    }
    # A sine's power is half its squared amplitude; INSIDE sounds for half of its second.
    levels = dict(zip(faulty.paths.tolist(), found["levels"]))
    assert levels["train/up/tone.wav"] == pytest.approx(10 * np.log10(0.125**2 / 2), abs=0.01)
    assert levels["train/up/fine.wav"] == pytest.approx(10 * np.log10(0.25**2 / 4), abs=0.01)
    peaks = dict(zip(faulty.paths.tolist(), found["peaks"]))
    assert peaks["train/up/tone.wav"] == pytest.approx(20 * np.log10(0.125), abs=0.01)


def test_command(faulty, tmp_path, capsys):
    cli.command(["data", str(faulty.root), "--list", str(tmp_path / "all.csv")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("up ")] == [["up", "4", "2", "4"]]
    assert any(line.startswith("cut ") and line.split()[1] == "2" for line in lines)
    with open(tmp_path / "all.csv", newline="") as f:
        assert [*csv.DictReader(f)] == survey(faulty)["suspects"]


def test_figure(faulty, tmp_path, monkeypatch):
    found = survey(faulty)
    draw(faulty, found, str(tmp_path / "f.png"))
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KwsError, match="f.doc is of no kind that can be drawn; end it in .png"):
        draw(faulty, found, str(tmp_path / "f.doc"))
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(KwsError, match=r"a figure needs seaborn; install it with: pip install kwslib\[figures\]"):
        cli.data([str(faulty.root), "--figure", str(tmp_path / "g.png")])
    assert {p.name for p in tmp_path.iterdir()} == {"f.png"}


def test_a_corpus_without_faults(tmp_path, capsys):
    packed = pack(as_folder(tmp_path / "s", {"up/a_nohash_0.wav": sound(wave=INSIDE)}), tmp_path / "o", workers=1)
    cli.data([str(packed.root), "--list", str(tmp_path / "none.csv")])
    assert (tmp_path / "none.csv").read_text() == "kind,path,word,speaker,split,why\n"
    with pytest.raises(KwsError, match="nowhere does not exist; make it with: kws pack"):
        cli.data([str(tmp_path / "nowhere")])
