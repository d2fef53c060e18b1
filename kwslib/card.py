"""The card of a checkpoint: what its keys must hold. `checkpoint.seal` ties it to the weights."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

VERSION = 2  # of cards that are written; those of version 1 have no checksum


def _distinct(labels):
    if len(set(labels)) < len(labels):
        raise ValueError("a label comes twice")
    return labels


Whole = Annotated[int, Field(gt=0, le=1 << 16)]
Seconds = Annotated[float, Field(gt=0, le=60)]
Label = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[int, Field(ge=-1024, le=1024)] | Annotated[float, Field(ge=-1024, le=1024)]
Option = bool | Number | Annotated[str, Field(max_length=100)] | None
Options = dict[str, Option | list[Option]]  # of a model: no size or depth that takes the machine's memory


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Features(_Part):
    """The options of `WaveToSpec`."""

    kind: Literal["mel", "mfcc"] = "mel"
    n_mels: Annotated[int, Field(gt=0, le=1024)] = 128
    n_mfcc: Annotated[int, Field(gt=0, le=1024)] = 40
    n_fft: Whole = 2048
    hop_length: Annotated[int, Field(ge=16, le=1 << 16)] = 256
    top_db: float = Field(80.0, gt=0, le=1000)
    win_length: Whole | None = None
    pad_mode: Literal["constant", "reflect"] = "constant"
    center: bool = True
    scale: Literal["db", "log"] = "db"


class Normalisation(_Part):
    """The options of `Normalise`."""

    mean: float = Field(0.0, ge=-1e6, le=1e6)
    std: float = Field(1.0, ge=1e-6, le=1e6)
    kind: Literal["corpus", "clip", "none"] = "corpus"


class Detector(_Part, extra="allow"):
    """How a detector listens (see LISTENING in `spotter.py`), and its thresholds."""

    window_s: Seconds = 1.0
    hop_s: Annotated[float, Field(ge=0.001, le=60)] = 0.1
    smooth: Annotated[int, Field(gt=0, le=1000)] = 1
    refractory_s: float = Field(0.0, ge=0)
    thresholds: dict[str, float | dict[str, float]] = {}
    modes: list[Literal["windows", "carried"]] = Field(["windows", "carried"], min_length=1)  # it was trained for


class Recipe(_Part, extra="allow"):
    """What loading needs of a recipe; a training's card holds all of it."""

    model_options: Options = {}
    lengths: Literal["valid", "full"] = "valid"


class Card(_Part, extra="allow"):
    """A checkpoint's card. Keys that it does not name (corpus, validation, training, licence) tell people more."""

    version: Literal[1, 2] = 1
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    model: Label
    labels: Annotated[list[Label], AfterValidator(_distinct)] = Field(min_length=1, max_length=100_000)
    features: Features
    normalisation: Normalisation
    recipe: Recipe = Recipe()
    detector: Detector | None = None


def fault(card):
    """What is wrong with a card, in a few words; None if nothing is."""
    try:
        read = Card(**card)
    except ValidationError as e:
        first = e.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None if read.version == 1 or read.sha256 else "sha256: missing"
