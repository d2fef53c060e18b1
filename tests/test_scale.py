"""Corpora of any size: shards, a mapped index, splits that stay in their files; nothing that a small corpus would not
give, bit by bit."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import ROOT
from small_runs import run, same, write_tones
from test_corpus import as_folder, as_tar, clips, sound

from kwslib.data import columns, tasks
from kwslib.data import corpus as corpus_module
from kwslib.data.columns import Column, Shards
from kwslib.data.corpus import load_corpus, pack
from kwslib.data.tasks import Rows, select
from kwslib.io import KwsError

BAD = {"down/aa_nohash_9.wav": b"none", "up/aa_nohash_9.wav": b"", "up/zz_nohash_0.wav": b"none"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return as_folder(tmp_path_factory.mktemp("source") / "s", clips() | BAD)


def contents(corpus):
    text = [np.array(getattr(corpus, k)) for k in ("paths", "words", "speakers", "splits")]
    return [np.array(corpus.waves), np.array(corpus.samples), corpus.noise, *text]


def test_shards_hold_what_one_file_holds(source, tmp_path, monkeypatch):
    whole = pack(source, tmp_path / "whole", workers=1)
    monkeypatch.setattr(columns, "SHARD", 4)
    packed = pack(source, tmp_path / "o", workers=2)
    # 15 files in the order of their paths: down 6 + 1, up 6 + 2; the unreadable ones are numbers 2, 9 and 14
    assert {p.name: len(np.load(p)) for p in packed.root.glob("waves*")} == {
        f"waves-00{k}.npy": n for k, n in enumerate((3, 4, 3, 2))
    }
    assert isinstance(packed.waves, Shards) and packed.waves.shape == whole.waves.shape
    for ours, theirs in zip(contents(packed), contents(whole)):
        np.testing.assert_array_equal(ours, theirs)
    assert packed.checksum == whole.checksum
    assert packed.card | {"index_crc": 0} == whole.card | {"index_crc": 0}
    assert len(packed.card["skipped"]) == 3
    rows = [7, 0, 11, 7]
    np.testing.assert_array_equal(packed.waves[rows], whole.waves[rows])
    np.testing.assert_array_equal(packed.waves[-1, :50], whole.waves[-1, :50])
    np.testing.assert_array_equal([w for w in packed.waves], whole.waves)
    for task, split in (("all", "training"), (["up", "_unknown_", "_silence_"], "testing")):
        ours, theirs = (select(c, task, split) for c in (packed, whole))
        assert torch.equal(ours.waves, theirs.waves) and ours.paths.tolist() == theirs.paths.tolist()


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
@pytest.mark.parametrize("after", [0, 5, 14, "closing"])
def test_a_stopped_packing_of_shards_ends_with_the_same_bytes(source, tmp_path, monkeypatch, kind, after):
    if kind == "tar.gz":  # in another order than that of the paths
        files = [*(clips() | BAD).items()]
        np.random.default_rng(1).shuffle(files)
        source = as_tar(tmp_path / "s.tar.gz", dict(files))
    whole = pack(source, tmp_path / "whole", workers=1)
    monkeypatch.setattr(columns, "SHARD", 4)

    class Stopped(BaseException):
        pass

    with monkeypatch.context() as patch:
        if after == "closing":  # while rows move up to where unreadable clips were
            patch.setattr(columns.os, "fsync", lambda f: (_ for _ in ()).throw(Stopped) if f else None)
        else:
            note, noted = corpus_module._note, []

            def stop(*known):
                note(*known)
                noted.append(1)
                if len(noted) > after:
                    raise Stopped

            patch.setattr(corpus_module, "_note", stop)
        with pytest.raises(Stopped):
            pack(source, tmp_path / "o", workers=1)
    packed = pack(source, tmp_path / "o", workers=2)
    assert packed.checksum == whole.checksum and not (tmp_path / "o.partial").exists()
    for name in ("index.csv", "index.npy", "noise.npy"):
        assert (packed.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_tars_are_not_copied(tmp_path, monkeypatch):
    """Not on the disk, and a compressed one not in memory: what waits for a worker is bounded."""
    files = {f"w/{i:03}_nohash_0.wav": sound() for i in range(40)}
    monkeypatch.setattr(corpus_module, "HELD", 100_000)  # three of these files
    held, seen = [], set()
    pieces = corpus_module._pieces

    def watched(each, most):
        for some in pieces(each, most):
            held.append(sum(len(where) for _, where in some if isinstance(where, bytes)))
            seen.update(p.name for p in tmp_path.rglob("*"))
            yield some

    monkeypatch.setattr(corpus_module, "_pieces", watched)
    for mode in ("w", "w:gz"):
        pack(as_tar(tmp_path / f"{mode[2:]}.tar", files, mode), tmp_path / f"o{mode[2:]}", workers=1)
    assert seen >= {"journal", "waves.npy"} and not [n for n in seen if n.endswith((".zip", ".wav"))]
    assert held[0] == 0 and 0 < max(held) <= 100_000 + len(files["w/000_nohash_0.wav"])


def test_an_index_is_parsed_again_where_it_was_changed(source, tmp_path):
    packed = pack(source, tmp_path / "o", workers=1)
    index = packed.root / "index.csv"
    before = contents(packed)
    index.write_text(index.read_text().replace(",bb,", ",dd,"))
    assert set(load_corpus(packed.root).speakers) == {"aa", "cc", "dd"}
    (packed.root / "index.npy").unlink()  # as versions before it packed
    assert set(load_corpus(packed.root).speakers) == {"aa", "cc", "dd"}
    index.write_text(index.read_text().replace(",dd,", ",bb,"))
    for ours, theirs in zip(contents(load_corpus(packed.root)), before):
        np.testing.assert_array_equal(ours, theirs)
    index.write_text(index.read_text().replace("path,word", "word,path"))
    with pytest.raises(KwsError, match="damaged .index.csv does not begin with path,word"):
        load_corpus(packed.root)


def test_names_with_commas_quotes_and_letters(tmp_path):
    names = ["größe/a,b_nohash_0.wav", 'größe/"c"_nohash_0.wav', "語/d'_nohash_0.wav"]
    packed = pack(as_folder(tmp_path / "s", {n: sound(4000) for n in names}), tmp_path / "o", workers=1)
    assert sorted(packed.paths.tolist()) == sorted(names) and packed.words.distinct() == ["größe", "語"]
    assert sorted(packed.speakers) == ['"c"', "a,b", "d'"]


def test_a_column_reads_as_an_array():
    words = np.array(["b", "a", "c", "a", "b", "b"])
    column = Column.of(words)
    for key in (slice(1, 4), [4, 0], np.array([True, False] * 3), slice(0)):
        np.testing.assert_array_equal(column[key], words[key])
    assert column[2] == "c" and list(column) == words.tolist() and len(column) == 6
    np.testing.assert_array_equal(column == "b", words == "b")
    np.testing.assert_array_equal(column != "b", words != "b")
    np.testing.assert_array_equal(column == words[::-1], words == words[::-1])
    np.testing.assert_array_equal(np.isin(column, ["a", "z"]), np.isin(words, ["a", "z"]))
    assert column.numbered({"a": 5, "b": 6}, -1).tolist() == [6, 5, -1, 5, 6, 6]
    more = column.take(np.array([2, 0]), ["x", "y"])
    assert more.tolist() == ["c", "b", "x", "y"] and more.distinct() == ["b", "c", "x", "y"]
    assert more.numbered({"x": 1, "c": 2}).tolist() == [2, 0, 1, 0]
    none = column.take(np.zeros(0, int))
    assert none.tolist() == none.distinct() == [] and none.numbered({"a": 1}).tolist() == []


def test_a_split_that_stays_in_its_files(tmp_path, monkeypatch):
    corpus = load_corpus(write_tones(tmp_path / "c", noise_seconds=40))
    for task in ("all", ["high", "_unknown_", "_silence_"]):
        held = select(corpus, task, "training", 3)
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "FEW", 5)
            rows = select(corpus, task, "training", 3)
        assert isinstance(rows.waves, Rows) and isinstance(held.waves, torch.Tensor)
        assert rows.waves.shape == held.waves.shape and rows.waves.dtype == held.waves.dtype
        for key in (slice(None), slice(3, 9), torch.tensor([5, len(held.waves) - 1, 5]), 4, -1):
            assert torch.equal(rows.waves[key], held.waves[key])
        assert all(map(torch.equal, rows.waves.split(7), held.waves.split(7)))
        assert torch.equal(rows.waves.some(10)[:], held.waves[:: -(-len(held.waves) // 10)])
        assert len(rows.waves.some(10)) <= 10 and len(rows.waves.some(10**6)) == len(held.waves)
        assert torch.equal(rows.targets, held.targets) and torch.equal(rows.samples, held.samples)
        assert rows.paths.tolist() == held.paths.tolist() and rows.speakers.tolist() == held.speakers.tolist()


@pytest.mark.parametrize("task", ["all", ["high", "_unknown_", "_silence_"]])
def test_training_from_files_gives_the_same_bits(tmp_path, monkeypatch, task):
    corpus = write_tones(tmp_path / "c", noise_seconds=40)
    held = run(corpus, tmp_path / "held", epochs=2, task=task)
    monkeypatch.setattr(tasks, "FEW", 5)
    mapped = run(corpus, tmp_path / "mapped", epochs=2, task=task)
    assert same(tmp_path / "held", tmp_path / "mapped") and held["normalisation"] == mapped["normalisation"]
    assert (tmp_path / "held/history.csv").read_bytes() == (tmp_path / "mapped/history.csv").read_bytes()


def test_a_file_of_waves_that_became_shorter(tmp_path, monkeypatch):
    corpus = load_corpus(write_tones(tmp_path / "c", noise_seconds=40))
    monkeypatch.setattr(tasks, "FEW", 5)
    rows = select(corpus, "all", "testing").waves
    (tmp_path / "c/waves.npy").write_bytes((tmp_path / "c/waves.npy").read_bytes()[:-5])
    with pytest.raises(KwsError, match="waves.npy has become shorter"):
        rows[:]


def test_the_rehearsal_and_its_estimates(tmp_path):
    from paper.benchmarks import scale

    out = tmp_path / "scale.json"
    command = [sys.executable, "-m", "paper.benchmarks.scale", "--out", out, "--sizes", "200", "--folder", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["starts"][0]["clips"] == 200 and found["starts"][0]["peak_mb"] > 100
    assert "200 |" in out.with_suffix(".md").read_text() and out.with_suffix(".png").exists()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/m-0.json").write_text('{"clips_per_second": 50}')
    machine = {"timing": "t", "processes": 4, "efficiency": 0.5, "dollars_per_hour": 3}
    work = {"clips": 7200, "training": 36_000, "passes": 10}
    assumed = {"models": ["m"], "machines": {"a": machine}, "work": {"w": work}}
    (row,) = scale.estimates(assumed, 2.0, 1500.0, tmp_path)
    # 360,000 clips at 4 * 50 / 2 a second; 7,200 clips of 32 kB, packed at two a second
    assert row["hours"] == 1 and row["dollars"] == 3 and row["memory_gb"] == 6
    assert row["pack_hours"] == 1 and row["disk_gb"] == 0.2304
    rows = [{"clips": n, **dict.fromkeys(scale.KEYS, n**0.5)} for n in (100, 10_000)]
    assert all(abs(v - 0.5) < 1e-9 for v in scale.exponents(rows).values())


def test_a_corpus_costs_few_bytes_a_clip(tmp_path):
    from paper.benchmarks.scale import synthetic_corpus

    few, many = (synthetic_corpus(tmp_path / str(n), n) for n in (1_000, 101_000))
    cost = []
    for path in (few, many):
        tracemalloc.start()
        corpus = load_corpus(path)
        cost.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(corpus.waves) == 101_000 and len(many.joinpath("waves-000.npy").read_bytes()[:128]) == 128
    assert (cost[1] - cost[0]) / 100_000 < 100
    assert sys.getsizeof(json.dumps(corpus.card)) < 100_000
