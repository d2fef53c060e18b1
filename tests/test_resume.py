"""A training that is killed, resumed, or spread over two processes gives the same weights, bit for bit."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from small_runs import MAMBA, recipe, run, same, write_tones

from kwslib import io as kws_io
from kwslib.checkpoint import read_checkpoint
from kwslib.io import KwsError, read_csv
from kwslib.models.registry import MODELS, build
from kwslib.training import loop as training
from kwslib.training.config import Config, load_config
from kwslib.training.device import Place
from kwslib.training.optim import Schedule, make_optimizer
from kwslib.training.resume import Run, recipe_of

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")


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
    for write in range(1, 10):  # timing, history, card, weights, resume; timing, history, card, weights
        out = tmp_path / str(write)
        broken_after(monkeypatch, write)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, out, epochs=2, **changes)
        monkeypatch.undo()
        assert (out / "model.safetensors").exists() == (write > 3)
        assert write <= 3 or read_checkpoint(out)[1]["finished"] == (write == 9)
        assert run(corpus, out, epochs=2, **changes)["finished"] and same(whole, out)
        assert sorted(os.listdir(out)) == ["history.csv", "model.json", "model.safetensors", "timing.json"]
        histories = [read_csv(folder / "history.csv") for folder in (whole, out)]
        assert histories[0] == histories[1] and len(histories[0]) == 2
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
    assert same(whole, out) and not (out / "resume.safetensors").exists()
    assert [h["epoch"] for h in read_csv(out / "history.csv")] == [str(n + 1) for n in range(epochs)]


def test_two_processes_train_one_model(corpus, tmp_path):
    """As torchrun and accelerate start them; the guard against a process that fails or writes beside the first."""
    options = "--model keyword_cnn --epochs 2 --batch_size 16 --lr 3e-3 --device cpu".split()
    command = [sys.executable, *"-m torch.distributed.run --nproc_per_node 2 -m kwslib.train".split(), *options]
    command += ["--corpus", str(corpus), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation accuracy") == 1
    card = read_checkpoint(tmp_path / "run")[1]
    assert (
        card["finished"] and card["training"]["processes"] == 2 and len(read_csv(tmp_path / "run" / "history.csv")) == 2
    )


def test_two_processes_report_what_both_saw(monkeypatch):
    """Sums of both: of a process's loss, hits and clips alone the first would report its own share."""
    place = Place(Config(device="cpu"))
    monkeypatch.setattr(place, "world", 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: total.add_(torch.tensor([3.0, 1.0, 4.0])))
    total = torch.tensor([1.0, 3.0, 4.0])
    place.add_up(total)
    assert total.tolist() == [4, 4, 8]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "novograd"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_the_same_step_after_a_break(tmp_path, name, optimizer):
    """Kernels may be channels-last, and a fused step pairs weights and moments by their place in memory."""
    config = Config(model=name, optimizer=optimizer, lr=1e-2, corpus="", ema=0.9)

    def step(run, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in run.model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.grad = torch.empty_like(p).copy_(noise)
        run.optimizer.step()
        run.average.update(run.model)

    def fresh():
        torch.manual_seed(0)
        model = build(name, 3)
        card = {"recipe": recipe_of(config), "corpus": {"checksum": "0"}}
        optimizer, scaler = make_optimizer(model, config, CPU), torch.amp.GradScaler(enabled=False)
        return Run(model, optimizer, scaler, config.ema, card)

    first, second = fresh(), fresh()
    step(first, 1)
    first.save(tmp_path / "resume")
    assert second.load(tmp_path / "resume")
    step(first, 2)
    step(second, 2)
    for a, b in zip(first.model.state_dict().items(), second.model.state_dict().items()):
        assert a[0] == b[0] and torch.equal(a[1], b[1]), a[0]
    assert all(torch.equal(v, second.average.weights[k]) for k, v in first.average.weights.items())


@pytest.fixture(scope="module")
def two_words(tmp_path_factory):
    """A corpus of sixteen training clips."""
    few = {"training": 4, "validation": 1, "testing": 1}
    return write_tones(tmp_path_factory.mktemp("few") / "tones", {"high": 2400, "low": 300}, few, takes=2)


def smallest(name):
    """Options with which model `name` is small."""
    small = {"d_model": 16, "n_layers": 1, "repeats": 1, "channels": 8, "width": 8}
    return {k: 0.1 if isinstance(v, float) else small[k] for k, v in MODELS[name].options.items() if k in small}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_resumes_to_the_same_bits(two_words, tmp_path, monkeypatch, name):
    """With its own recipe."""

    def train(out):
        place = dict(corpus=two_words, out=tmp_path / out, precision="fp32", device="cpu", threads=1)
        config = load_config(name, model_options=smallest(name), batch_size=6, epochs=2, **place)
        return training.train(config, progress=False)

    train("whole")
    broken_after(monkeypatch, 5)  # the files of the first epoch
    with pytest.raises(KeyboardInterrupt):
        train("run")
    monkeypatch.undo()
    card = train("run")
    assert same(tmp_path / "whole", tmp_path / "run") and card["training"]["resumed"] == 1


def test_a_damaged_resume_file_is_named(corpus, tmp_path):
    (tmp_path / "resume.safetensors").write_text("not tensors")
    with pytest.raises(KwsError, match="resume.safetensors is damaged .*; delete it"):
        run(corpus, tmp_path)


def test_guard_goes_back_and_slower(corpus, tmp_path, monkeypatch):
    accuracies, starts, ends, rates = iter([0.9, 0.8, 0.4, 0.5]), [], [], []

    def copy(model):
        return {k: v.clone() for k, v in model.state_dict().items()}

    def epoch(model, optimizer, *rest):
        starts.append((copy(model), len(optimizer.state)))
        rates.append(rest[3])
        result = train_epoch(model, optimizer, *rest)
        ends.append(copy(model))
        return result

    train_epoch = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", epoch)
    monkeypatch.setattr(training, "validate", lambda *_: (1.0, next(accuracies)))
    card = run(corpus, tmp_path / "run", epochs=4)

    def equal(a, b):
        return all(torch.equal(a[k], b[k]) for k in a)

    assert equal(starts[2][0], ends[1]) and not equal(starts[3][0], ends[2])
    assert equal(starts[3][0], ends[0]) and starts[3][1] == 0 and starts[2][1] > 0  # best weights, no momentum
    schedule, steps = Schedule(recipe(corpus, tmp_path, epochs=4), len(rates[0])), len(rates[0])
    assert rates[2] == [schedule(i) for i in range(2 * steps, 3 * steps)]
    assert rates[3] == pytest.approx([schedule(i) / 5 for i in range(3 * steps, 4 * steps)])
    lr = [float(h["lr"]) for h in read_csv(tmp_path / "run" / "history.csv")]
    assert lr[3] == pytest.approx(5e-3 * 0.005 / 5)
    assert card["validation"]["epoch"] == 1 and equal(read_checkpoint(tmp_path / "run")[0], ends[0])


def test_gpu_that_is_not_there(corpus, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(KwsError, match="device is cuda but PyTorch sees no GPU here"):
        run(corpus, tmp_path / "run", device="cuda")
