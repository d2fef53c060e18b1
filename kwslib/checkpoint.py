"""Checkpoints, one safetensors file each and never a pickle, and the trained model that one makes.

A checkpoint's JSON card (model, labels, features, normalisation, corpus checksum, recipe; see `card.py`) is in the
file's header, with a checksum over itself and the weights, and again beside it as `.json` for people to read. The
checkpoints that come with kwslib are known by their bare names."""

import hashlib
import json
import os
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kwslib.card import VERSION, fault
from kwslib.data.features import Normalise, WaveToSpec, to_float
from kwslib.io import BROKEN_TEXT, KwsError, read_json, remedy, replacing, write_json
from kwslib.models.registry import MODELS, build, features_of

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64)  # of weights; whole numbers count batches
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # checkpoints that come with kwslib


def save_checkpoint(path, weights, card):
    """Write `weights` (a state dict) and `card` (what `load_model` needs, as JSON) to `path`, atomically. Returns the
    card with its version and its checksum."""
    card = json.loads(json.dumps({**card, "version": VERSION}))
    card["sha256"] = seal(weights, card)
    write_json(Path(path).with_suffix(".json"), card)
    save_tensors(path, weights, kwslib=card)
    return card


def seal(weights, about):
    """SHA-256 over the weights, with their names, types and shapes, and over the rest of what is said about them."""
    rest = {k: v for k, v in about.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def halved(weights):
    """Floating-point weights as float16. Raises KwsError for a weight beyond its range."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    if bad := [k for k, v in half.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise KwsError(f"weight {bad[0]} does not fit half precision; keep the checkpoint as it is")
    return half


def save_tensors(path, tensors, **header):
    """Write tensors, and a header of one value that is kept as JSON, to a safetensors file, atomically."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as scratch:  # not save_file: on a full disk that raises an error that is not an OSError
        scratch.write_bytes(save(tensors, metadata={k: json.dumps(v) for k, v in header.items()}))


def read_tensors(path, key, broken, otherwise):
    """(tensors, header `key` or None) of a safetensors file. Raises KwsError, which begins with the text `broken`."""
    try:
        with safe_open(str(path), "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, json.loads((f.metadata() or {}).get(key, "null"))
    except (SafetensorError, OSError, *BROKEN_TEXT) as e:
        raise KwsError(f"{broken} ({e}); {remedy(e, f'delete it {otherwise}')}") from None


def read_checkpoint(path):
    """(weights, card) of a checkpoint: its file, the folder that holds `model.safetensors`, or a pretrained name.

    Raises KwsError where there is no such file, or it is not a checkpoint of kwslib, or not as it was written."""
    file = find_checkpoint(path)
    broken = f"checkpoint {file} is not a readable safetensors file"
    weights, card = read_tensors(file, "kwslib", broken, "and fetch or train it again")
    if not isinstance(card, dict) or not {"model", "labels", "features", "normalisation"} <= card.keys():
        raise KwsError(f"checkpoint {file} was not written by kwslib; train one with kws train")
    wrong = fault(card)
    if not wrong and "sha256" in card and seal(weights, card) != card["sha256"]:
        wrong = "the checksum is another: weights or card were changed"
    for name, tensor in weights.items() if not wrong else ():
        if tensor.dtype not in TYPES or not tensor.isfinite().all():
            wrong = f"weight {name} holds NaN, infinity or {tensor.dtype}"
    if wrong:
        raise KwsError(f"checkpoint {file} is damaged ({wrong}); delete it and fetch or train it again")
    return weights, card


def find_checkpoint(path):
    """The checkpoint's file. A path that exists comes before a pretrained model of the same name."""
    if not isinstance(path, (str, os.PathLike)):
        raise KwsError(f"checkpoint is {path!r:.80}; give a path, or the name of a pretrained model")
    file = Path(path)
    file = file.with_suffix(".safetensors") if file.suffix == ".json" else file
    for found in (file / "model.safetensors", file, PRETRAINED / f"{path}.safetensors"):
        if os.path.isfile(found):
            return found
    names = ", ".join(model.name for model in pretrained())
    raise KwsError(f"checkpoint {path} does not exist; train one with kws train, or load one of {names} by name")


def pretrained():
    """The models that come with kwslib: entries with name, words, accuracy, interval, n, licence and data_licence.

    accuracy: the share of right answers on the `n` test clips of those words, with its 95 % interval; of a detector,
    the share heard at one false alarm an hour. licence: of the weights; data_licence: of the recordings that they were
    trained on. `kwslib.load(name)` loads one."""
    cards = {path.stem: read_json(path, "model card") for path in sorted(PRETRAINED.glob("*.json"))}
    kinds = ("accuracy", "interval", "n")
    Entry = namedtuple("Pretrained", ("name", "words", *kinds, "licence", "data_licence"))
    return [
        Entry(name, card["labels"], *(card["test"][k] for k in kinds), card["licence"], card["corpus"]["licence"])
        for name, card in cards.items()
    ]


def frontend_of(config):
    """The WaveToSpec that a config (an object with the features' keys) asks for."""
    same = ("n_mels", "n_fft", "hop_length", "n_mfcc", "win_length", "pad_mode", "center", "scale")
    return WaveToSpec(kind=features_of(config.model), **{key: getattr(config, key) for key in same})


def start_from(path, model, frontend, labels):
    """Give `model` the weights of a checkpoint, all but its last layer's where the labels are others.

    Returns the names of the weights given, and the Normalise that they were trained with. Raises KwsError where the
    checkpoint is of another model, or reads other features than `frontend` makes."""
    weights, card = read_checkpoint(path)
    own = model.state_dict()
    head = [k for k, v in weights.items() if k in own and v.shape != own[k].shape]
    last = {k.rpartition(".")[0] for k in list(own)[-2:]}
    if own.keys() != weights.keys() or any(k.rpartition(".")[0] not in last for k in head):
        raise KwsError(f"init {path} is a {card['model']}, which does not fit the recipe's model; change model or init")
    ours, theirs = (WaveToSpec(**f).options for f in (frontend.options, card["features"]))
    if differ := sorted(k for k in ours if ours[k] != theirs[k]):
        key = differ[0]
        raise KwsError(
            f"init {path} was trained with {key} {theirs[key]}, the recipe has {ours[key]}; set {key} to that"
        )
    if card["labels"] != list(labels):
        weights = {k: v for k, v in weights.items() if k.rpartition(".")[0] not in last}
    model.load_state_dict(weights, strict=False)
    return set(weights), Normalise(**card["normalisation"])


class TrainedModel:
    """A trained model. model: the module, in evaluation mode on `device`. frontend, normalise: waves to its inputs.
    labels: list of str. card: the checkpoint's."""

    def __init__(self, model, card, device="cpu"):
        self.card, self.labels, self.device = card, card["labels"], torch.device(device)
        self.model = model.eval().to(device)
        self.frontend = WaveToSpec(**card["features"]).to(device)
        self.normalise = Normalise(**card["normalisation"])
        self.full = card.get("recipe", {}).get("lengths") == "full"  # trained to count every frame of a padded clip

    @torch.no_grad()
    def logits(self, waves, samples=None):
        """Float waves (B, N) at 16 kHz, valid samples (B,) or None -> logits (B, labels), finite. Raises KwsError."""
        inputs = self.normalise(self.frontend(waves.to(self.device)))
        lengths = None if samples is None or self.full else self.frontend.frames(samples.to(self.device))
        try:
            logits = self.model(inputs, lengths).float()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as e:
            why, shape = str(e).split("\n")[0], tuple(inputs.shape)
            raise KwsError(f"{self.card['model']} cannot read features of shape {shape}: {why}") from e
        if not torch.compiler.is_compiling() and not logits.isfinite().all():
            raise KwsError(
                f"{self.card['model']} answers with NaN: samples beyond [-1, 1], or weights that are damaged"
            )
        return logits

    def all_logits(self, waves, samples=None, batch=128):
        """`logits` of any number of waves (n, N), float or int16, batch by batch -> (n, labels) on the CPU."""
        parts = []
        for rows in torch.arange(len(waves)).split(batch):
            wave = waves[rows] if waves.is_floating_point() else to_float(waves[rows])
            parts.append(self.logits(wave, None if samples is None else samples[rows]).cpu())
        return torch.cat(parts)


def kinds(weights):
    """Shape of every weight, and whether it is a float."""
    return {k: (v.shape, v.is_floating_point()) for k, v in weights.items()}


def load_model(path, device="cpu", kind=TrainedModel):
    """The trained model, of class `kind`, of a checkpoint (see `read_checkpoint`).

    Raises KwsError where there is no checkpoint, or its weights and its card are of different models."""
    weights, card = read_checkpoint(path)
    if card["model"] not in MODELS:
        raise KwsError(f"checkpoint {path} is of model {card['model']!r}, which this version of kwslib lacks")
    options = card.get("recipe", {}).get("model_options", {})
    with torch.device("meta") if options else nullcontext():  # without memory: options may ask for any size
        model = build(card["model"], len(card["labels"]), **options)
    if kinds(model.state_dict()) != kinds(weights):
        fit = f"does not fit {card['model']} with {len(card['labels'])} labels"
        raise KwsError(f"checkpoint {path} {fit}; it belongs to another variant or label set")
    model = build(card["model"], len(card["labels"]), **options) if options else model
    model.load_state_dict(weights)
    return kind(model, card, device)
