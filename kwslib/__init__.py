"""kwslib: keyword spotting with Mamba, from recordings to a trained model and its test accuracy.

Data flows one way: corpus -> waveforms -> features -> model -> metrics -> result files.
The names below are imported when first used, so that `import kwslib` is quick and needs only what is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; _NAMES tells Python the same
    # ruff: noqa: F401
    from kwslib.checkpoint import pretrained
    from kwslib.data.augment import Augment, SpecMask
    from kwslib.data.batches import Batches, SpeechCommands, collate_image, collate_seq
    from kwslib.data.corpus import Corpus, load_corpus, pack
    from kwslib.data.features import Normalise, WaveToSpec
    from kwslib.data.tasks import Split, select
    from kwslib.io import KwsError
    from kwslib.models.cost import count_macs, count_parameters
    from kwslib.models.keyword_cnn import KeywordCNN
    from kwslib.models.kwt import KWT
    from kwslib.models.mamba import Mamba
    from kwslib.models.mobilenet import mobilenet_v2_kws
    from kwslib.models.registry import MODELS, build
    from kwslib.models.retnet import RetNetKWS
    from kwslib.models.spotters import (
        mamba_mel_large,
        mamba_mel_medium,
        mamba_mel_small,
        mamba_mfcc_large,
        mamba_mfcc_medium,
        mamba_mfcc_small,
    )
    from kwslib.scan import selective_scan
    from kwslib.spotter import KeywordSpotter, load
    from kwslib.training.config import Config, load_config
    from kwslib.training.loop import train

_NAMES = {
    "checkpoint": ["pretrained"],
    "data.augment": ["Augment", "SpecMask"],
    "data.batches": ["Batches", "SpeechCommands", "collate_image", "collate_seq"],
    "data.corpus": ["Corpus", "load_corpus", "pack"],
    "data.features": ["Normalise", "WaveToSpec"],
    "data.tasks": ["Split", "select"],
    "io": ["KwsError"],
    "models.cost": ["count_macs", "count_parameters"],
    "models.keyword_cnn": ["KeywordCNN"],
    "models.kwt": ["KWT"],
    "models.mamba": ["Mamba"],
    "models.mobilenet": ["mobilenet_v2_kws"],
    "models.registry": ["MODELS", "build"],
    "models.retnet": ["RetNetKWS"],
    "models.spotters": [f"mamba_{kind}_{size}" for kind in ("mel", "mfcc") for size in ("small", "medium", "large")],
    "scan": ["selective_scan"],
    "spotter": ["KeywordSpotter", "load"],
    "training.config": ["Config", "load_config"],
    "training.loop": ["train"],
}
_HOME = {name: home for home, names in _NAMES.items() for name in names}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'kwslib' has no attribute {name!r}")
    return getattr(import_module(f"kwslib.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME])
