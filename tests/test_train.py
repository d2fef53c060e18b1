"""Training learns, repeats itself to the bit, and leaves the test split alone."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from small_runs import MAMBA, WORDS, recipe, run, same

from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.io import KwsError, read_csv
from kwslib.spotter import load
from kwslib.training import loop as training
from kwslib.training.distil import soft_targets
from kwslib.training.resume import same_run

pytestmark = pytest.mark.usefixtures("one_thread")


# -- learning


def test_it_learns(corpus, tmp_path):
    card = run(corpus, tmp_path / "cnn", epochs=6)
    history = read_csv(tmp_path / "cnn" / "history.csv")
    losses = [float(h["training_loss"]) for h in history]
    assert losses[-1] < 0.7 * losses[0] and card["validation"]["accuracy"] > 0.8
    assert card["validation"]["accuracy"] == max(float(h["validation_accuracy"]) for h in history)


def test_options_of_the_model_reach_it_and_its_checkpoint(corpus, tmp_path):
    small = {"d_model": 16, "n_layers": 2, "d_state": 4, "scan_backend": "reference"}
    card = run(corpus, tmp_path / "run", epochs=1, model_options=small, **MAMBA)
    assert card["recipe"]["model_options"] == small
    trained = load(tmp_path / "run")
    assert trained.model.blocks[0].mixer.A_log.shape[1] == 4 and len(trained.model.blocks) == 2
    with pytest.raises(KwsError, match="has no option 'd_stat'"):
        run(corpus, tmp_path / "wrong", model_options={"d_stat": 4}, **MAMBA)


def test_bf16(corpus, tmp_path):
    card = run(corpus, tmp_path / "run", epochs=1, precision="bf16", **MAMBA)
    assert card["training"]["precision"] == "bf16"
    weights, _ = read_checkpoint(tmp_path / "run")
    assert all(w.isfinite().all() for w in weights.values())
    assert {w.dtype for w in weights.values()} == {torch.float32}  # autocast computes in bf16, the weights stay


def test_a_loss_that_is_no_number_is_told(corpus, tmp_path):
    with pytest.raises(KwsError, match="(the loss|a weight) is not a number in epoch .; lower lr"):
        run(corpus, tmp_path / "run", lr=1e6, grad_clip=1e6, freq_mask=[0, 0])
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
    with pytest.raises(KwsError, match="distillation is 1.5; it must be at least 0 and at most 1"):
        recipe(corpus, tmp_path, teachers=[finished[0]], distillation=1.5)


def test_a_checkpoint_from_before_a_key_was_known_is_the_same_run(finished):
    card = finished[1]
    older = {**card, "recipe": {k: v for k, v in card["recipe"].items() if k not in ("teachers", "mixup")}}
    assert same_run(older, card) and not same_run(older, {**card, "recipe": {**card["recipe"], "mixup": 0.2}})


# -- what lies in the folder


def test_what_a_run_leaves(corpus, finished):
    out, card = finished
    assert sorted(os.listdir(out)) == ["history.csv", "model.json", "model.safetensors", "timing.json"]
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
