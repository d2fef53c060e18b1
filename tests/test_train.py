"""Training learns, repeats itself to the bit, survives being killed, and leaves the test split alone."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kwslib import io as kws_io
from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.io import KwsError, read_csv, write_csv, write_json
from kwslib.spotter import load
from kwslib.training import loop as training
from kwslib.training.config import Config
from kwslib.training.distil import soft_targets

ROOT = Path(__file__).resolve().parent.parent
WORDS = {"high": 2400, "low": 300, "middle": 900}
SPLITS = {"training": 8, "validation": 2, "testing": 2}  # speakers


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three words, each a tone in noise; twelve speakers, each with a pitch, and four clips of each word."""
    root, rng = tmp_path_factory.mktemp("corpora") / "tones", np.random.default_rng(0)
    rows, waves = [], []
    for i, split in enumerate(s for s, n in SPLITS.items() for _ in range(n)):
        pitch = rng.uniform(0.9, 1.1)
        for word, hz in WORDS.items():
            for take in range(4):
                samples = int(rng.integers(9000, 16001))
                wave = 3000 * np.sin(2 * np.pi * hz * pitch * np.arange(16000) / 16000) + rng.normal(0, 1000, 16000)
                waves.append(np.where(np.arange(16000) < samples, wave, 0).astype(np.int16))
                rows.append(
                    {
                        "path": f"{word}/s{i}_nohash_{take}.wav",
                        "word": word,
                        "speaker": f"s{i}",
                        "split": split,
                        "samples": samples,
                    }
                )
    root.mkdir()
    np.save(root / "waves.npy", np.array(waves))
    np.save(root / "noise.npy", rng.normal(0, 500, 10 * 16000).astype(np.int16))
    write_csv(root / "index.csv", rows)
    write_json(
        root / "card.json",
        {
            "name": "tones",
            "source": "made",
            "synthetic": True,
            "licence": "CC0",
            "attribution": "",
            "checksum": "0" * 64,
            "clips": {s: 12 * n for s, n in SPLITS.items()},
            "speakers": SPLITS,
            "words": {w: {s: 4 * n for s, n in SPLITS.items()} for w in WORDS},
        },
    )
    return root


def recipe(corpus, out, **changes):
    small = dict(
        model="keyword_cnn",
        n_mels=16,
        n_fft=2048,
        hop_length=1600,
        epochs=3,
        batch_size=16,
        lr=5e-3,
        grad_clip=1.0,
        freq_mask=[1, 2],
        time_mask=[1, 2],
        shift_ms=20,
        noise=[0, 0.005],
        background_snr=[10, 30],
        precision="fp32",
        device="cpu",
        threads=1,
    )
    return Config(**{**small, "corpus": corpus, "out": out, **changes})


MAMBA = dict(model="mamba_mfcc_small", n_mels=40, lr=3e-3)


def run(*arguments, **changes):
    return training.train(recipe(*arguments, **changes), progress=False)


def same(a, b):
    a, b = (load_file(Path(x) / "model.safetensors") for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """(folder, card) of a whole run, nothing in its way."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(corpus, out)


# -- learning


def test_it_learns(corpus, tmp_path):
    card = run(corpus, tmp_path / "cnn", epochs=6)
    history = read_csv(tmp_path / "cnn" / "history.csv")
    losses = [float(h["training_loss"]) for h in history]
    assert losses[-1] < 0.7 * losses[0] and card["validation"]["accuracy"] > 0.8
    assert card["validation"]["accuracy"] == max(float(h["validation_accuracy"]) for h in history)


def test_mamba_learns_and_repeats_itself_after_a_break(corpus, tmp_path, monkeypatch):
    card = run(corpus, tmp_path / "a", **MAMBA)
    history = read_csv(tmp_path / "a" / "history.csv")
    assert float(history[-1]["training_loss"]) < 0.8 * float(history[0]["training_loss"])
    assert card["validation"]["accuracy"] > 0.7
    broken_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "b", **MAMBA)
    monkeypatch.undo()
    run(corpus, tmp_path / "b", **MAMBA)
    assert same(tmp_path / "a", tmp_path / "b")


def test_bf16(corpus, tmp_path):
    card = run(corpus, tmp_path / "run", epochs=1, precision="bf16", **MAMBA)
    assert card["training"]["precision"] == "bf16"
    weights, _ = read_checkpoint(tmp_path / "run")
    assert all(w.isfinite().all() for w in weights.values())
    assert {w.dtype for w in weights.values()} == {torch.float32}  # autocast computes in bf16, the weights stay


def test_a_loss_that_is_no_number_is_told(corpus, tmp_path):
    with pytest.raises(KwsError, match="the loss is not a number in epoch .; lower lr"):
        run(corpus, tmp_path / "run", lr=1e30, grad_clip=1e30, freq_mask=[0, 0])
    assert not (tmp_path / "run" / "model.safetensors").exists() or read_checkpoint(tmp_path / "run")


# -- distillation


def test_soft_targets_are_the_words_and_the_teachers_mean(corpus, finished):
    split = select(load_corpus(corpus), "all", "training")
    hot = torch.nn.functional.one_hot(split.targets, 3).float()
    assert torch.equal(soft_targets([finished[0]], split, 0.0, 2.0), hot)
    teacher = load(finished[0])
    said = teacher.logits(split.waves / 32768, split.samples)
    torch.testing.assert_close(soft_targets([finished[0]], split, 1.0, 1.0), said.softmax(1), rtol=0, atol=1e-3)
    mixed = soft_targets([finished[0], finished[0]], split, 0.25, 4.0)
    torch.testing.assert_close(mixed, 0.75 * hot + 0.25 * (said / 4).softmax(1), rtol=0, atol=1e-3)


def test_a_student_learns_what_its_teacher_says(corpus, tmp_path, finished):
    weights, card = read_checkpoint(finished[0])
    last = [k for k, v in weights.items() if v.shape[:1] == (3,)]
    assert last  # a teacher that calls each word by the next one's name
    save_checkpoint(
        tmp_path / "wrong" / "model.safetensors",
        {k: v.roll(1, 0) if k in last else v for k, v in weights.items()},
        card,
    )
    taught = dict(epochs=6, teachers=[tmp_path / "wrong"], temperature=1.0)
    assert run(corpus, tmp_path / "believes", distillation=1.0, **taught)["validation"]["accuracy"] < 0.35
    assert run(corpus, tmp_path / "doubts", distillation=0.1, **taught)["validation"]["accuracy"] > 0.8


def test_a_teacher_of_other_words_is_refused(corpus, tmp_path, finished):
    with pytest.raises(KwsError, match="knows 3 labels, which are not the 2 of this task"):
        run(corpus, tmp_path, task=["high", "low"], teachers=[finished[0]])
    with pytest.raises(KwsError, match="a share from 0 to 1"):
        recipe(corpus, tmp_path, teachers=[finished[0]], distillation=1.5)


def test_a_checkpoint_from_before_a_key_was_known_is_the_same_run(finished):
    card = finished[1]
    older = {**card, "recipe": {k: v for k, v in card["recipe"].items() if k not in ("teachers", "mixup")}}
    assert training.same_run(older, card) and not training.same_run(
        older, {**card, "recipe": {**card["recipe"], "mixup": 0.2}}
    )


# -- what lies in the folder


def test_what_a_run_leaves(corpus, finished):
    out, card = finished
    assert sorted(os.listdir(out)) == ["history.csv", "model.json", "model.safetensors"]
    weights, header = read_checkpoint(out)
    assert json.loads((out / "model.json").read_text()) == header == json.loads(json.dumps(card))
    assert (out / "model.safetensors").read_bytes()[8:9] == b"{"  # a JSON header, no pickle
    assert header["labels"] == sorted(WORDS) and weights["classify.1.weight"].shape == (3, 128)
    assert header["finished"] and header["corpus"]["checksum"] == "0" * 64 and header["recipe"]["lr"] == 5e-3
    assert header["validation"]["n"] == 24 and header["training"]["epochs"] == 3
    history = read_csv(out / "history.csv")
    assert list(history[0]) == [
        "epoch",
        "lr",
        "training_loss",
        "training_accuracy",
        "validation_loss",
        "validation_accuracy",
        "clips_per_second",
        "seconds",
    ]
    assert [h["epoch"] for h in history] == ["1", "2", "3"]
    assert float(history[-1]["lr"]) == pytest.approx(5e-3 * 0.005)


def test_the_same_seed_gives_the_same_bits_and_another_others(corpus, finished, tmp_path):
    run(corpus, tmp_path / "again")
    run(corpus, tmp_path / "other", seed=1)
    assert same(finished[0], tmp_path / "again") and not same(finished[0], tmp_path / "other")


def test_a_finished_run_is_not_trained_again_and_a_changed_recipe_is(corpus, finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "resume.safetensors").write_bytes(b"left by a run that was killed at its last step")
    monkeypatch.setattr(training, "train_epoch", lambda *_: pytest.fail("trained again"))
    assert run(corpus, out) == read_checkpoint(finished[0])[1]
    assert same(out, finished[0]) and not (out / "resume.safetensors").exists()
    monkeypatch.undo()
    assert run(corpus, out, epochs=2)["recipe"]["epochs"] == 2
    run(corpus, tmp_path / "fresh", epochs=2)
    assert same(out, tmp_path / "fresh") and len(read_csv(out / "history.csv")) == 2


def test_the_test_split_is_never_read(corpus, finished, tmp_path, monkeypatch):
    poisoned = shutil.copytree(corpus, tmp_path / "poisoned")
    waves, asked = np.load(poisoned / "waves.npy"), []
    waves[load_corpus(corpus).splits == "testing"] = 32767
    np.save(poisoned / "waves.npy", waves)
    select = training.select
    monkeypatch.setattr(training, "select", lambda *a: asked.append(a[2]) or select(*a))
    run(poisoned, tmp_path / "run")
    assert same(finished[0], tmp_path / "run") and set(asked) == {"training", "validation"}


# -- breaks


def broken_after(monkeypatch, writes):
    """Let the run stop just after it has written this many files, as a kill would."""
    replace, count = os.replace, iter(range(1, writes + 1))

    def stop(source, target):
        replace(source, target)
        if next(count) == writes:
            raise KeyboardInterrupt

    monkeypatch.setattr(kws_io.os, "replace", stop)


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9, "mixup": 0.4, "optimizer": "novograd", "lr": 0.02}], ids=["plain", "averaged"]
)
def test_a_run_stopped_at_any_write_ends_with_the_same_bits(corpus, tmp_path, monkeypatch, changes):
    whole = tmp_path / "whole"
    run(corpus, whole, epochs=2, **changes)
    for write in range(1, 8):  # history, card, weights, resume; history, card, weights
        out = tmp_path / str(write)
        broken_after(monkeypatch, write)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, out, epochs=2, **changes)
        monkeypatch.undo()
        assert (out / "model.safetensors").exists() == (write > 2)
        assert write <= 2 or read_checkpoint(out)[1]["finished"] == (write == 7)
        assert run(corpus, out, epochs=2, **changes)["finished"] and same(whole, out)
        assert sorted(os.listdir(out)) == ["history.csv", "model.json", "model.safetensors"]
        timeless = [
            [
                {k: v for k, v in h.items() if k not in ("seconds", "clips_per_second")}
                for h in read_csv(folder / "history.csv")
            ]
            for folder in (whole, out)
        ]
        assert timeless[0] == timeless[1] and len(timeless[0]) == 2
        assert json.loads((out / "model.json").read_text()) == read_checkpoint(out)[1]


def test_a_killed_run_ends_with_the_same_bits(corpus, tmp_path):
    whole, out, epochs = tmp_path / "whole", tmp_path / "run", 16
    run(corpus, whole, epochs=epochs)
    server = multiprocessing.get_context("forkserver")  # the children share one import of torch
    server.set_forkserver_preload(["kwslib.train", "torch._dynamo"])
    for epoch in (2, 5):
        child = server.Process(target=training.train, args=(recipe(corpus, out, epochs=epochs), False))
        child.start()
        while child.is_alive() and not ((out / "history.csv").exists() and len(read_csv(out / "history.csv")) >= epoch):
            time.sleep(0.001)
        child.kill()  # as it writes the epoch, or soon after
        child.join()
        assert child.exitcode == -9
        header = read_checkpoint(out)[1]
        assert header["training"]["epochs"] >= epoch - 1 and not header["finished"]
    assert (out / "resume.safetensors").exists()
    run(corpus, out, epochs=epochs)
    assert same(whole, out) and sorted(os.listdir(out))[-3:] == [
        "history.csv",
        "model.json",
        "model.safetensors",
    ]
    assert [h["epoch"] for h in read_csv(out / "history.csv")] == [str(n + 1) for n in range(epochs)]


def test_two_processes_train_one_model(corpus, tmp_path):
    """As torchrun and accelerate start them; the guard against a process that fails or writes beside the first."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "kwslib.train",
        "--model",
        "keyword_cnn",
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "2",
        "--batch_size",
        "16",
        "--lr",
        "3e-3",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation accuracy") == 1
    card = read_checkpoint(tmp_path / "run")[1]
    assert (
        card["finished"] and card["training"]["processes"] == 2 and len(read_csv(tmp_path / "run" / "history.csv")) == 2
    )


def test_a_damaged_resume_file_is_named(corpus, tmp_path):
    (tmp_path / "resume.safetensors").write_text("not tensors")
    with pytest.raises(KwsError, match="resume.safetensors is damaged .*; delete it"):
        run(corpus, tmp_path)


def test_guard_goes_back_and_slower(corpus, tmp_path, monkeypatch):
    accuracies, starts, ends, scales = iter([0.9, 0.8, 0.4, 0.5]), [], [], []

    def copy(model):
        return {k: v.clone() for k, v in model.state_dict().items()}

    def epoch(model, optimizer, *rest):
        starts.append((copy(model), len(optimizer.state)))
        scales.append(rest[4])
        result = train_epoch(model, optimizer, *rest)
        ends.append(copy(model))
        return result

    train_epoch = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", epoch)
    monkeypatch.setattr(training, "evaluate", lambda *_: (1.0, next(accuracies)))
    card = run(corpus, tmp_path / "run", epochs=4)

    def equal(a, b):
        return all(torch.equal(a[k], b[k]) for k in a)

    assert equal(starts[2][0], ends[1]) and not equal(starts[3][0], ends[2])
    assert equal(starts[3][0], ends[0]) and starts[3][1] == 0 and starts[2][1] > 0  # best weights, no momentum
    assert scales == [1, 1, 1, pytest.approx(0.2)]
    lr = [float(h["lr"]) for h in read_csv(tmp_path / "run" / "history.csv")]
    assert lr[3] == pytest.approx(5e-3 * 0.005 / 5)
    assert card["validation"]["epoch"] == 1 and equal(read_checkpoint(tmp_path / "run")[0], ends[0])


def test_gpu_that_is_not_there(corpus, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(KwsError, match="device is cuda but PyTorch sees no GPU here"):
        run(corpus, tmp_path / "run", device="cuda")
