"""Packing: the same corpus from any container with any workers; bad input ends in one sentence."""

import errno
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kwslib import cli
from kwslib.data import corpus as corpus_module
from kwslib.data import fetch as fetch_module
from kwslib.data.corpus import load_corpus, pack
from kwslib.io import KwsError, file_hash, locked

sf = pytest.importorskip("soundfile")
ROOT = Path(__file__).parents[1]
FILES = ("index.csv", "index.npy", "noise.npy", "waves.npy")  # of a small corpus, beside its card


def sound(samples=16000, rate=16000, channels=1, hz=440.0, format="WAV", subtype=None, wave=None):
    """The bytes of a sound file that holds a tone."""
    tone, out = 0.25 * np.sin(2 * np.pi * hz * np.arange(samples) / rate), io.BytesIO()
    tone = tone if wave is None else wave
    sf.write(out, np.stack([tone] * channels, axis=1), rate, format=format, subtype=subtype)
    return out.getvalue()


def clips():
    """{path: bytes} of a small source, with lists, a note that is no clip, and noise."""
    files = {
        f"{word}/{speaker}_nohash_{n}.wav": sound(hz=200 + 40 * n + 10 * i)
        for i, word in enumerate(("up", "down"))
        for speaker in ("aa", "bb", "cc")
        for n in range(2)
    }
    noise = sound(wave=np.random.default_rng(0).uniform(-0.3, 0.3, 12 * 16000))
    return {
        **files,
        "_background_noise_/hiss.wav": noise,
        "_background_noise_/README.md": b"about",
        **{
            f"{split}_list.txt": "".join(f"{w}/{s}_nohash_{n}.wav\n" for w in ("up", "down") for n in "01").encode()
            for split, s in (("validation", "bb"), ("testing", "cc"))
        },
    }


def as_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path, files, top="top/"):
    with zipfile.ZipFile(path, "w") as z:
        for name, data in files.items():
            z.writestr(top + name, data)
    return path


def as_tar(path, files, mode="w:gz", top="./"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def refused(match, source, out, **options):
    """pack must end in a KwsError of one line that matches, and leave nothing under the final name."""
    with pytest.raises(KwsError, match=match) as e:
        pack(source, out, workers=1, **options)
    assert "\n" not in str(e.value)
    assert not Path(out).exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    return pack(as_folder(path / "clips", clips()), path / "packed", workers=2)


def test_folder_lists_speakers_noise(plain):
    card = plain.card
    assert card["clips"] == {"training": 4, "validation": 4, "testing": 4}
    assert card["speakers"] == {"training": 1, "validation": 1, "testing": 1}
    assert set(plain.speakers[plain.splits == "validation"]) == {"bb"}
    assert plain.words.tolist().count("up") == 6
    assert plain.waves.dtype == np.int16 and plain.waves.shape == (12, 16000)
    assert isinstance(plain.waves, np.memmap)
    original = sf.read(io.BytesIO(clips()["up/cc_nohash_1.wav"]), dtype="int16")[0]
    np.testing.assert_array_equal(plain.waves[plain.paths.tolist().index("up/cc_nohash_1.wav")], original)
    assert len(plain.noise) == 12 * 16000 and card["noise_seconds"] == 12 and card["skipped"] == []
    assert "note" not in card  # every name has a speaker
    assert {p.name for p in plain.root.iterdir()} == {"card.json", *FILES}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2"])
def test_archives_pack_to_the_same_bytes(plain, tmp_path, kind):
    path = tmp_path / f"clips.{kind}"
    as_zip(path, clips()) if kind == "zip" else as_tar(path, clips(), "w:" + kind[4:], top="top/")
    packed = pack(path, tmp_path / "packed", workers=1)
    assert packed.checksum == plain.checksum
    np.testing.assert_array_equal(packed.noise, plain.noise)
    assert packed.card["source_checksum"] == {"sha256": file_hash(path)}
    assert str(tmp_path) not in (tmp_path / "packed/card.json").read_text()


def test_formats_rates_lengths_channels(tmp_path, capfd):
    long = np.zeros(40000)
    long[20000:30000] = 0.5
    files = {
        "a/flac.flac": sound(format="FLAC"),
        "a/ogg.ogg": sound(format="OGG"),
        "a/mp3.mp3": sound(format="MP3"),
        "a/opus.opus": sound(format="OGG", subtype="OPUS"),
        "a/cd.wav": sound(44100, 44100, 2),
        "a/low.wav": sound(8000, 8000),
        "a/half.wav": sound(8000),
        "a/long.wav": sound(wave=long),
        "a/silent.wav": sound(wave=np.zeros(16000)),
        "a/loud.wav": sound(wave=np.full(99, 1.5), subtype="FLOAT"),
    }
    packed = pack(as_folder(tmp_path / "s", files), tmp_path / "o", workers=1)
    wave = {p[2:].split(".")[0]: w.astype(float) for p, w in zip(packed.paths, packed.waves)}
    tone = 0.25 * 32768 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    for name, tolerance in {"flac": 1, "ogg": 900, "opus": 1500, "cd": 60, "low": 200}.items():
        assert np.abs(wave[name] - tone)[200:-200].max() < tolerance, name
    spectrum = np.abs(np.fft.rfft(wave["mp3"]))
    assert spectrum.argmax() == 440  # one second: bin k is k Hz
    assert not wave["half"][8000:].any() and packed.samples[packed.paths.tolist().index("a/half.wav")] == 8000
    assert np.count_nonzero(wave["long"]) == 10000  # the loudest second holds all of the burst
    assert packed.card["silent"] == 1 and packed.card["clipped"] == 1 and packed.card["short"] == 2
    assert wave["loud"][:99].tolist() == [32767] * 99
    assert packed.card["note"].startswith("10 of 10 clips have no speaker in their names")
    assert capfd.readouterr().err.count("have no speaker in their names") == 1


def test_unreadable_clips_are_skipped_and_listed(tmp_path):
    nan = np.zeros(16000, np.float32)
    nan[5] = np.nan
    bad = {
        "a/junk.wav": b"not audio at all",
        "a/empty.wav": b"",
        "a/cut.wav": sound()[:9000],
        "a/cut.ogg": sound(format="OGG")[:-900],
        "a/cut.flac": sound(format="FLAC", hz=3000.5)[:-5000],
        "a/nan.wav": sound(wave=nan, subtype="FLOAT"),
        "a/none.wav": sound(0),
    }
    source = as_folder(tmp_path / "s", {**bad, "a/good.wav": sound()})
    packed = pack(source, tmp_path / "o", workers=1)
    assert {s["path"] for s in packed.card["skipped"]} == set(bad) and packed.paths.tolist() == ["a/good.wav"]
    reasons = {s["path"]: s["reason"] for s in packed.card["skipped"]}
    assert reasons["a/junk.wav"] == "not audio that libsndfile reads (Format not recognised.)"
    assert "NaN" in reasons["a/nan.wav"]
    assert "truncated" in reasons["a/cut.wav"] and "truncated" in reasons["a/cut.ogg"]
    assert "no samples" in reasons["a/none.wav"]
    refused("clip a/cut.* unusable", source, tmp_path / "strict", strict=True)
    (source / "a/good.wav").unlink()
    refused("no readable clips", source, tmp_path / "none")


def test_bad_sources(tmp_path):
    refused("does not exist", tmp_path / "nowhere", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    refused("holds no clips", tmp_path / "empty", tmp_path / "o")
    for kind, make in {"zip": as_zip, "tar.gz": as_tar, "tar": partial(as_tar, mode="w")}.items():
        whole = make(tmp_path / f"whole.{kind}", clips()).read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
        refused(f"cut.{kind} is broken", tmp_path / f"cut.{kind}", tmp_path / "o")
    refused("no word left", tmp_path / "whole.zip", tmp_path / "o", words=["up", "left"])
    refused("does not take", tmp_path / "whole.zip", tmp_path / "o", snr=(1, 2))


@pytest.mark.parametrize("name", ["../up/x.wav", "/up/x.wav", "up/../../x.wav"])
def test_escaping_paths_are_refused(tmp_path, name):
    refused("leaves its folder", as_zip(tmp_path / "z.zip", {name: sound()}, top=""), tmp_path / "o")
    refused("leaves its folder", as_tar(tmp_path / "t.tar", {name: sound()}, "w", top=""), tmp_path / "o")


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        link = tarfile.TarInfo("up/x.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused("is a link", tmp_path / "t.tar", tmp_path / "o")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        link = zipfile.ZipInfo("up/x.wav")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    refused("is a link", tmp_path / "z.zip", tmp_path / "o")


def test_out_cannot_be_written(tmp_path, plain):
    source = plain.root.parent / "clips"
    (tmp_path / "file").write_text("")
    refused("cannot pack", source, tmp_path / "file/out")
    (tmp_path / "other").mkdir()
    with pytest.raises(KwsError, match="card .* does not exist"):
        pack(source, tmp_path / "other")
    with pytest.raises(KwsError, match="holds something else"):
        pack(source, plain.root, words=["up"])


def test_two_runs_do_not_write_at_once(tmp_path, plain):
    with locked(tmp_path / ".o.lock", "busy"):
        refused(f"being written by another run: process {os.getpid()} ", plain.root.parent / "clips", tmp_path / "o")


def test_full_disk_then_resumed(tmp_path, plain, monkeypatch):
    source = plain.root.parent / "clips"

    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "write_csv", full)
        refused("No space left", source, tmp_path / "o")
    monkeypatch.setattr(corpus_module, "_decode", None)  # nothing is decoded again
    assert pack(source, tmp_path / "o", workers=1).checksum == plain.checksum


def test_pack_returns_at_once_and_load_checks(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_pack", None)
    assert pack(plain.root.parent / "clips", plain.root).checksum == plain.checksum
    with pytest.raises(KwsError, match="does not exist; make it"):
        load_corpus(tmp_path / "nowhere")
    spoilt = {
        "card.json": None,
        "index.csv": b"path,word,speaker,split,samples\n",
        "noise.npy": None,
        "waves.npy": (plain.root / "waves.npy").read_bytes()[:-5000],
    }
    for name, data in spoilt.items():
        copy = as_folder(tmp_path / name, {p.name: p.read_bytes() for p in plain.root.iterdir()})
        (copy / name).unlink() if data is None else (copy / name).write_bytes(data)
        with pytest.raises(KwsError, match="does not exist" if name == "card.json" else "damaged"):
            load_corpus(copy)


def test_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = as_folder(tmp_path / "s", {f"w/{i:04d}_nohash_0.wav": sound(hz=100 + i) for i in range(600)})
    command = [sys.executable, "-m", "kwslib.corpus", str(source), str(tmp_path / "o"), "--workers", "1"]
    # Slow the run down where it journals, so that it can be killed half-way.
    slow = (
        "import sys, time, runpy, json; dumps = json.dumps; "
        "json.dumps = lambda *a, **k: (time.sleep(0.2), dumps(*a, **k))[1]; sys.argv = sys.argv[1:]; "
        "from kwslib.cli import pack; pack(sys.argv)"
    )
    run = subprocess.Popen([sys.executable, "-c", slow, *command[3:]], cwd=ROOT)
    journal = tmp_path / "o.partial/journal"
    while run.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    lines = journal.read_bytes().split(b"\n")[:-1]
    assert 3 <= len(lines) <= 5 and not (tmp_path / "o").exists()
    for name, half in {"waves.npy": b"half a clip", "journal": b'{"half'}.items():
        with open(tmp_path / "o.partial" / name, "ab") as f:
            f.write(half)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert load_corpus(tmp_path / "o").checksum == pack(source, tmp_path / "whole", workers=2).checksum


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one archive, with ranges, and hangs up after `limit` bytes of the first answer."""

    body, limit, ranges, log_message = b"", None, [], lambda *args: None

    def do_GET(self):
        cls, wanted = type(self), self.headers.get("Range")
        start = int(wanted[6:-1]) if wanted else 0
        cls.ranges.append(wanted)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start : cls.limit])
        cls.limit = None


@pytest.fixture
def server():
    Server.limit, Server.ranges = None, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/speech.tar.gz"
        httpd.shutdown()


def test_speech_commands_is_fetched_resumed_and_verified(server, tmp_path, plain, monkeypatch):
    monkeypatch.setattr(fetch_module.time, "sleep", lambda seconds: None)
    archive = as_tar(tmp_path / "made.tar.gz", clips())
    Server.body, Server.limit = archive.read_bytes(), 5000
    right = {kind: file_hash(archive, kind=kind) for kind in ("md5", "sha256")}
    packed = pack("speech_commands", tmp_path / "o", workers=1, url=server, **right)
    assert Server.ranges == [None, "bytes=5000-"]
    assert packed.checksum == plain.checksum and packed.card["licence"] == "CC BY 4.0"
    assert (tmp_path / "speech.tar.gz").read_bytes() == Server.body
    pack("speech_commands", tmp_path / "again", workers=1, url=server, words=["up"], **right)
    assert len(Server.ranges) == 2  # the archive is still there

    away = tmp_path / "away"
    refused("wrong sha256", "speech_commands", away / "o", url=server, md5=right["md5"], sha256="0" * 64)
    refused("wrong md5", "speech_commands", away / "o", url=server)
    assert not [p for p in away.iterdir() if p.name.startswith("speech.tar.gz")]
    refused("cannot fetch", "speech_commands", away / "o", url="http://127.0.0.1:9/speech.tar.gz")


def test_command_line(tmp_path, plain, capsys):
    cli.pack([str(plain.root.parent / "clips"), str(tmp_path / "o"), "--words", "up", "--workers", "1"])
    assert "training        2 clips, 1 speakers" in capsys.readouterr().out
    cli.pack(["synthetic", str(tmp_path / "s"), "--words", "no", "--speakers", "1", "1", "1", "--snr", "5", "9"])
    assert load_corpus(tmp_path / "s").card["options"]["snr"] == [5.0, 9.0]


def test_real_clips(tmp_path, real_clips):
    packed = pack(real_clips, tmp_path / "o", words=["tree", "backward"], workers=1)
    assert packed.card["skipped"] == [] and packed.card["words"]["tree"]["testing"] == 8
    assert packed.card["licence"] == "CC BY 4.0"
    assert packed.samples.max() == 16000 and len(packed.noise) > 300 * 16000
