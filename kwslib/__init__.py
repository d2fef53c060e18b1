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
    "pack": "corpus", "load_corpus": "corpus", "Corpus": "corpus", "select": "tasks", "Split": "tasks",
    "WaveToSpec": "features", "Normalise": "features", "Augment": "augment", "SpecMask": "augment",
    "Batches": "data", "SpeechCommands": "data", "collate_seq": "data", "collate_image": "data",
    "selective_scan": "scan", "Mamba": "mamba", "RetNetKWS": "models", "KeywordCNN": "models", "KWT": "models",
    "MODELS": "models", "build": "models", "mobilenet_v2_kws": "models",
    "count_parameters": "models", "count_macs": "models",
    **{f"mamba_{kind}_{size}": "models" for kind in ("mel", "mfcc") for size in ("small", "medium", "large")},
    "Config": "config", "load_config": "config", "KeywordSpotter": "spotter", "load": "spotter", "KwsError": "io",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'kwslib' has no attribute {name!r}")
    return getattr(import_module(f"kwslib.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME])
