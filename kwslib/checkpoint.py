"""Checkpoints, one safetensors file each and never a pickle, and the trained model that one makes.

A checkpoint's JSON card (model, labels, features, normalisation, corpus checksum, recipe) is in the file's header, and
again beside it as `.json` for people to read. The checkpoints that come with kwslib are known by their bare names.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from kwslib.data.features import Normalise, WaveToSpec, to_float
from kwslib.io import KwsError, read_json, replacing, write_json
from kwslib.models.registry import MODELS, build, features_of

PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # checkpoints that come with kwslib


def save_checkpoint(path, weights, card):
    """Write `weights` (a state dict) and `card` (what `load_model` needs, as JSON) to `path`, atomically."""
    from safetensors.torch import save

    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    write_json(Path(path).with_suffix(".json"), card)
    with replacing(path) as scratch:
        # not save_file: on a full disk that raises an error of its own, which is no OSError
        scratch.write_bytes(save(weights, metadata={"kwslib": json.dumps(card)}))


def read_checkpoint(path):
    """(weights, card) of a checkpoint: its file, the folder that holds `model.safetensors`, or a pretrained name.

    Raises KwsError where there is no such file, or it is not a checkpoint of kwslib.
    """
    from safetensors import SafetensorError, safe_open

    file = find_checkpoint(path)
    try:
        with safe_open(str(file), "pt") as f:
            card = json.loads((f.metadata() or {}).get("kwslib", "null"))
            weights = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, OSError, ValueError) as e:
        raise KwsError(
            f"checkpoint {file} is not a readable safetensors file ({e}); delete it, then fetch or train it again"
        ) from None
    if not isinstance(card, dict) or not {"model", "labels", "features", "normalisation"} <= card.keys():
        raise KwsError(
            f"checkpoint {file} was not written by kwslib: its header describes no model; train one with kws train"
        )
    return weights, card


def find_checkpoint(path):
    """The checkpoint's file. A path that exists comes before a pretrained model of the same name."""
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    file = file.with_suffix(".safetensors") if file.suffix == ".json" else file
    if not file.is_file() and len(Path(path).parts) == 1:
        file = max(file, PRETRAINED / f"{path}.safetensors", key=Path.is_file)
    if not file.is_file():
        names = ", ".join(model.name for model in pretrained())
        raise KwsError(f"checkpoint {file} does not exist; train one with kws train, or load one of {names} by name")
    return file


class Pretrained(NamedTuple):
    """A model that comes with kwslib; `kwslib.load(name)` loads it.

    words: its labels. accuracy: the share of right answers on the `n` test clips of those words, with its 95 %
    interval. licence: of the weights; data_licence: of the recordings that they were trained on.
    """

    name: str
    words: list[str]
    accuracy: float
    interval: list[float]
    n: int
    licence: str
    data_licence: str


def pretrained():
    """The models that come with kwslib, a list of `Pretrained`."""
    cards = {path.stem: read_json(path, "model card") for path in sorted(PRETRAINED.glob("*.json"))}
    return [
        Pretrained(
            name,
            card["labels"],
            **{key: card["test"][key] for key in ("accuracy", "interval", "n")},
            licence=card["licence"],
            data_licence=card["corpus"]["licence"],
        )
        for name, card in cards.items()
    ]


def frontend_of(config):
    """The WaveToSpec that a config (an object with the features' keys) asks for."""
    return WaveToSpec(config.n_mels, config.n_fft, config.hop_length, features_of(config.model), config.n_mfcc)


class TrainedModel:
    """A trained model with its features and labels.

    model: the module, in evaluation mode on `device`. frontend, normalise: waves to its inputs. labels: list of
    str. card: the checkpoint's.
    """

    def __init__(self, model, card, device="cpu"):
        self.card, self.labels, self.device = card, card["labels"], torch.device(device)
        self.model = model.eval().to(device)
        self.frontend = WaveToSpec(**card["features"]).to(device)
        self.normalise = Normalise(**card["normalisation"])

    @torch.no_grad()
    def logits(self, waves, samples=None):
        """Float waves (B, N) at 16 kHz, valid samples (B,) or None -> logits (B, labels)."""
        inputs = self.normalise(self.frontend(waves.to(self.device)))
        lengths = None if samples is None else self.frontend.frames(samples.to(self.device))
        return self.model(inputs, lengths).float()

    def all_logits(self, waves, samples=None, batch=128):
        """`logits` of any number of waves (n, N), float or int16, batch by batch -> (n, labels) on the CPU."""
        parts = []
        for rows in torch.arange(len(waves)).split(batch):
            wave = waves[rows] if waves.is_floating_point() else to_float(waves[rows])
            parts.append(self.logits(wave, None if samples is None else samples[rows]).cpu())
        return torch.cat(parts)


def load_model(path, device="cpu", kind=TrainedModel):
    """The trained model, of class `kind`, of a checkpoint (see `read_checkpoint`).

    Raises KwsError where there is no checkpoint, or its weights and its card are of different models.
    """
    weights, card = read_checkpoint(path)
    if card["model"] not in MODELS:
        raise KwsError(f"checkpoint {path} is of model {card['model']!r}, which this version of kwslib lacks")
    model = build(card["model"], len(card["labels"]), **card.get("recipe", {}).get("model_options", {}))
    expected = model.state_dict()
    wrong = {k for k in weights.keys() & expected.keys() if weights[k].shape != expected[k].shape}
    wrong |= weights.keys() ^ expected.keys()
    if wrong:
        raise KwsError(
            f"checkpoint {path} does not fit {card['model']} with {len(card['labels'])} labels ({len(wrong)} tensors "
            f"differ, {sorted(wrong)[0]} among them); it belongs to another variant or label set"
        )
    model.load_state_dict(weights)
    return kind(model, card, device)
