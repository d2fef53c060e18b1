"""Checkpoints: one safetensors file each, never a pickle.

Its JSON card (model, labels, features, normalisation, corpus checksum, recipe) is in the file's header, and again
beside it as `.json` for people to read.
"""

from __future__ import annotations

import json
from pathlib import Path

from kwslib.data.features import WaveToSpec
from kwslib.io import KwsError, replacing, write_json
from kwslib.models.registry import features_of


def save_checkpoint(path, weights, card):
    """Write `weights` (a state dict) and `card` (what `load` needs, as JSON) to `path`, atomically."""
    from safetensors.torch import save

    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    write_json(Path(path).with_suffix(".json"), card)
    with replacing(path) as scratch:
        # not save_file: on a full disk that raises an error of its own, which is no OSError
        scratch.write_bytes(save(weights, metadata={"kwslib": json.dumps(card)}))


def read_checkpoint(path):
    """(weights, card) of a checkpoint file or of the folder that holds `model.safetensors`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    if path.suffix == ".json":
        path = path.with_suffix(".safetensors")
    if not path.is_file():
        raise KwsError(f"checkpoint {path} does not exist; train one with python -m kwslib.training.loop")
    try:
        with safe_open(str(path), "pt") as f:
            card = json.loads((f.metadata() or {}).get("kwslib", "null"))
            weights = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, OSError, ValueError) as e:
        raise KwsError(
            f"checkpoint {path} is not a readable safetensors file ({e}); delete it, then fetch or train it again"
        ) from None
    if not isinstance(card, dict) or not {"model", "labels", "features", "normalisation"} <= card.keys():
        raise KwsError(
            f"checkpoint {path} was not written by kwslib: its header describes no model; "
            "train one with python -m kwslib.training.loop"
        )
    return weights, card


def frontend_of(config):
    """The WaveToSpec that a config (an object with the features' keys) asks for."""
    return WaveToSpec(config.n_mels, config.n_fft, config.hop_length, features_of(config.model), config.n_mfcc)
