"""Keyword spotters: features (B, T, F) and valid frames (B,) to logits (B, classes), as `model(inputs, lengths)`.

    registry.py    every model by its name: `build("mamba_light", n_classes=12, d_model=64)`
    spotters.py    the paper's Mamba spotters and Mamba-Light, our own; mamba.py is their mixer
    layers.py      what several models share: padding masks, front-ends, the classifier
    cost.py        parameters and multiply-accumulates
    the rest       a file for each model that they are compared with

A new model is one new file here, with `@register` above its class, and one recipe. Every module is imported with
the package, so that its models are known. Touch what draws initial weights, or its order, and no trained number
can be reproduced any more."""

from importlib import import_module
from pkgutil import iter_modules

from kwslib.models.cost import count_macs, count_parameters, macs_of
from kwslib.models.registry import MODELS, build, features_of, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["MODELS", "build", "count_macs", "count_parameters", "features_of", "macs_of", "register"]
