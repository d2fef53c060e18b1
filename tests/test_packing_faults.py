"""Packing and corpora under faults: power loss, hostile archives, odd lists and addresses, Ctrl-C."""

# ruff: noqa: F811 (plain, which is imported, is a fixture)

import json
import os
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from test_corpus import FILES, as_folder, as_tar, as_zip, clips, plain, refused, sf, sound  # noqa: F401

from kwslib import cli as commands
from kwslib.data import corpus as corpus_module
from kwslib.data import folder as folder_module
from kwslib.data.corpus import load_corpus, pack
from kwslib.data.fetch import fetch
from kwslib.io import KwsError, locked, read_csv, write_csv


def stopped(source, out, monkeypatch):
    """A packing that ended just before its index; returns its folder."""
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "_finish", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            pack(source, out, workers=1)
    return out.with_name(out.name + ".partial")


@pytest.mark.parametrize(
    "loss", ["short", "empty", "absent", "zeros", "torn line", "no JSON", "flipped", "no checksum"]
)
def test_what_a_loss_of_power_took_is_packed_again(plain, tmp_path, monkeypatch, loss):
    partial = stopped(plain.root.parent / "clips", tmp_path / "o", monkeypatch)
    waves, journal = partial / "waves.npy", partial / "journal"
    data, lines = waves.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 13 and len(data) == 128 + 12 * 32_000
    if loss == "absent":
        waves.unlink()
    elif loss in ("short", "empty", "zeros"):
        kept = data[: {"short": 128 + 5 * 32_000 + 77, "empty": 0, "zeros": 128 + 7 * 32_000}[loss]]
        waves.write_bytes(kept + bytes(len(data) - len(kept)) if loss == "zeros" else kept)
    else:
        spoilt = {"torn line": lines[4][:9], "no JSON": b"\0" * 40 + b"\n"}
        spoilt["flipped"] = lines[4].replace(b'"samples": 16000', b'"samples": 15000')
        spoilt["no checksum"] = json.dumps({"samples": 16_000, "clipped": False, "silent": False}).encode() + b"\n"
        assert spoilt[loss] != lines[4]
        journal.write_bytes(b"".join([*lines[:4], spoilt[loss], *lines[5:]]))
    packed = pack(plain.root.parent / "clips", tmp_path / "o", workers=1)
    assert packed.checksum == plain.checksum and packed.waves.any(axis=1).all()
    assert {p.name for p in packed.root.iterdir()} == {"card.json", *FILES}


def test_an_index_with_a_very_long_name(plain, tmp_path):
    copy = as_folder(tmp_path / "c", {p.name: p.read_bytes() for p in plain.root.iterdir()})
    rows = read_csv(copy / "index.csv")
    rows[3]["speaker"] = "x" * 60_000
    write_csv(copy / "index.csv", rows)
    with pytest.raises(KwsError, match="damaged .a name of 60000 characters"):
        load_corpus(copy)
    long = {"up/a.wav": sound(), f"up/{'b' * 60_000}.wav": sound()}
    packed = pack(as_zip(tmp_path / "z.zip", long), tmp_path / "o", workers=1)
    assert packed.paths.tolist() == ["up/a.wav"] and len(packed.card["skipped"]) == 1
    assert len((packed.root / "card.json").read_text()) < 5_000


@pytest.mark.parametrize(
    "name, change",
    [
        ("card.json", lambda text: "[" * 100_000),
        ("card.json", lambda text: "5"),
        ("card.json", lambda text: text.replace('"clips"', '"klips"')),
        ("card.json", lambda text: text.replace('"checksum"', '"czechsum"')),
        ("index.csv", lambda text: text.replace(",training,", ",trainig,")),
        ("index.csv", lambda text: text.replace(",16000", ",16001", 1)),
        ("index.csv", lambda text: text.replace(",16000", ",-5", 1)),
        ("index.csv", lambda text: text.replace(",16000", "", 1)),
        ("index.csv", lambda text: text.replace(",16000", ",16000,7", 1)),
        ("index.csv", lambda text: text + '"' + "x" * 200_000),
        ("index.csv", lambda text: text + "\udcff"),
    ],
)
def test_damaged_corpora_are_named(plain, tmp_path, name, change):
    copy = as_folder(tmp_path / "c", {p.name: p.read_bytes() for p in plain.root.iterdir()})
    (copy / name).write_text(change((copy / name).read_text()), errors="surrogateescape")
    with pytest.raises(KwsError, match="card .*card.json cannot be read|corpus .* is damaged"):
        load_corpus(copy)


def test_what_is_too_large_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("up/a.wav", sound())
        z.writestr("up/bomb.wav", bytes(folder_module.MOST + 1))
    packed = pack(tmp_path / "bomb.zip", tmp_path / "bomb", workers=1)
    assert packed.paths.tolist() == ["up/a.wav"] and "134 MB, more than 134" in packed.card["skipped"][0]["reason"]

    monkeypatch.setattr(folder_module, "MOST", 100_000)
    monkeypatch.setattr(folder_module, "HOUR", 2)
    files = {"up/a.wav": sound()} | {f"_background_noise_/{n}.wav": sound(16_000 * n) for n in (1, 3, 30)}
    for kind, make in {"z.zip": as_zip, "t.tar.gz": as_tar, "f": as_folder}.items():
        packed = pack(make(tmp_path / kind, files), tmp_path / f"{kind}.packed", workers=1)
        reasons = {s["path"].split("/")[-1]: s["reason"] for s in packed.card["skipped"]}
        assert len(packed.noise) == 16_000 and "longer than an hour" in reasons["3.wav"]
        assert "more than 0; cut it" in reasons["30.wav"]


def test_a_word_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    source, scan = as_folder(tmp_path / "s", clips()), os.scandir

    def scandir(path):
        if str(path).endswith("down"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused("s/down cannot be read .Permission denied.; see to it", source, tmp_path / "o")


@pytest.mark.parametrize(
    "text", [b"\xff\xfeu\0p\0/\0", bytes(range(256)), b"up/a.wav\n\0\0\n", b"a.wav\n", b"a/b/c.wav\n"]
)
def test_a_list_that_is_none_is_refused(tmp_path, text):
    source = as_zip(tmp_path / "z.zip", clips() | {"validation_list.txt": text})
    refused("validation_list.txt of .*z.zip ", source, tmp_path / "o")


def test_lists_of_other_systems_are_read(plain, tmp_path):
    lists = {n: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") for n, data in clips().items() if n.endswith("list.txt")}
    assert len(lists) == 2
    assert pack(as_zip(tmp_path / "z.zip", clips() | lists), tmp_path / "o", workers=1).checksum == plain.checksum


def test_a_member_without_a_name(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        warnings.simplefilter("ignore")
        z.writestr("up/a.wav", sound())
        z.writestr("x", b"nameless")
    data = (tmp_path / "z.zip").read_bytes()
    at = data.rindex(b"PK\1\2")  # the central directory's entry of x, which loses its name
    name = at + 46
    data = data[: at + 28] + b"\0\0" + data[at + 30 : name] + data[name + 1 :]
    size = data.rindex(b"PK\5\6") + 12
    data = data[:size] + (int.from_bytes(data[size : size + 4], "little") - 1).to_bytes(4, "little") + data[size + 4 :]
    (tmp_path / "z.zip").write_bytes(data)
    assert pack(tmp_path / "z.zip", tmp_path / "o", workers=1).paths.tolist() == ["up/a.wav"]


@pytest.mark.parametrize(
    "url", ["", "speech.tar.gz", "ftp://a/b", "file:///etc/passwd", "http://[", "http://a", 5, None]
)
def test_odd_addresses(tmp_path, url):
    refused("url is ", "speech_commands", tmp_path / "o", url=url)


def test_checksums_of_unknown_kinds_and_two_fetches(tmp_path):
    with pytest.raises(KwsError, match="checksum 'crc' is not known; give md5"):
        fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", {"crc": "0"})
    with locked(tmp_path / ".a.zip.lock", "busy"), pytest.raises(KwsError, match="fetched by another run: process"):
        fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", {"md5": "0"})


def test_arguments_that_are_none(plain, tmp_path):
    source = plain.root.parent / "clips"
    for odd in ("", None, 5, [], "a\0b"):
        refused("source is ", odd, tmp_path / "o")
    for arguments in ({"out": ""}, {"out": "/"}, {"out": 5}, {"words": "up"}, {"words": [1]}, {"workers": -1}):
        with pytest.raises(KwsError):
            pack(**{"source": source, "out": tmp_path / "o", **arguments})
    for workers in (0, 10**9, "2"):
        with pytest.raises(KwsError, match="workers is "):
            pack(source, tmp_path / "o", workers=workers)
    assert not list(tmp_path.iterdir())


def test_packing_changes_nothing_of_the_caller(tmp_path):
    import torch

    threads, before, mask = torch.get_num_threads(), dict(os.environ), os.umask(0o22)
    torch.set_num_threads(3)
    try:
        pack(as_folder(tmp_path / "s", {"up/a.wav": sound(8_000, 8_000)}), tmp_path / "o", workers=1)
        assert torch.get_num_threads() == 3 and dict(os.environ) == before and os.umask(mask) == 0o22
    finally:
        torch.set_num_threads(threads)
        os.umask(mask)


def test_ctrl_c_ends_in_one_line(tmp_path):
    source = as_folder(tmp_path / "s", {f"w/{i}.wav": sound(hz=100 + i) for i in range(300)})
    code = "import sys, json; from kwslib.io import cli; from kwslib.cli import pack; import kwslib.data.corpus\n"
    code += "import time; dumps = json.dumps; json.dumps = lambda *a, **k: (time.sleep(0.02), dumps(*a, **k))[1]\n"
    code += f"cli(lambda: pack([{str(source)!r}, {str(tmp_path / 'o')!r}, '--workers', '2']))"
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    journal = tmp_path / "o.partial/journal"
    while run.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: workers, too
    told = run.communicate(timeout=60)[1].splitlines()
    assert run.returncode == 130
    assert [line for line in told if "packing" not in line] == [
        "stopped before the end; the same command continues or starts again"
    ]
    assert not (tmp_path / ".o.lock").exists()
    assert np.count_nonzero(pack(source, tmp_path / "o", workers=1).samples) == 300


def test_the_command_says_why_it_skipped_files(tmp_path, capsys):
    bad = {f"up/{name}_nohash_9.wav": b"none" for name in "wxyz"}
    commands.command(["pack", str(as_folder(tmp_path / "s", clips() | bad)), str(tmp_path / "o")])
    *_, counts, first, second, third, more = capsys.readouterr().out.splitlines()
    assert counts.endswith("4 files skipped") and more.endswith(f"{tmp_path / 'o'}/card.json")
    skipped = load_corpus(tmp_path / "o").card["skipped"]
    assert [first, second, third] == [f"  skipped {s['path']}: {s['reason']}" for s in skipped[:3]]
