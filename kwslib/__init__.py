"""kwslib: keyword spotting with Mamba, from recordings to the paper's tables.

Data flows one way: corpus -> waveforms -> features -> model -> metrics -> results -> tables and figures.
Names are imported when first used, so that `import kwslib` is quick and needs only what is used.
"""

import os
from importlib import import_module

# PyTorch's OpenMP threads spin a while after each piece of work; a shorter while costs nothing, and leaves the cores
# to whatever else the machine does. OpenMP reads this when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOME = {
    "pack": "data.corpus",
    "load_corpus": "data.corpus",
    "Corpus": "data.corpus",
    "select": "data.tasks",
    "Split": "data.tasks",
    "WaveToSpec": "data.features",
    "Normalise": "data.features",
    "Augment": "data.augment",
    "SpecMask": "data.augment",
    "Batches": "data.batches",
    "SpeechCommands": "data.batches",
    "collate_seq": "data.batches",
    "collate_image": "data.batches",
    "selective_scan": "scan",
    "Mamba": "models.mamba",
    "RetNetKWS": "models.retnet",
    "KeywordCNN": "models.keyword_cnn",
    "KWT": "models.kwt",
    "MODELS": "models.registry",
    "build": "models.registry",
    "mobilenet_v2_kws": "models.mobilenet",
    "count_parameters": "models.cost",
    "count_macs": "models.cost",
    **{f"mamba_{kind}_{size}": "models.spotters" for kind in ("mel", "mfcc") for size in ("small", "medium", "large")},
    "Config": "training.config",
    "load_config": "training.config",
    "KeywordSpotter": "spotter",
    "load": "spotter",
    "KwsError": "io",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'kwslib' has no attribute {name!r}")
    return getattr(import_module(f"kwslib.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME])
