"""Metrics: scikit-learn's numbers; an interval that resamples speakers; the result file, and a
disk that does not take it."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import WORDS, recipe, run

from kwslib import cli as commands
from kwslib import evaluation
from kwslib import io as kws_io
from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.io import KwsError, cli, write_json
from kwslib.metrics import confusion_matrix, report, speaker_interval
from kwslib.training import loop as training

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["cat", "dog", "go", "up", "yes"]


def answers(n=400, seed=0, words=4):
    """Targets of the first `words` labels, predictions that are mostly right, speakers."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(words, size=n)
    predictions = np.where(rng.random(n) < 0.7, targets, rng.integers(5, size=n))
    return targets, predictions, rng.integers(25, size=n).astype(str)


@pytest.mark.parametrize("words", [4, 5])
def test_scikit_learn_agrees(words):
    sk = pytest.importorskip("sklearn.metrics")
    targets, predictions, speakers = answers(words=words)
    r = report(targets, predictions, speakers, LABELS)
    every, present = range(5), range(words)
    assert r["confusion"] == sk.confusion_matrix(targets, predictions, labels=every).tolist()
    assert r["accuracy"] == pytest.approx(sk.accuracy_score(targets, predictions))
    assert r["macro_f1"] == pytest.approx(sk.f1_score(targets, predictions, labels=present, average="macro"))
    precision, recall, _, n = sk.precision_recall_fscore_support(targets, predictions, labels=every, zero_division=0)
    assert list(r["per_word"]) == LABELS
    for i, word in enumerate(LABELS):
        assert r["per_word"][word] == pytest.approx({"precision": precision[i], "recall": recall[i], "n": n[i]})
    assert r["n"] == 400 and r["speakers"] == len(set(speakers))
    assert json.loads(json.dumps(r, allow_nan=False)) == r


def test_every_speaker_is_counted():
    r = report([0, 1, 1, 0], [0, 1, 0, 0], np.array(["b", "a", "a", "b"]), ["no", "yes"])
    assert r["by_speaker"] == {"a": [1, 2], "b": [2, 2]}


def test_confusion_has_a_row_for_words_that_never_occur():
    assert confusion_matrix([0, 0], np.array([0, 2]), 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_interval_is_wider_where_speakers_agree_with_themselves():
    rng = np.random.default_rng(1)
    speakers = np.repeat(np.arange(40), 20)
    alike = np.repeat(rng.random(40) < 0.8, 20)  # a speaker is all right or all wrong
    independent = rng.permutation(alike)  # the same accuracy, spread over all speakers
    wide, narrow = (np.diff(speaker_interval(c, speakers))[0] for c in (alike, independent))
    assert wide > 3 * narrow
    clips = np.diff(speaker_interval(independent, np.arange(800)))[0]
    assert narrow == pytest.approx(clips, rel=0.35)


@pytest.mark.parametrize("seed", range(5))
def test_interval_holds_the_accuracy_and_is_the_same_every_time(seed):
    targets, predictions, speakers = answers(150, seed)
    correct = targets == predictions
    low, high = speaker_interval(correct, speakers)
    assert 0 <= low < correct.mean() < high <= 1
    assert [low, high] == speaker_interval(correct, speakers)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        speakers = np.repeat(np.arange(60), 10)
        skill = rng.beta(8, 2, size=60)  # the truth is 0.8
        low, high = speaker_interval(rng.random(600) < skill[speakers], speakers, draws=300)
        covered += low <= 0.8 <= high
    assert 0.88 < covered / 200 < 0.995


def test_all_right_is_one():
    assert speaker_interval(np.ones(30, bool), np.arange(30)) == [1.0, 1.0]


# -- the result file


def test_result_file(corpus, finished, tmp_path):
    out, card = finished
    result = evaluation.evaluate(out, corpus, tmp_path / "results" / "tiny")
    assert json.loads((tmp_path / "results/tiny/runs/keyword_cnn-0.json").read_text()) == result
    copied = tmp_path / "results/tiny/history/keyword_cnn-0.csv"
    assert copied.read_text() == (out / "history.csv").read_text()
    assert set(result) == {
        "model",
        "seed",
        "profile",
        "corpus",
        "task",
        "labels",
        "parameters",
        "macs",
        "config",
        "validation",
        "test",
        "test_common",
        "training",
    }
    assert (result["model"], result["seed"], result["profile"], result["task"]) == ("keyword_cnn", 0, "tiny", "all")
    assert set(result["corpus"]) == {
        "name",
        "source",
        "synthetic",
        "licence",
        "attribution",
        "checksum",
        "clips",
        "speakers",
    }
    assert result["corpus"]["clips"] == {"training": 96, "validation": 24, "testing": 24}
    assert result["labels"] == sorted(WORDS) and result["parameters"] == 93_507 and result["macs"] > 0
    assert result["config"] == card["recipe"] and result["validation"] == card["validation"]
    t = result["test"]
    assert set(t) == {"n", "speakers", "accuracy", "interval", "macro_f1", "per_word", "confusion", "by_speaker"}
    assert len(t["by_speaker"]) == 2 and np.sum(list(t["by_speaker"].values()), 0).tolist() == [
        np.trace(t["confusion"]),
        24,
    ]
    assert t["n"] == 24 and t["speakers"] == 2 and np.sum(t["confusion"]) == 24
    assert t["accuracy"] == pytest.approx(np.trace(t["confusion"]) / 24)
    assert t["per_word"].keys() == WORDS.keys() and result["test_common"] is None
    assert set(result["training"]) == {"epochs", "clips", "processes", "precision", "resumed"}
    timing = json.loads((tmp_path / "results/tiny/timing/keyword_cnn-0.json").read_text())
    assert timing["seconds"] > 0 and timing["clips_per_second"] > 0 and timing["machine"]["threads"] == 1


def test_only_the_timing_depends_on_the_moment(corpus, finished, tmp_path):
    """Trained and tested again, every result file is the same, byte for byte; so is the checkpoint."""
    again, folders = tmp_path / "again", (tmp_path / "a", tmp_path / "b")
    run(corpus, again)
    for checkpoint, folder in zip((finished[0], again), folders):
        evaluation.evaluate(checkpoint, corpus, folder, "tiny")
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    differing = {str(name) for name in files[0] if files[0][name] != files[1].get(name)}
    assert files[0].keys() == files[1].keys() and differing == {"timing/keyword_cnn-0.json"}
    for name in ("model.safetensors", "model.json", "history.csv"):
        assert (again / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_accuracy_of_common_words(corpus, finished, tmp_path, monkeypatch):
    rich = shutil.copytree(corpus, tmp_path / "rich")
    card = json.loads((rich / "card.json").read_text())
    card["words"]["low"]["training"] = card["words"]["high"]["training"] = 700
    write_json(rich / "card.json", card)
    result = evaluation.evaluate(finished[0], rich, tmp_path / "results")
    common, confusion = result["test_common"], result["test"]["confusion"]
    assert common["minimum_training_clips"] == 700 and common["words"] == ["high", "low"] and common["n"] == 16
    assert common["accuracy"] == pytest.approx((confusion[0][0] + confusion[1][1]) / 16)


def test_headline_is_a_few_numbers_of_the_result(corpus, finished, tmp_path):
    result = evaluation.evaluate(finished[0], corpus, tmp_path / "results")
    headline = json.loads((tmp_path / "results/metrics/keyword_cnn-0.json").read_text())
    assert headline["test_accuracy"] == result["test"]["accuracy"]
    assert [headline["interval_low"], headline["interval_high"]] == result["test"]["interval"]
    assert headline["parameters"] == 93_507 and all(isinstance(v, (int, float)) for v in headline.values())


def test_an_unfinished_training_is_not_tested(corpus, finished, tmp_path):
    weights, card = read_checkpoint(finished[0])
    save_checkpoint(tmp_path / "model.safetensors", weights, {**card, "finished": False})
    with pytest.raises(KwsError, match="stopped after epoch .*run the same training command again"):
        evaluation.evaluate(tmp_path, corpus, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_another_label_set_is_refused(corpus, finished, tmp_path):
    other = shutil.copytree(corpus, tmp_path / "other")
    index = (other / "index.csv").read_text()
    (other / "index.csv").write_text(index.replace(",middle,", ",medium,"))
    with pytest.raises(KwsError, match="knows high, low, middle, corpus .*other holds high, low, medium"):
        evaluation.evaluate(finished[0], other, tmp_path / "results")
    assert not (tmp_path / "results").exists()


# -- the disk


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sentence(capsys, command, *arguments):
    """What a command that fails says: one line, no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        cli(lambda: command([*map(str, arguments)]))
    *before, told = capsys.readouterr().err.splitlines(keepends=True)
    noted = (" min left\n", " gives more\n")  # of each epoch, and of few steps
    assert all(line.endswith(noted) for line in before), before
    assert e.value.code == 2 and told.count("\n") == 1 and told.startswith("error: "), told
    return told


def flags(config):
    return [f"--{k}={json.dumps(v) if not isinstance(v, Path) else v}" for k, v in config.model_dump().items()]


@pytest.mark.parametrize("where", ["fsync", "write_bytes"])
def test_full_disk(corpus, tmp_path, monkeypatch, capsys, where):
    out = tmp_path / "run"
    with monkeypatch.context() as m:
        m.setattr(*{"fsync": (kws_io.os, "fsync"), "write_bytes": (Path, "write_bytes")}[where], full)
        told = sentence(capsys, commands.train, *flags(recipe(corpus, out, epochs=1)))
    assert "No space left on device; free some space" in told
    assert not (out / "model.safetensors").exists() and not list(out.glob(".*"))  # no scratch file either
    assert run(corpus, out, epochs=1)["finished"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full")
def test_full_disk_for_real(tmp_path):
    """The writer itself raises OSError on a full disk, whatever library is beneath it."""
    (tmp_path / f".model.safetensors.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as e:
        save_checkpoint(tmp_path / "model.safetensors", {"a": torch.zeros(100_000)}, {})
    assert e.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_where_the_folder_should_be(corpus, finished, tmp_path, monkeypatch, capsys, below):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / below
    monkeypatch.setattr(training, "train_epoch", lambda *_: pytest.fail("trained before it looked"))
    told = sentence(capsys, commands.train, *flags(recipe(corpus, out)))
    assert f"cannot write {out}" in told and "choose a folder" in told
    told = sentence(capsys, commands.test, finished[0], "--corpus", corpus, "--out", out)
    assert "cannot write" in told and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--lr", "fast"], "config key lr is 'fast'"),
        (["--learning-rate", "1"], "'--learning-rate' is not an option"),
        (["--config", "none.yaml"], "none.yaml does not exist"),
        (["--corpus", "no/such"], "corpus no/such does not exist"),
        (["--device", "abacus"], "device 'abacus' is not known"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert match in sentence(capsys, commands.train, *arguments)
    assert list(tmp_path.iterdir()) == []
