"""Config files: right ones load, and every wrong one ends in a sentence that names the key or the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kwslib import cli
from kwslib.io import KwsError
from kwslib.models.registry import MODELS, build
from kwslib.training.config import Config, load_config, parse_yaml
from kwslib.training.optim import Average, NovoGrad, Schedule, make_optimizer, parameter_groups

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "kwslib/recipes").glob("*.yaml"))
KEYS = "batch_size lr weight_decay label_smoothing grad_clip warmup final_lr horizon guard".split()
KEYS += "freq_mask time_mask shift_ms noise stretch mask_on".split()
PAPER = {  # the values of those keys in the published runs
    "mamba_mel_small": (64, 5e-4, 1.8e-4, 0.07, 0.3, 0.12, 5e-3, 1, "published", 12, 20, 120, 0.005, None, "features"),
    "mamba_mel_medium": (64, 5e-4, 1.8e-4, 0.07, 0.3, 0.12, 5e-3, 1, "published", 12, 20, 120, 0.005, None, "features"),
    "mamba_mel_large": (64, 5e-4, 5e-4, 0.07, 0.3, 0.12, 3e-3, 1, "published", 15, 25, 100, 0.01, None, "features"),
    "mamba_mfcc_small": (128, 5e-4, 1.8e-4, 0.07, 0.8, 0.1, 3e-3, 1, "none", 5, 18, 120, 0.01, None, "features"),
    "mamba_mfcc_medium": (128, 1e-3, 0.1, 0.1, 0.5, 0.12, 3e-3, 1, "none", 4, 15, 100, 0.01, [0.95, 1.05], "features"),
    "mamba_mfcc_large": (128, 6e-4, 1e-2, 0.05, 0.3, 0.1, 3e-3, 1, "none", 5, 18, 100, 0.01, [0.9, 1.1], "features"),
    "retnet": (64, 5e-4, 1.8e-4, 0.05, 0.15, 0.12, 5e-3, 1.5, "published", 12, 20, 120, 0.007, None, "power"),
    "mobilenet_v2_075": (128, 1e-3, 5e-5, 0.05, 0.3, 0.1, 1e-2, 1.5, "none", 14, 24, 100, 0.005, None, "power"),
}


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_every_model_has_a_recipe():
    assert {p.stem for p in CONFIGS} == set(MODELS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_recipes_load(path):
    assert load_config(path).model == path.stem


@pytest.mark.parametrize("name", PAPER)
def test_recipes_are_the_paper_s(name):
    c, image = load_config(name), "mobilenet" in name
    pairs = {"freq_mask": 2, "time_mask": 2, "noise": 0}  # their first numbers
    expected = {k: [pairs[k], v] if k in pairs else v for k, v in zip(KEYS, PAPER[name])}
    assert {k: getattr(c, k) for k in KEYS} == expected
    assert (c.epochs, c.n_fft, c.win_length, c.hop_length, c.n_mels, c.n_mfcc) == (100, 2048, None, 256, 128, 40)
    assert (c.optimizer, c.schedule, c.decay, c.drop_last, c.ema, c.mixup) == ("adamw", "clamped", "all", False, 0, 0)
    assert (c.pad_mode, c.lengths, c.scale, c.center) == ("reflect", "full", "db", True)
    assert c.normalise == ("clip" if image else "corpus") and not (c.background_snr or c.background_volume or c.speed)


@pytest.mark.parametrize("name", [name for name in PAPER if "mfcc" not in name])
def test_rows_as_run_differ_in_the_features_only(name):
    """Windows of 256 samples, of 128 for MobileNetV2, and hops of 128: 126 frames a second."""
    described, c = load_config(name), load_config(f"{name}_as_run")
    windows = {"win_length": 128 if "mobilenet" in name else 256, "hop_length": 128}
    assert c == described.model_copy(update={"model": f"{name}_as_run", **windows})


def test_a_file_says_only_what_differs(tmp_path):
    c = load_config(written(tmp_path, "lr: 5e-4\ntask: [yes, no, on, off, _unknown_]\nstretch: [0.9, 1.1]\n"), seed=3)
    assert c.lr == 0.0005 and c.task == ["yes", "no", "on", "off", "_unknown_"] and c.stretch == [0.9, 1.1]
    assert c.seed == 3 and c.model == Config().model


@pytest.mark.parametrize(
    "text, value",
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("5e-4", 5e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("64", 64),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("1st_run", "1st_run"),
        ("5e-4x", "5e-4x"),
        ("trueness", "trueness"),
        ("../data/x", "../data/x"),
        ("[on, 1e1]", ["on", 10]),
    ],
)
def test_words_are_words_and_numbers_are_numbers(text, value):
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


@pytest.fixture
def asked(monkeypatch):
    """What `kws train` was told to train."""
    configs = []
    monkeypatch.setattr("kwslib.training.loop.train", configs.append)
    return configs


def test_options_of_the_command_are_the_keys_of_a_recipe(asked):
    options = "--lr 1e-3 --stretch=null --batch-size 32 --grad_clip=2 --task yes no _unknown_ --freq-mask [1, 2]"
    cli.train(["--config", "mamba_mfcc_large", *options.replace("[1, 2]", "1 2").split(), "--out=a=b"])
    cli.train(["--task", "[yes, off]", "--batch_size", "16"])
    (c, d) = asked
    assert (c.model, c.lr, c.stretch, c.batch_size, c.grad_clip) == ("mamba_mfcc_large", 1e-3, None, 32, 2)
    assert (c.task, c.freq_mask, c.out, c.weight_decay) == (["yes", "no", "_unknown_"], [1, 2], "a=b", 1e-2)
    assert (d.task, d.batch_size, d.model) == (["yes", "off"], 16, Config().model)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--weight-decai", "1"], "'--weight-decai' is not an option; did you mean --weight-decay"),
        (["--task", "[yes"], "not valid YAML"),
        (["--config", "mamba_lite"], "mamba_lite does not exist; give a file, or one of the recipes bc_resnet_1"),
        (["--freq-mask", "1"], "config key freq_mask is 1; it must be a list"),
        (["--config", "retnet", "--epochs", "20"], "horizon is 1.5: .* add --horizon 1 to let it fall"),
    ],
)
def test_wrong_options(asked, arguments, match):
    with pytest.raises(KwsError, match=match) as e:
        cli.train(arguments)
    assert "\n" not in str(e.value) and not asked


def test_a_horizon_beyond_epochs_of_ones_own_must_be_asked_for(asked):
    for arguments in (["--horizon", "1.5"], ["--horizon", "1"]):
        cli.train(["--config", "retnet", "--epochs", "20", *arguments])
    cli.train(["--config", "retnet"])  # as published
    cli.train(["--config", "mamba_light", "--epochs", "3"])
    assert [(c.epochs, c.horizon) for c in asked] == [(20, 1.5), (20, 1), (100, 1.5), (3, 1)]


def test_help_explains_every_key(capsys):
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as e:
            cli.command([command, "--help"])
        assert e.value.code in (0, None)
    with pytest.raises(SystemExit):
        cli.command(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for key, field in Config.model_fields.items():
        assert f"--{key.replace('_', '-')} VALUE" in shown and field.description in shown, key


def test_commands_are_listed_and_others_refused(capsys):
    cli.command([])
    assert all(f"  {name} " in capsys.readouterr().out for name in ("pack",))
    with pytest.raises(KwsError, match="'fly' is not a command of kws; choose one of pack, data, train"):
        cli.command(["fly"])


@pytest.mark.parametrize(
    "text, match",
    [
        ("weight_decai: 1\n", "recipe.yaml.*unknown key 'weight_decai'; did you mean weight_decay"),
        ("colour: red\n", "unknown key 'colour'; known keys: model"),
        ("epochs: many\n", "config key epochs is 'many'; it must be a whole number"),
        ("epochs: 1.5\n", "config key epochs is 1.5"),
        ("epochs: .inf\n", "config key epochs is inf"),
        ("epochs: 0\n", "config key epochs is 0; it must be above 0"),
        ("lr: true\n", "config key lr is True; it must be a number"),
        ("lr: -1\n", "config key lr .*above 0"),
        ("horizon: 0.5\n", "config key horizon is 0.5; it must be at least 1"),
        ("schedule_epochs: 150\n", "unknown key 'schedule_epochs'"),
        ("guard: brave\n", "config key guard is 'brave'; it must be one of rollback, published or none"),
        ("noise: [0.2, 0.1]\n", "config key noise .*lower number comes first"),
        ("warmup: 1\n", "config key warmup is 1; it must be at least 0 and below 1"),
        ("model_options: {n_classes: 3}\n", "config key model_options .*n_classes is not one of a model's options"),
        ("model_options: 3\n", "config key model_options is 3; it must be key: value pairs"),
        ("noise: 0.1\n", "config key noise .*must be a list"),
        ("lr: .inf\n", "config key lr is inf; it must be finite"),
        ("seed: -1\n", "config key seed is -1; it must be at least 0 and below 4294967296"),
        ("background_snr: [.nan, 5]\n", "config key background_snr .* its numbers must be from -200 to 200$"),
        ("label_smoothing: 2\n", "config key label_smoothing is 2; it must be at least 0 and below 1"),
        ("ema: 2\n", "config key ema is 2; it must be at least 0 and below 1"),
        ("warmup: -5\n", "config key warmup is -5; it must be at least 0 and below 1"),
        ("mixup: -1\n", "config key mixup is -1; it must be at least 0 and at most 100"),
        ("mixup: .nan\n", "config key mixup is nan; it must be finite"),
        ("n_fft: 10000000000\n", "config key n_fft is 10000000000; it must be above 0 and at most 65536"),
        ("hop_length: 1\n", "config key hop_length is 1; it must be at least 16"),
        ("threads: 1000000\n", "config key threads is 1000000"),
        ("temperature: 1e-300\n", "config key temperature is 1e-300; it must be at least 0.01"),
        (f"noise: [0, 1{'0' * 400}]\n", "config key noise is .* its numbers must be from 0 to 1$"),
        (f"lr: 1{'0' * 400}\n", "config key lr is 10+; it must be"),
        (
            "model_options: {d_model: 1000000000}\n",
            "config key model_options .*d_model is no option .*, or beyond 1024",
        ),
        ('out: ""\n', "config key out is ''; it must be a path"),
        ('corpus: "a\\0b"\n', "config key corpus is .*; it must be a path"),
        ("noise: [1]\n", "config key noise .*list of two numbers"),
        ("stretch: [a, b]\n", "config key stretch .*list of two numbers"),
        ("precision: fp8\n", "config key precision .*auto, bf16, fp16 or fp32"),
        ("model: [a]\n", "config key model .*must be text"),
        ("lr: [1\n", "recipe.yaml cannot be read: not valid YAML"),
        ("just words\n", "recipe.yaml must hold"),
    ],
)
def test_wrong_files(tmp_path, text, match):
    with pytest.raises(KwsError, match=match) as e:
        load_config(written(tmp_path, text))
    assert "\n" not in str(e.value)


def test_no_file(tmp_path):
    with pytest.raises(KwsError, match="none.yaml does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(KwsError, match=f"{tmp_path} cannot be read"):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KwsError, match="bytes.yaml cannot be read"):
        load_config(tmp_path / "bytes.yaml")


PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*/params.yaml"))]


def test_schedule():
    schedule = Schedule(Config(lr=1e-3, epochs=100), 10)
    rates = [schedule(step) for step in range(1000)]
    np.testing.assert_allclose(rates[:120], 1e-3 * np.arange(1, 121) / 120)
    assert max(rates) == rates[119] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(5e-6) and all(np.diff(rates[119:]) < 0)
    assert rates[559] == pytest.approx((1e-3 + 5e-6) / 2, rel=1e-3)  # a cosine: half-way at half the distance


def test_schedule_that_is_not_run_to_its_end():
    """Warm-up is a share of the run, the fall one of the horizon."""
    long = Schedule(Config(lr=1e-3, epochs=100, horizon=1.5), 10)
    whole = Schedule(Config(lr=1e-3, epochs=150, warmup=0.08), 10)
    assert [long(s) for s in range(1000)] == [whole(s) for s in range(1000)]
    assert long(119) == 1e-3 > long(120) and long(999) > 0.2e-3


def test_one_step_is_a_schedule():
    assert Schedule(Config(lr=1e-3, epochs=1), 1)(0) == pytest.approx(1e-3)


def test_only_matrices_decay():
    model = build("mamba_mfcc_small")
    decay, rest = parameter_groups(model, 0.1)
    names = {id(p): k for k, p in model.named_parameters()}
    assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0
    kept = {names[id(p)].split(".", 3)[-1] for p in rest["params"] if "blocks" in names[id(p)]}
    assert kept >= {"A_log", "D", "dt_proj.bias", "conv1d.bias"} and "in_proj.weight" not in kept
    assert len(decay["params"]) + len(rest["params"]) == len(names)


def test_rate_that_is_held():
    schedule = Schedule(Config(lr=0.05, epochs=100, schedule="hold", warmup=0.05, final_lr=0.02), 10)
    rates = [schedule(step) for step in range(1000)]
    assert rates[49] == rates[480] == 0.05 and rates[549] < 0.05
    assert rates[-1] == pytest.approx(0.001) and all(np.diff(rates[510:]) < 0)
    assert rates[749] == pytest.approx(0.001 + 0.049 * 0.25, rel=0.02)  # half-way down a parabola: a quarter


def test_rate_that_falls_in_steps():
    schedule = Schedule(Config(lr=5e-4, epochs=30, schedule="steps", warmup=0.0), 10)
    assert [schedule(s) for s in (0, 99, 100, 199, 200, 299)] == pytest.approx([5e-4, 5e-4, 1e-4, 1e-4, 2e-5, 2e-5])


@pytest.mark.parametrize("key", ["optimizer", "schedule"])
def test_unknown_optimizer_or_schedule(key):
    with pytest.raises(KwsError, match=f"config key {key} is 'best'; it must be one of"):
        Config(**{key: "best"})


def test_novograd_by_hand():
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = NovoGrad([w], lr=0.1, betas=(0.9, 0.5), weight_decay=0.01)
    start, first, second = np.array([3.0, 4.0]), np.zeros(2), None
    for gradient in (np.array([3.0, 4.0]), np.array([0.6, 0.8]), np.array([-5.0, 12.0])):
        w.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        second = gradient @ gradient if second is None else 0.5 * second + 0.5 * gradient @ gradient
        first = 0.9 * first + gradient / np.sqrt(second) + 0.01 * start
        start = start - 0.1 * first
    np.testing.assert_allclose(w.detach().numpy(), start, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "novograd"])
def test_optimizers_descend(name):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(8, 1), torch.randn(64, 8), torch.randn(64, 1)
    optimizer = make_optimizer(model, Config(optimizer=name, lr=0.02), torch.device("cpu"))
    losses = []
    for _ in range(40):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_average_of_weights():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average, expected = Average(model, 0.5), model[0].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model[0].weight.add_(1)
        model(torch.randn(4, 2))
        average.update(model)
        keep = min(0.5, (1 + step) / (10 + step))  # young averages forget faster
        expected = keep * expected + (1 - keep) * model[0].weight.detach()
    kept = average.of(model).state_dict()
    torch.testing.assert_close(kept["0.weight"], expected)
    assert kept["1.num_batches_tracked"] == 29 and not torch.equal(kept["1.running_mean"], model[1].running_mean)
