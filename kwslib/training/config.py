"""One run's recipe: the keys of `configs/*.yaml`, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from dataclasses import dataclass, field
from pathlib import Path

from kwslib.io import KwsError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"  # the recipes, one for each model


@dataclass
class Config:
    """Defaults are the recipe of Mamba-Mel Small; a config file says only what differs."""

    model: str = "mamba_mel_small"  # a name of kwslib.models.MODELS
    corpus: str = "data/quick"  # folder of a packed corpus
    task: str | list = "all"  # all, v2-35, v2-12 or a list of words
    out: str = "checkpoints/run"  # folder for the checkpoint, the history and the resume state
    seed: int = 0
    # features
    n_mels: int = 128
    n_mfcc: int = 40
    n_fft: int = 2048
    hop_length: int = 256
    # optimisation
    epochs: int = 100
    schedule_epochs: int | None = None  # length of the cosine, if it is not run to its end
    batch_size: int = 64  # clips per step, over all processes
    lr: float = 5e-4
    weight_decay: float = 1.8e-4
    optimizer: str = "adamw"  # adamw, sgd or novograd
    schedule: str = "cosine"  # cosine, hold or steps (kwslib.training.optim.Schedule)
    label_smoothing: float = 0.07
    grad_clip: float = 0.3
    warmup: float = 0.12  # share of the steps with linearly rising learning rate
    final_lr: float = 0.005  # last learning rate, as a share of the peak
    ema: float = 0.0  # share of the average of the weights that a step keeps, 0: no average is taken
    teachers: list = field(
        default_factory=list
    )  # checkpoints whose posteriors are learned too (kwslib.training.distil)
    distillation: float = 0.5  # the teachers' share of the targets
    temperature: float = 2.0  # of the teachers' softmax
    mixup: float = 0.0  # alpha of the Beta distribution that mixes pairs of clips, 0: none are mixed
    # augmentation (kwslib.data.augment)
    freq_mask: list = field(default_factory=lambda: [2, 12])  # number, largest width in bands
    time_mask: list = field(default_factory=lambda: [2, 20])  # number, largest width in frames
    shift_ms: float = 120.0
    noise: list = field(default_factory=lambda: [0.0, 0.005])  # standard deviation, lowest and highest
    stretch: list | None = None  # tempo, lowest and highest
    speed: list | None = None  # playing speed of each clip, pitch and all, lowest and highest
    background_snr: list | None = None  # dB, lowest and highest
    background_probability: float = 0.8
    # machine
    precision: str = "auto"  # auto, bf16 or fp32
    device: str = "auto"  # auto, cpu, cuda or mps
    threads: int = 0  # CPU threads, 0: all

    def __post_init__(self):
        for f in dataclasses.fields(self):
            setattr(self, f.name, checked(f.name, getattr(self, f.name), typing.get_type_hints(Config)[f.name]))
        for name in ("freq_mask", "time_mask", "noise", "stretch", "speed", "background_snr"):
            value = getattr(self, name)
            kind = int if name.endswith("mask") else (int, float)
            if value is not None and not (len(value) == 2 and all(isinstance(v, kind) for v in value)):
                numbers = "whole numbers" if kind is int else "numbers"
                raise KwsError(f"config key {name} is {value!r}; it must be a list of two {numbers}")
            if value is not None and name != "background_snr" and min(value) < 0:
                raise KwsError(f"config key {name} is {value!r}; neither number may be below 0")
            if value is not None and kind is not int and value[0] > value[1]:
                raise KwsError(f"config key {name} is {value!r}; the lower number comes first")
        for name in ("epochs", "batch_size", "lr", "grad_clip", "hop_length", "n_fft"):
            if not getattr(self, name) > 0:
                raise KwsError(f"config key {name} is {getattr(self, name)!r}; it must be above 0")
        if self.teachers and not (0 <= self.distillation <= 1 and self.temperature > 0):
            raise KwsError(
                f"config keys distillation and temperature are {self.distillation} and {self.temperature}; the first is a "
                "share from 0 to 1, the second above 0"
            )
        if self.precision not in ("auto", "bf16", "fp32"):
            raise KwsError(f"config key precision is {self.precision!r}; it must be auto, bf16 or fp32")


def checked(name, value, kind):
    """`value` as `kind`, or a KwsError that names the key."""
    options = typing.get_args(kind) or (kind,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is list and isinstance(value, (list, tuple)):
            return [str(v) if isinstance(v, Path) else v for v in value]
        if option in (int, float) and not isinstance(value, bool):
            if isinstance(value, (int, float)) and (option is float or float(value).is_integer()):
                return option(value)
        if option is str and isinstance(value, (str, Path)):
            return str(value)
    wanted = " or ".join(
        "nothing (null)"
        if o is type(None)
        else {int: "a whole number", float: "a number", str: "text", list: "a list"}[o]
        for o in options
    )
    raise KwsError(f"config key {name} is {value!r}; it must be {wanted}")


def parse_yaml(text):
    """YAML 1.2 where it matters here: yes, no, on and off are words (keywords!), and 5e-4 is a number."""
    import yaml

    try:
        return yaml.load(text, yaml_loader())
    except yaml.YAMLError as e:
        raise KwsError(f"not valid YAML: {' '.join(str(e).split())}") from None


@functools.cache
def yaml_loader():
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|false|True|False)$"), list("tfTF"))
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.nan)$"),
        list("-+.0123456789"),
    )
    return Loader


def read_yaml(path, what, where):
    """The `key: value` lines of a file as a dict. Raises KwsError, naming `what` it is and the path."""
    try:
        values = parse_yaml(Path(path).read_text()) or {}
    except FileNotFoundError:
        raise KwsError(f"{what} {path} does not exist; {where}") from None
    except (KwsError, OSError, UnicodeDecodeError) as e:
        raise KwsError(f"{what} {path} cannot be read: {e}") from None
    if not isinstance(values, dict):
        raise KwsError(f"{what} {path} must hold `key: value` lines")
    return values


def load_config(path=None, **overrides):
    """Config from a YAML file, then `overrides`. Raises KwsError for a bad file, an unknown key or a wrong type."""
    values = {} if path is None else read_yaml(path, "config", "the recipes are in configs/")
    values = {**values, **overrides}
    known = [f.name for f in dataclasses.fields(Config)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"
            where = f"config {path}" if path and key not in overrides else "config"
            raise KwsError(f"{where} has an unknown key {key!r}{hint}")
    return Config(**values)


def parse_overrides(arguments):
    """["--lr", "1e-3", "--stretch=null"] -> {"lr": 0.001, "stretch": None}; values are YAML."""
    overrides, rest = {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise KwsError(f"{word!r} is not an option; write --key value, with a key of the config")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise KwsError(f"--{key} needs a value")
            value = rest.pop(0)
        try:
            overrides[key.replace("-", "_")] = parse_yaml(value)
        except KwsError as e:
            raise KwsError(f"--{key} {value}: {e}") from None
    return overrides
