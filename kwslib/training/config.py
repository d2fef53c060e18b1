"""One run's recipe: every key with its meaning, its default and its bounds, checked before anything is computed."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from kwslib.card import Options
from kwslib.io import KwsError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"  # the recipes, one for each model


def _pair(kind, low, high, ordered=True):
    """A list of two numbers from `low` to `high`, the lower one first where they are `ordered`."""

    def check(value):
        if len(value) != 2 or any(isinstance(v, bool) or not isinstance(v, kind) for v in value):
            raise ValueError(f"it must be a list of two {'whole numbers' if kind is int else 'numbers'}")
        if not all(low <= v <= high for v in value):
            raise ValueError(f"its numbers must be from {low:g} to {high:g}")
        if ordered and value[0] > value[1]:
            raise ValueError("its lower number comes first")
        return value

    return Annotated[list, AfterValidator(check)]


def _options(value):
    if taken := {"name", "n_classes"} & value.keys():
        raise ValueError(f"{taken.pop()} is not one of a model's options: keys model and task say it")
    try:
        return TypeAdapter(Options, config={"strict": True, "allow_inf_nan": False}).validate_python(value)
    except ValidationError as e:
        raise ValueError(f"{e.errors()[0]['loc'][0]} is no option of a model, or beyond 1024") from None


def _path(value):
    if "\0" in value:
        raise ValueError("it must be a path")
    return value


Text = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v), AfterValidator(_path)]
Whole = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]
ModelOptions = Annotated[dict[str, Any], AfterValidator(_options)]
Decibels = _pair((int, float), -200, 200)
Mask, Range, Factor = _pair(int, 0, 10_000, ordered=False), _pair((int, float), 0, 1), _pair((int, float), 0.1, 10)


class Config(BaseModel):
    """The recipe of one training. Raises KwsError for an unknown key, a value of a wrong type or out of bounds."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    # fmt: off
    model: str = Field("mamba_mel_small", description="name of the model, one of kwslib.MODELS")
    model_options: ModelOptions = Field({}, description="options of the model, such as {d_state: 8}")
    corpus: Text = Field("data/quick", description="folder of a packed corpus")
    task: str | list[str] = Field("all", description="the classes: all, v2-35, v2-12 or a list of words")
    out: Text = Field("checkpoints/run", min_length=1, description="folder for the checkpoint, history and resume file")
    seed: Whole = Field(0, ge=0, lt=2**32, description="of all randomness")
    init: Text | None = Field(None, description="checkpoint or pretrained name whose weights are the start; null: none")
    # features
    n_mels: Whole = Field(128, gt=0, le=1024, description="mel bands")
    n_mfcc: Whole = Field(40, gt=0, le=1024, description="cepstral coefficients, for models that read MFCC")
    n_fft: Whole = Field(2048, gt=0, le=2**16, description="samples in a window of the spectrogram")
    hop_length: Whole = Field(256, ge=16, le=2**16, description="samples from one window to the next")
    win_length: Whole | None = Field(None, gt=0, le=2**16, description="samples under the window; null: n_fft")
    pad_mode: Literal["constant", "reflect"] = Field("constant", description="what is beyond a clip: zeros, or itself")
    center: bool = Field(True, description="whether the first window is centred on the first sample; else begins there")
    scale: Literal["db", "log"] = Field("db", description="dB above a floor, or ln(power + 1e-6)")
    normalise: Literal["corpus", "clip", "none"] = Field("corpus", description="features by whose mean and deviation")
    lengths: Literal["valid", "full"] = Field("valid", description="frames that count: the recorded ones, or all")
    # optimisation
    epochs: Whole = Field(100, gt=0, le=10**6, description="passes over the training clips")
    batch_size: Whole = Field(64, gt=0, le=2**20, description="clips in a step, over all processes")
    lr: float = Field(5e-4, gt=0, le=10**6, description="highest learning rate")
    weight_decay: float = Field(1.8e-4, ge=0, le=100, description="decay of the weights")
    decay: Literal["matrices", "all"] = Field("matrices", description="what decays: matrices and kernels, or all")
    optimizer: Literal["adamw", "sgd", "novograd"] = Field("adamw", description="the optimizer")
    schedule: Literal["cosine", "clamped", "hold", "steps"] = Field("cosine", description="how the learning rate falls")
    horizon: float = Field(1.0, ge=1, le=1000, description="length of the schedule in runs; above 1 it is cut off")
    label_smoothing: float = Field(0.07, ge=0, lt=1, description="share of the target spread over all classes")
    init_lr: float = Field(1.0, ge=0, le=1, description="share of lr for the weights that init gives; 0: they stay")
    grad_clip: float = Field(0.3, gt=0, le=10**6, description="largest norm of the gradient")
    warmup: float = Field(0.12, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    final_lr: float = Field(0.005, ge=0, le=1, description="last learning rate, as a share of the highest")
    guard: Literal["rollback", "published", "none"] = Field("rollback", description="what follows a halved accuracy")
    ema: float = Field(0.0, ge=0, lt=1, description="share of the weights' average kept at each step; 0: no average")
    teachers: list[Text] = Field([], description="checkpoints whose posteriors are targets, too")
    distillation: float = Field(0.5, ge=0, le=1, description="the teachers' share of the targets")
    temperature: float = Field(2.0, ge=0.01, le=1000, description="of the teachers' softmax")
    mixup: float = Field(0.0, ge=0, le=100, description="alpha of the Beta law that mixes pairs of clips; 0: none")
    drop_last: bool = Field(True, description="leave out the last batch of an epoch where it is not full")
    # augmentation
    freq_mask: Mask = Field([2, 12], description="frequency masks: how many, each narrower than this in bands")
    time_mask: Mask = Field([2, 20], description="time masks: how many, each narrower than this in frames")
    mask_on: Literal["normalised", "features", "power"] = Field("normalised", description="what masks set to zero")
    shift_ms: float = Field(120.0, ge=0, le=1000, description="largest shift in time, in ms")
    noise: Range = Field([0.0, 0.005], description="standard deviation of white noise, lowest and highest")
    stretch: Factor | None = Field(None, description="tempo at the same pitch, lowest and highest")
    speed: Factor | None = Field(None, description="playing speed, pitch and all, lowest and highest")
    background_snr: Decibels | None = Field(None, description="SNR of background noise, range in dB")
    background_volume: Range | None = Field(None, description="share of full volume of it, instead of an SNR")
    background_probability: float = Field(0.8, ge=0, le=1, description="share of the clips with background noise")
    # machine
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="auto: bf16 where it is native")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    threads: Whole = Field(0, ge=0, le=1024, description="CPU threads; 0: all")
    graphs: bool = Field(True, description="record a GPU's training steps as CUDA graphs; no other device has them")
    # fmt: on

    def __init__(self, **values):
        refuse_unknown(values, "config")
        try:
            super().__init__(**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
        except ValidationError as e:
            key = e.errors()[0]["loc"][0]
            errors = {error["type"]: error.get("ctx") for error in e.errors() if error["loc"][0] == key}
            told = _complaint(Config.model_fields[key], errors)
            raise KwsError(f"config key {key} is {values[key]!r:.200}; {told}") from None


def _complaint(field, errors):
    """What a key's value must be, from pydantic's errors, {type: context}."""
    kinds = {"int_type": "a whole number", "float_type": "a number", "string_type": "text", "list_type": "a list"}
    kinds |= {
        "string_too_short": "a path",
        "dict_type": "key: value pairs",
        "finite_number": "finite",
        "bool_type": "true or false",
    }
    bounds = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    if "value_error" in errors:  # of _pair or _options
        return str(errors["value_error"]["error"])
    if "literal_error" in errors:
        return "it must be one of " + errors["literal_error"]["expected"].replace("'", "")
    if must := [kinds[kind] for kind in errors if kind in kinds]:
        return "it must be " + " or ".join(must + ["nothing (null)"] * (type(None) in get_args(field.annotation)))
    limits = [f"{bounds[k]} {getattr(m, k):.10g}" for m in field.metadata for k in bounds if hasattr(m, k)]
    return "it must be " + " and ".join(limits)


def refuse_unknown(values, where):
    """Raise a KwsError that names the closest known key, if a key is unknown."""
    known = list(Config.model_fields)
    if unknown := [key for key in values if key not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        raise KwsError(f"{where} has an unknown key {unknown[0]!r}; {hint}")


def parse_yaml(text):
    """The value of a YAML 1.2 text: yes, no, on and off are words (keywords!), and 5e-4 is a number."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as e:
        raise KwsError(f"not valid YAML: {' '.join(str(e).split())}") from None


def read_yaml(path, what, where):
    """The `key: value` lines of a file as a dict. Raises KwsError, naming `what` it is and the path."""
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise KwsError(f"{what} {path} does not exist; {where}") from None
    except (OSError, ValueError) as e:
        raise KwsError(f"{what} {path} cannot be read: {e}") from None
    if not isinstance(values, dict):
        raise KwsError(f"{what} {path} must hold `key: value` lines")
    return values


def load_config(path=None, **overrides):
    """Config from a YAML file or the name of a recipe, such as "mamba_light", then `overrides`. Raises KwsError for a
    file that is missing or broken, an unknown key or a wrong value."""
    values, named = {}, RECIPES / f"{path}.yaml"
    if path is not None:
        recipes = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        file = named if named.is_file() and not Path(path).is_file() else path
        values = read_yaml(file, "config", f"give a file, or one of the recipes {recipes}")
        refuse_unknown(values, f"config {path}")
    return Config(**{**values, **overrides})
