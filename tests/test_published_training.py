"""Optimisation as the published runs had it, against what their logs print: rates, decay, the guard, and its notes."""

import json

import pytest
import torch
from small_runs import recipe, run

from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.io import KwsError, read_csv
from kwslib.models.registry import build
from kwslib.spotter import load
from kwslib.training import loop as training
from kwslib.training.config import Config, load_config
from kwslib.training.device import Place
from kwslib.training.optim import Schedule, make_optimizer
from kwslib.training.resume import Run, recipe_of, same_run

pytestmark = pytest.mark.usefixtures("one_thread")
CLIPS = 84_848  # of training, and the last batch of an epoch is kept where it is not full


# -- the schedule


@pytest.mark.parametrize(
    "name, warm, end, last",  # steps of warm-up, the step at which the cosine ends, the rate printed last
    [
        ("mamba_mel_small", 15_912, 132_600, 2.50e-6),
        ("mamba_mel_medium", 15_912, 132_600, 2.50e-6),
        ("mamba_mel_large_as_run", 15_912, 132_600, 1.50e-6),
        ("mamba_mfcc_small", 6_630, 66_300, None),
        ("mamba_mfcc_medium", 7_956, 66_300, None),
        ("mamba_mfcc_large", 6_630, 66_300, None),
        ("retnet_as_run", 15_912, 198_900, 1.45e-4),
        ("mobilenet_v2_075", 6_630, 99_450, 2.83e-4),
    ],
)
def test_rates_are_the_published(name, warm, end, last):
    config = load_config(name)
    steps = -(-CLIPS // config.batch_size)
    schedule = Schedule(config, steps)
    assert (schedule.warmup, schedule.total) == (warm, end)
    assert schedule(0) == 0 and schedule(warm) == config.lr > schedule(warm - 1) > schedule(warm - 2)
    assert schedule(warm // 2) == pytest.approx(config.lr / 2)
    assert schedule((warm + end) // 2) == pytest.approx(config.lr / 2)  # half-way down the cosine
    assert last is None or float(f"{schedule(100 * steps - 1):.2e}") == last
    if config.horizon == 1:  # the cosine is cut off, not stretched down to the floor
        floor = schedule(100 * steps - 1)
        assert schedule(99 * steps) == floor == config.lr * config.final_lr < schedule(90 * steps)


def test_clamped_without_warm_up_begins_at_the_peak():
    schedule = Schedule(Config(lr=1e-3, epochs=1, schedule="clamped", warmup=0.0), 4)
    assert [schedule(k) for k in range(4)] == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.4645e-4], rel=1e-4)


# -- decay


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "novograd"])
@pytest.mark.parametrize("decay, left", [("all", 0), ("matrices", 1)])
def test_what_decays(decay, left, optimizer):
    """With gradients of zero a step is nothing but decay."""
    config = Config(optimizer=optimizer, decay=decay, lr=0.1, weight_decay=0.5)
    model = build("mamba_mfcc_small", 3, n_layers=1)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {k: not torch.equal(p, before[k]) for k, p in model.named_parameters() if before[k].any()}
    for name in ("A_log", "D", "dt_proj.bias", "conv1d.bias"):
        assert moved[f"blocks.0.mixer.{name}"] == (decay == "all"), name
    assert moved["blocks.0.mixer.in_proj.weight"] and all(moved.values()) == (left == 0)


# -- the guard


def epochs_of(accuracies, corpus, out, monkeypatch, **changes):
    """Train on, with these accuracies for the validation's. Returns each epoch's (rates, weights and moments before it,
    weights after it), and the card."""
    seen, train_epoch, accuracies = [], training.train_epoch, list(accuracies)

    def copy(model):
        return {k: v.clone() for k, v in model.state_dict().items()}

    def epoch(model, optimizer, *rest):
        before = copy(model), len(optimizer.state)
        result = train_epoch(model, optimizer, *rest)
        seen.append((rest[3], *before, copy(model)))
        return result

    monkeypatch.setattr(training, "train_epoch", epoch)
    monkeypatch.setattr(training, "validate", lambda *_: accuracies[len(seen) - 1])
    card = run(corpus, out, epochs=len(accuracies), lr=5e-3, **changes)
    monkeypatch.undo()
    return seen, card


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_the_published_guard_cuts_one_step(corpus, tmp_path, monkeypatch):
    changes = dict(guard="published", schedule="clamped")
    accuracies = [(1.0, a) for a in (0.2, 0.09, 0.9, 0.44, 0.44, 0.2, 0.1)]
    seen, card = epochs_of(accuracies, corpus, tmp_path / "run", monkeypatch, **changes)
    rates, starts, moments, ends = zip(*seen)
    steps = len(rates[0])
    schedule = Schedule(recipe(corpus, "run", epochs=7, **changes), steps)
    expected = [[schedule(e * steps + i) for i in range(steps)] for e in range(7)]
    expected[4][0] /= 5  # 0.44 is less than half of 0.9; the 0.2 and 0.1 that follow were never above a half
    assert list(rates) == expected and rates[4][0] > 1e-6
    assert equal(starts[4], ends[2]) and moments[4] > 0  # the best weights, the optimizer's state as it was
    assert all(equal(starts[e], ends[e - 1]) for e in (1, 2, 3, 5, 6))
    assert card["validation"]["epoch"] == 3


def test_the_cut_rate_has_a_floor_and_survives_a_break(corpus, tmp_path, monkeypatch):
    changes = dict(guard="published", schedule="clamped", final_lr=0.0, epochs=3, lr=1e-6)
    seen, measured, train_epoch = [], iter([(1.0, 0.9), (1.0, 0.3)]), training.train_epoch

    def epoch(*rest):
        seen.append(rest[5])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return train_epoch(*rest)

    monkeypatch.setattr(training, "train_epoch", epoch)
    monkeypatch.setattr(training, "validate", lambda *_: next(measured, (1.0, 0.5)))
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "run", **changes)
    card = run(corpus, tmp_path / "run", **changes)
    assert seen[2] == seen[3] and seen[3][0] == 1e-6 > seen[3][1] and card["training"]["resumed"] == 1


def test_no_guard(corpus, tmp_path, monkeypatch):
    accuracies = [(1.0, a) for a in (0.9, 0.1, 0.1)]
    seen, _ = epochs_of(accuracies, corpus, tmp_path / "run", monkeypatch, guard="none")
    assert all(equal(seen[e][1], seen[e - 1][3]) for e in (1, 2))


# -- the best epoch


def test_of_two_equal_accuracies_the_lower_loss_is_kept(corpus, tmp_path, monkeypatch):
    measured = [(0.9, 0.5), (0.7, 0.75), (0.8, 0.75), (0.6, 0.75), (0.6, 0.75), (0.1, 0.7)]
    seen, card = epochs_of(measured, corpus, tmp_path / "run", monkeypatch, guard="none")
    assert card["validation"]["epoch"] == 4 and card["validation"]["accuracy"] == 0.75
    assert equal(read_checkpoint(tmp_path / "run")[0], seen[3][3])


def test_the_resume_file_keeps_the_loss_of_the_best(tmp_path):
    def fresh():
        model, config = torch.nn.Linear(2, 2), Config()
        card = {"recipe": recipe_of(config), "corpus": {"checksum": "0"}}
        optimizer = make_optimizer(model, config, torch.device("cpu"))
        return Run(model, optimizer, torch.amp.GradScaler(enabled=False), 0.0, card)

    first, second = fresh(), fresh()
    first.end_epoch(0.1, 1.0, 0.5, 0.7, 0.75)
    first.save(tmp_path / "resume")
    assert second.load(tmp_path / "resume") and (second.best, second.best_loss, second.resumed) == (0.75, 0.7, 1)
    second.end_epoch(0.1, 1.0, 0.5, 0.8, 0.75)
    assert second.best_epoch == 1
    second.end_epoch(0.1, 1.0, 0.5, 0.6, 0.75)
    assert second.best_epoch == 3


def test_validation_is_the_plain_cross_entropy_in_float32(corpus, tmp_path):
    out = tmp_path / "run"
    run(corpus, out, epochs=1, label_smoothing=0.4, precision="bf16")
    split, trained = select(load_corpus(corpus), "all", "validation"), load(out)
    logits = trained.all_logits(split.waves, split.samples)
    recorded = float(read_csv(out / "history.csv")[0]["validation_loss"])
    assert recorded == pytest.approx(torch.nn.functional.cross_entropy(logits, split.targets).item(), rel=1e-4)


# -- what is said and recorded


def test_a_run_says_that_its_steps_are_few_and_that_clips_are_left_out(corpus, tmp_path, capsys):
    run(corpus, tmp_path / "a", epochs=1, batch_size=36)
    told = capsys.readouterr().err
    assert "only 2 steps; a batch_size below 36" in told and "leaves out 24 of 96 clips" in told
    run(corpus, tmp_path / "b", epochs=1, batch_size=8)
    told = capsys.readouterr().err
    assert "steps" not in told and "leaves out" not in told


def test_a_run_that_was_not_broken_was_not_resumed(finished):
    assert finished[1]["training"]["resumed"] == 0


def test_checkpoints_with_keys_of_old_still_load(finished, tmp_path):
    weights, card = read_checkpoint(finished[0])
    older = json.loads(json.dumps(card))
    older["recipe"] = {k: v for k, v in older["recipe"].items() if k not in ("horizon", "decay", "guard")}
    older["recipe"]["schedule_epochs"] = None
    save_checkpoint(tmp_path / "model.safetensors", weights, older)
    assert load(tmp_path).labels == card["labels"] and same_run(read_checkpoint(tmp_path)[1], card)
    older["recipe"]["schedule_epochs"] = 150
    assert not same_run(older, card)


def test_fp16_needs_a_gpu(corpus, tmp_path):
    with pytest.raises(KwsError, match="precision is fp16 but device is cpu; set precision to auto, or use a GPU"):
        run(corpus, tmp_path, precision="fp16")
    if torch.cuda.is_available():
        place = Place(recipe(corpus, tmp_path, precision="fp16", device="cuda"))
        with place.autocast():
            assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.float16
        assert place.precision == "fp16" and place.scaler.is_enabled()
        card = run(corpus, tmp_path / "run", precision="fp16", device="cuda", epochs=6)
        assert card["training"]["precision"] == "fp16" and card["validation"]["accuracy"] > 0.8
