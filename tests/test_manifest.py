"""Manifests: as a source of recordings and words within them, as a choice of a source's clips; who speaks; splits."""

import gzip
import http.server
import json
import re
import threading
from functools import partial

import numpy as np
import pytest
import torch
from test_corpus import as_folder, as_tar, as_zip, clips, refused, sound
from torchaudio.functional import resample

from kwslib import cli
from kwslib.data import corpus as corpus_module
from kwslib.data.audio import to_int16
from kwslib.data.corpus import load_corpus, pack
from kwslib.data.folder import speaker_of, which_set
from kwslib.data.manifest import read_manifest
from kwslib.data.recordings import cut
from kwslib.io import KwsError, file_hash
from paper.manifest import write_manifest
from paper.profile import Profile

sf = pytest.importorskip("soundfile")


def places(corpus):
    """{path: (word, speaker, split)} of a corpus."""
    return {p: tuple(map(str, rest)) for p, *rest in zip(corpus.paths, corpus.words, corpus.speakers, corpus.splits)}


# -- as a source


ROWS = [
    {"path": "a/one.wav", "word": "yes", "speaker": "anna", "split": "train"},
    {"path": "b/one.wav", "word": "yes", "speaker": "ben", "split": "validation"},
    {"path": "no/eve_nohash_0.wav"},
    {"path": "hum.wav", "word": "_background_noise_"},
]
FILES = {r["path"]: sound(hz=300 + 50 * i) for i, r in enumerate(ROWS)}


def as_csv(rows):
    columns = [*dict.fromkeys(k for r in rows for k in r)]
    return "\n".join(
        ",".join(str(r.get(c, "")) for c in columns) for r in [dict(zip(columns, columns)), *rows]
    ).encode()


def as_jsonl(rows):
    return "\n\n".join(map(json.dumps, rows)).encode()


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl.gz"])
def test_rows_are_clips(tmp_path, name, capsys):
    text = as_csv([{"note": "mine", **r} for r in ROWS]) if "csv" in name else as_jsonl(ROWS)
    as_folder(tmp_path, {**FILES, name: gzip.compress(text) if name.endswith("gz") else b"\xef\xbb\xbf" + text})
    packed = pack(tmp_path / name, tmp_path / "o", workers=1)
    assert places(packed) == {
        "a/one.wav": ("yes", "anna", "training"),
        "b/one.wav": ("yes", "ben", "validation"),
        "no/eve_nohash_0.wav": ("no", "eve", which_set("eve")),
    }
    assert packed.card["source"] == "manifest" and packed.card["noise_files"] == [16000]
    assert "note" not in packed.card and str(tmp_path) not in (packed.root / "card.json").read_text()
    whole, _ = sf.read(tmp_path / "b/one.wav", dtype="int16")
    np.testing.assert_array_equal(packed.waves[1], whole)
    with pytest.raises(KwsError, match="holds something else"):
        pack(tmp_path / name, tmp_path / "o", words=["no"])


LONG = np.random.default_rng(1).uniform(-0.5, 0.5, 5 * 16000)


@pytest.mark.parametrize(
    "start, end, first, size",
    [
        (2.0, 2.4, 1.7, 1.0),  # the second around the word
        (0.1, 0.3, 0.0, 1.0),  # at the recording's start
        (4.7, 4.9, 4.0, 1.0),  # and its end
        (3.0, None, 3.0, 1.0),
        (4.5, None, 4.5, 0.5),
        (1.25, 2.25, 1.25, 1.0),
    ],
)
def test_a_word_is_cut_from_a_long_recording(tmp_path, start, end, first, size):
    sf.write(tmp_path / "day.wav", LONG, 16000)
    expected = LONG[round(first * 16000) : round((first + size) * 16000)]
    np.testing.assert_allclose(cut(tmp_path / "day.wav", start, end), expected, atol=1 / 32768)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_cut_is_what_the_whole_recording_resampled_has_there(tmp_path, rate):
    wave = np.random.default_rng(2).uniform(-0.5, 0.5, (6 * rate, 2)).astype(np.float32)
    sf.write(tmp_path / "day.wav", wave, rate, subtype="FLOAT")
    whole = resample(torch.from_numpy(wave.mean(1)), rate, 16000).numpy()
    for start, end, first in ((3.1, 3.5, 2.8), (0.0, 0.2, 0.0), (5.5, 6.0, 5.0)):
        at = round(first * 16000)
        np.testing.assert_allclose(cut(tmp_path / "day.wav", start, end), whole[at : at + 16000], atol=1e-5)


def test_a_long_word_is_its_loudest_second(tmp_path):
    wave = np.zeros(5 * 16000)
    wave[40000:50000] = 0.5
    wave[70000:] = 0.9  # louder, but outside
    sf.write(tmp_path / "day.wav", wave, 16000)
    assert np.count_nonzero(cut(tmp_path / "day.wav", 1.0, 4.0)) == 10000


def test_cuts_beyond_the_end_and_unreadable_files_are_skipped_and_listed(tmp_path):
    rows = [{"path": "a.wav", "word": "up", "start": s, "end": e} for s, e in ((0.2, 0.8), (0.5, 1.4), (3, ""))]
    rows += [{"path": "junk.wav", "word": "up", "start": 1, "end": 2}]
    as_folder(tmp_path, {"a.wav": sound(), "junk.wav": b"no", "m.csv": as_csv(rows)})
    packed = pack(tmp_path / "m.csv", tmp_path / "o", workers=1)
    assert packed.paths.tolist() == ["a.wav#0.2-0.8"] and packed.samples.tolist() == [16000]
    np.testing.assert_array_equal(packed.waves[0], to_int16(cut(tmp_path / "a.wav", 0.2, 0.8))[0])
    reasons = {s["path"]: s["reason"] for s in packed.card["skipped"]}
    assert "beyond the recording's end at 1.00 s" in reasons["a.wav#0.5-1.4"] and "a.wav#3" in reasons
    assert "not audio" in reasons["junk.wav#1-2"]
    refused("clip a.wav#0.5-1.4 of m.csv is unusable", tmp_path / "m.csv", tmp_path / "strict", strict=True)


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("m.csv", "", "line 1 has no column path; columns are path, word"),
        ("m.csv", "path,word\n", "names no clips"),
        ("m.csv", "path;word\nup/a.wav;up\n", "line 1 has no column path; .* commas between"),
        ("m.csv", "path,speker\nup/a.wav,anna\n", "line 1: column 'speker' is not known; did you mean speaker"),
        ("m.csv", "path,word\nup/a.wav\n", "line 2 has another number of columns"),
        ("m.csv", "path,word\nup/a.wav,up,down\n", "line 2 has another number of columns"),
        ("m.csv", "path,word\n,up\n", "line 2: path is empty"),
        ("m.csv", "path,split\nup/a.wav,eval\n", "line 2: split 'eval' is not known; give training"),
        ("m.csv", "path,start,end\nup/a.wav,2,1\n", "line 2: start 2, end 1; give seconds, 0 <= start < end"),
        ("m.csv", "path,start,end\nup/a.wav,,1\n", "line 2: start None, end 1"),
        ("m.csv", "path,start,end\nup/a.wav,nan,1\n", "line 2: start nan"),
        ("m.csv", "path,start,end\nup/a.wav,0:01,0:02\n", "line 2: start 0:01"),
        ("m.csv", "path\nup/a.wav\nup/b.wav\nup/a.wav\n", "line 4 repeats line 2; delete one"),
        ("m.csv", "path\nup/a.wav\nup/nowhere.wav\n", "line 3: file .*nowhere.wav does not exist; correct the path"),
        ("m.csv", "path,word\nup/a.wav,_silence_\n", "line 2: word '_silence_' cannot be taken"),
        ("m.csv", "path\na.wav\n", "line 2: word '' cannot be taken"),
        (
            "m.csv",
            "path,word,start\nup/a.wav,_background_noise_,1\n",
            "line 2: word '_background_noise_' .* whole files",
        ),
        ("m.jsonl", '{"path": "up/a.wav"}\n{"path": \n', "line 2 is not JSON .*; give one object a line"),
        ("m.jsonl", '["up/a.wav"]\n', "line 1 is no object"),
        ("m.jsonl", '{"file": "up/a.wav"}\n', "line 1 has no column path"),
        ("m.csv.gz", "path\nup/a.wav\n", "cannot be read .*; give CSV or JSON lines"),
        ("m.csv", b"path\nup/\xff.wav\n", "cannot be read .* in UTF-8"),
        ("gone.csv", None, "gone.csv cannot be read .*No such file"),
    ],
)
def test_a_wrong_manifest_names_its_line(tmp_path, name, text, match):
    as_folder(tmp_path, {"up/a.wav": sound(), "up/b.wav": sound(), "a.wav": sound()})
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(match, tmp_path / name, tmp_path / "o")
    assert not (tmp_path / "o.partial").exists()


# -- who speaks, and split folders


def test_split_folders_stand_as_they_are(tmp_path, capsys):
    names = ["train/up/1.wav", "train/down/1.wav", "dev/up/1.wav", "test/up/bo_nohash_0.wav", "test/up/1.wav"]
    files = {name: sound(hz=300 + 30 * i) for i, name in enumerate(names)}
    files |= {
        "train/_background_noise_/hum.wav": sound(),
        "_background_noise_/hiss.wav": sound(),
        "train/readme.md": b"",
    }
    packed = pack(as_zip(tmp_path / "s.zip", files), tmp_path / "o", workers=1)
    assert places(packed) == {
        "train/up/1.wav": ("up", "train/1", "training"),
        "train/down/1.wav": ("down", "train/1", "training"),
        "dev/up/1.wav": ("up", "dev/1", "validation"),
        "test/up/bo_nohash_0.wav": ("up", "bo", "testing"),
        "test/up/1.wav": ("up", "test/1", "testing"),
    }
    assert packed.card["noise_files"] == [16000, 16000] and packed.card["skipped"] == []
    assert pack(as_folder(tmp_path / "s", files), tmp_path / "p", workers=1).checksum == packed.checksum
    # Words may be called train and test, too.
    files = {f"{w}/{s}_nohash_0.wav": sound() for w in ("train", "test") for s in "ab"}
    assert set(pack(as_folder(tmp_path / "w", files), tmp_path / "q", workers=1).words) == {"train", "test"}


@pytest.mark.parametrize(
    "rule, name, speaker",
    [
        ("prefix", "up/anna_01.wav", "anna"),
        ("prefix", "up/anna-01.wav", "anna"),
        ("parent", "up/anna/01.wav", "anna"),
        ("parent", "up/anna_nohash_1/01.wav", "anna_nohash_1"),
        ("s[0-9]+", "up/take3_s12_x.wav", "s12"),
        (r"_([a-z]+)\.wav$", "up/take3_ben.wav", "ben"),
    ],
)
def test_speakers_by_a_rule(rule, name, speaker):
    assert speaker_of(name, rule) == (speaker, True)


@pytest.mark.parametrize("rule, name", [("parent", "up/anna/1.wav"), ("prefix", "up/anna-1.wav")])
def test_clips_of_a_speaker_are_in_one_split(tmp_path, rule, name):
    as_folder(tmp_path / "s", {name: sound(), name.replace("up", "down").replace("1", "2"): sound(hz=300)})
    packed = pack(tmp_path / "s", tmp_path / "o", workers=1, speaker_from=rule)
    assert packed.speakers.tolist() == ["anna"] * 2 and set(packed.splits) == {which_set("anna")}
    assert "note" not in packed.card and packed.card["options"]["speaker_from"] == rule
    (tmp_path / "m.csv").write_text(f"path,word\ns/{name},up\n")
    assert pack(tmp_path / "m.csv", tmp_path / "n", workers=1, speaker_from=rule).speakers.tolist() == ["anna"]


def test_wrong_speaker_rules(tmp_path):
    source = as_folder(tmp_path / "s", {"up/anna.wav": sound()})
    refused(r"speaker_from '\(' cannot be used .*; give parent, prefix or", source, tmp_path / "o", speaker_from="(")
    refused(
        r"speaker_from '\[0-9\]' finds no speaker in up/anna.wav; correct", source, tmp_path / "o", speaker_from="[0-9]"
    )
    refused("holds no clips", source, tmp_path / "o", speaker_from="parent")
    refused("does not take", "synthetic", tmp_path / "o", speaker_from="parent")


def test_a_speaker_in_two_splits_is_noted(tmp_path, capfd):
    files = {"train/up/ann_nohash_0.wav": sound(), "test/up/ann_nohash_1.wav": sound(hz=300)}
    packed = pack(as_folder(tmp_path / "s", files), tmp_path / "o", workers=1)
    assert packed.card["note"].startswith("1 speakers are in two splits") and "note: s: 1 sp" in capfd.readouterr().err


# -- as a choice of clips


def test_only_takes_the_paths_of_a_manifest_from_any_source(tmp_path, capfd):
    wanted = {"up/aa_nohash_0": "training", "up/cc_nohash_1": "testing", "down/bb_nohash_0": "training"}
    (tmp_path / "m.csv").write_text("path,split\n" + "".join(f"{p}.opus,{s}\n" for p, s in wanted.items()))
    packs = [
        pack(make(tmp_path / name, clips()), tmp_path / f"o-{name}", workers=1, only=tmp_path / "m.csv")
        for name, make in (("s", as_folder), ("s.zip", as_zip), ("s.tar.gz", as_tar))
    ]
    assert {p[:-4]: s for p, (_, _, s) in places(packs[0]).items()} == wanted
    assert len({p.checksum for p in packs}) == 1 and len(packs[0].noise) == 12 * 16000
    assert "note" not in packs[0].card
    assert packs[0].card["options"]["only"] == {"name": "m.csv", "sha256": file_hash(tmp_path / "m.csv")}
    up = pack(tmp_path / "s", tmp_path / "up", workers=1, only=tmp_path / "m.csv", words=["up"])
    assert len(up.paths) == 2 and up.card["skipped"] == []

    (tmp_path / "m.csv").write_text("path\nup/aa_nohash_0.wav\nup/zz_nohash_0.wav\n")
    packed = pack(tmp_path / "s", tmp_path / "less", workers=1, only=tmp_path / "m.csv")
    assert packed.card["skipped"] == [{"path": "up/zz_nohash_0.wav", "reason": "not in s"}]
    assert "1 of 2 clips of m.csv are not in s, such as up/zz_nohash_0.wav" in capfd.readouterr().err
    refused("clip up/zz.* not in s", tmp_path / "s", tmp_path / "o", only=tmp_path / "m.csv", strict=True)
    (tmp_path / "m.csv").write_text("path,start\nup/aa_nohash_0.wav,1\n")
    refused("m.csv line 2 has a speaker or a start", tmp_path / "s", tmp_path / "o", only=tmp_path / "m.csv")


@pytest.fixture
def server(tmp_path):
    """Serves what is beside and in tmp_path, on the loopback address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        log_message = lambda *args: None  # noqa: E731

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path.parent)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_the_subset_is_rebuilt_from_the_official_archives(server, tmp_path, monkeypatch):
    """Two of its clips are not in the newer archive."""
    ours = {k: v for k, v in clips().items() if k != "up/aa_nohash_1.wav"}  # a subset
    whole = pack(as_folder(tmp_path / "ours", ours), tmp_path / "packed", workers=1)
    write_manifest(whole, tmp_path / "clips.csv.gz")
    first = (tmp_path / "clips.csv.gz").read_bytes()
    write_manifest(whole, tmp_path / "clips.csv.gz")
    assert (tmp_path / "clips.csv.gz").read_bytes() == first
    assert [r.path for r in read_manifest(tmp_path / "clips.csv.gz")] == whole.paths.tolist()

    gone = ("up/bb_nohash_0.wav", "down/aa_nohash_0.wav")
    archives = {
        "new": {k: v for k, v in clips().items() if k not in gone} | {"up/dd_nohash_0.wav": sound()},
        "old": {k: v for k, v in clips().items() if k.startswith(("_", "up", "val")) or k in gone},
    }
    made = {name: as_tar(tmp_path / f"{name}.tar.gz", files) for name, files in archives.items()}
    base, away = f"{server}/{tmp_path.name}", tmp_path / "away"
    given = {"url": f"{base}/new.tar.gz", "md5": None, "sha256": file_hash(made["new"])}
    given |= {"only": tmp_path / "clips.csv.gz", "older": (f"{base}/old.tar.gz", file_hash(made["old"]))}
    rebuilt = pack("speech_commands", away / "o", workers=2, **given)
    assert rebuilt.checksum == whole.checksum and rebuilt.card["skipped"] == []
    assert {p.name for p in rebuilt.root.iterdir()} == {"card.json", "index.csv", "index.npy", "noise.npy", "waves.npy"}
    np.testing.assert_array_equal(rebuilt.noise, whole.noise)
    assert rebuilt.card["options"]["older"] == list(given["older"])
    monkeypatch.setattr(corpus_module, "_pack", None)
    assert pack("speech_commands", away / "o", **given).checksum == whole.checksum  # at once

    monkeypatch.undo()
    without = pack("speech_commands", away / "p", workers=1, **given | {"older": None})
    assert {s["path"] for s in without.card["skipped"]} == set(gone) and "2 of 11 clips" in without.card["note"]


def test_the_manifest_of_profile_subset(root):
    rows = read_manifest(root / "profiles/subset/clips.csv.gz")
    counts = {s: sum(r.split == s for r in rows) for s in ("training", "validation", "testing")}
    assert counts == {"training": 16986, "validation": 2265, "testing": 2835}  # shared README of the recordings
    assert all(re.fullmatch(r"[a-z]+/[0-9a-f]{8}_nohash_\d+\.wav", r.path) for r in rows)
    assert all(which_set(r.path.split("/")[1][:8]) == r.split for r in rows)


def test_a_profile_may_name_a_manifest(root, tmp_path):
    text = (root / "profiles/subset/params.yaml").read_text()
    text = text.replace("../shared/data/speech_commands_subset.zip", "speech_commands")
    text = text.replace("options: {}", "options: {only: profiles/subset/clips.csv.gz}")
    (tmp_path / "params.yaml").write_text(text)
    profile = Profile(tmp_path / "params.yaml", root)
    assert profile.corpus_path() == "speech_commands"
    assert profile.corpus["options"] == {"only": root / "profiles/subset/clips.csv.gz"}


def test_command_line(tmp_path, capsys):
    as_folder(tmp_path, {"s/up/anna_1.wav": sound(), "s/up/ben_1.wav": sound(), "m.csv": b"path\nup/anna_1.wav\n"})
    options = ["--speaker-from", "prefix", "--only", str(tmp_path / "m.csv"), "--workers", "1"]
    cli.pack([str(tmp_path / "s"), str(tmp_path / "o"), *options])
    assert places(load_corpus(tmp_path / "o"))["up/anna_1.wav"][:2] == ("up", "anna")
    with pytest.raises(SystemExit):
        cli.pack(["--help"])
    told = capsys.readouterr().out
    for word in ("path", "word", "speaker", "split", "start", "end", "--only", "parent", "prefix", "testing_list.txt"):
        assert word in told
