"""Every model by its name."""

from __future__ import annotations

import functools

from kwslib.io import KwsError
from kwslib.models.bc_resnet import BCResNet
from kwslib.models.ds_cnn import DSCNN
from kwslib.models.keyword_cnn import KeywordCNN
from kwslib.models.kwt import KWT
from kwslib.models.matchboxnet import MatchboxNet
from kwslib.models.mobilenet import mobilenet_v2_kws
from kwslib.models.retnet import RetNetKWS
from kwslib.models.spotters import (
    mamba_light,
    mamba_mel_large,
    mamba_mel_medium,
    mamba_mel_small,
    mamba_mfcc_large,
    mamba_mfcc_medium,
    mamba_mfcc_small,
)

MODELS = {
    "mamba_mel_small": mamba_mel_small,
    "mamba_mel_medium": mamba_mel_medium,
    "mamba_mel_large": mamba_mel_large,
    "mamba_mfcc_small": mamba_mfcc_small,
    "mamba_mfcc_medium": mamba_mfcc_medium,
    "mamba_mfcc_large": mamba_mfcc_large,
    "retnet": RetNetKWS,
    "mobilenet_v2_075": mobilenet_v2_kws,
    "mobilenet_v2_035": lambda n_classes=35: mobilenet_v2_kws(n_classes, 0.35),
    "keyword_cnn": KeywordCNN,
    "kwt_1": KWT,
    "bc_resnet_1": BCResNet,
    "bc_resnet_3": functools.partial(BCResNet, tau=3),
    "bc_resnet_8": functools.partial(BCResNet, tau=8),
    "matchboxnet": MatchboxNet,
    "ds_cnn": DSCNN,
    "mamba_light": mamba_light,
}
FEATURES = {"kwt_1": "mfcc", "matchboxnet": "mfcc", "ds_cnn": "mfcc", **{n: "mfcc" for n in MODELS if "mfcc" in n}}


def build(name, n_classes=35):
    """Model `name` of MODELS with fresh weights. Raises KwsError for an unknown name."""
    if name not in MODELS:
        raise KwsError(f"model {name!r} is unknown; it must be one of {', '.join(MODELS)}")
    return MODELS[name](n_classes=n_classes)


def features_of(name):
    """Kind of features, "mel" or "mfcc", that model `name` reads."""
    return FEATURES.get(name, "mel")
