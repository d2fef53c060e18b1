"""The fuzzers of `make torture`: one damaged input after another, each a function of its family, its number and nothing else.

A family is a class: made once in a folder of its own (`__init__`), its call `family(rng)` tries one input. It returns None
where that is refused or its answer is sound, and raises KwsError, or Defect for an answer that is none."""  # noqa: E501

import io
import json
import math
import struct
import tarfile
import zipfile

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file

from kwslib.checkpoint import save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.features import WaveToSpec
from kwslib.data.folder import Folder
from kwslib.data.tasks import select
from kwslib.io import SAMPLE_RATE, KwsError, write_csv, write_json
from kwslib.models.registry import build
from kwslib.spotter import load
from kwslib.training.config import Config
from kwslib.training.loop import train

LABELS = ["down", "go", "up", "yes"]
INTEGERS = (0, 1, 7, 127, 128, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
ODD = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan, 2**31, 2**63, 10**400, "",
    "x", "\0", "a\nb", "x" * 5000, "../..", "/", "😀", "\udc80", b"", b"x", [], {}, (), [1], [None], {"a": 1}, [[]],
    [0, 0], [1, 0], [math.nan, 1], [10**400, 1], ["a", "b"], 1j, object, range(3), np.float64(3), np.zeros(3),
)  # fmt: skip


class Defect(Exception):
    """An answer that is wrong: NaN, other bits, what should have been refused."""


def chirp(rng, rate=SAMPLE_RATE, seconds=1.0):
    t = np.arange(int(rate * seconds)) / rate
    return (0.4 * np.sin(2 * np.pi * (300 + 2000 * rng.random() * t) * t)).astype(np.float32)


def damaged(rng, data):
    """Bytes of a file with one to eight changes: bits, bytes, numbers, cuts, repeats, holes, strange ends."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 128)  # headers matter most
        at, n = int(rng.integers(max(reach, 1))), int(rng.integers(1, 64))
        kind = rng.integers(8)
        if kind == 0 and data:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and data:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            number = int(rng.choice(INTEGERS[:11]))
            data[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
        elif kind == 3:
            del data[at : at + n]
        elif kind == 4:
            data[at:at] = data[at : at + n]
        elif kind == 5:
            data[at : at + n] = bytes(n)
        elif kind == 6:
            data[at:at] = rng.bytes(n)
        elif rng.random() < 0.3:
            del data[int(rng.integers(len(data) + 1)) :]
    return bytes(data)


def small_spotter(path):
    """A checkpoint of an untrained model; returns its path."""
    torch.manual_seed(0)
    card = {"model": "mamba_mfcc_small", "labels": LABELS, "features": WaveToSpec(kind="mfcc").options}
    card |= {"normalisation": {"mean": -2.0, "std": 20.0}, "recipe": {"model_options": {"d_model": 16, "n_layers": 1}}}
    model = build("mamba_mfcc_small", len(LABELS), d_model=16, n_layers=1)
    save_checkpoint(path, model.state_dict(), card)
    return path


def sound_answer(answer, labels=LABELS, detector=False):
    """Raise Defect for an answer that is no probability of each label; a detector's need not sum to 1."""
    p = [value for _, value in answer]
    right = sorted(label for label, _ in answer) == sorted(labels) and p == sorted(p, reverse=True)
    if not (right and all(0 <= value <= 1 for value in p) and (detector or abs(sum(p) - 1) < 1e-4)):
        raise Defect(f"predict answers {answer!r}")


class Audio:
    """Sound files of nine formats, damaged, heard by predict and by packing's decoder alike."""

    FORMATS = "WAV FLAC OGG MP3 AIFF AU W64 RF64 CAF".split()

    def __init__(self, folder):
        self.path, self.spotter, rng = folder / "sound", load(small_spotter(folder / "model.safetensors")), seeded(0)
        self.files = []
        for format in self.FORMATS:
            for rate in (8000, 16_000, 44_100):
                out, wave = io.BytesIO(), chirp(rng, rate, 0.4)
                wave = wave if rate == 16_000 else np.stack([wave, wave], 1)
                soundfile.write(out, wave, rate, format=format)
                self.files.append(out.getvalue())

    def __call__(self, rng):
        self.path.write_bytes(damaged(rng, self.files[rng.integers(len(self.files))]))
        sound_answer(self.spotter.predict(self.path))


class Archives:
    """Zips and tars of word folders with lists and noise, damaged or with odd members, listed and decoded as packing does."""  # noqa: E501

    NAMES = (
        "",
        ".",
        "/",
        "../x.wav",
        "up",
        "up/",
        "up//a.wav",
        "up/\n.wav",
        "up/" + "x" * 9000 + ".wav",
        "a/b/c/d.wav",
    )
    NAMES += ("_background_noise_/n.wav", "validation_list.txt", "__MACOSX/x", "up/a.wav", "C:\\x.wav", "up/é.wav")

    def __init__(self, folder):
        self.folder, self.count, rng = folder, 0, seeded(0)
        out = io.BytesIO()
        soundfile.write(out, chirp(rng), SAMPLE_RATE, format="WAV")
        self.members = {f"{w}/{s}_nohash_0.wav": out.getvalue() for w in ("up", "down") for s in "ab"}
        self.members |= {"_background_noise_/hiss.wav": out.getvalue(), "testing_list.txt": b"up/a_nohash_0.wav\n"}
        self.members |= {"validation_list.txt": b"up/b_nohash_0.wav\n"}

    def __call__(self, rng):
        members = dict(self.members)
        for _ in range(rng.integers(3)):
            data = damaged(rng, members[str(rng.choice(list(self.members)))])
            members[str(rng.choice([*self.NAMES, *self.members]))] = data
        out, kind = io.BytesIO(), ["zip", "tar", "w:gz", "w:bz2", "w:xz"][rng.integers(5)]
        if kind == "zip":
            method = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            with zipfile.ZipFile(out, "w", method) as z:
                for name, data in members.items():
                    z.writestr(zipfile.ZipInfo(name) if name else zipfile.ZipInfo("\0"), data, method)
        else:
            with tarfile.open(fileobj=out, mode="w" if kind == "tar" else kind) as tar:
                for name, data in members.items():
                    member = tarfile.TarInfo(name)
                    member.size, member.type = len(data), tarfile.REGTYPE if rng.random() < 0.99 else tarfile.SYMTYPE
                    tar.addfile(member, io.BytesIO(data))
        data = out.getvalue()
        path = self.folder / f"a.{kind[-3:]}"
        path.write_bytes(damaged(rng, data) if rng.random() < 0.7 else data)
        source = Folder(path)
        source.open()
        for i, where in source.each({i: clip.where for i, clip in enumerate(source.clips)}):
            clip = source.clips[i]._replace(where=where)
            try:
                wave = source.decode(clip)[0]
            except KwsError:
                continue
            if not 0 < len(wave) <= SAMPLE_RATE or wave.dtype != np.int16:
                raise Defect(f"{clip.path} is decoded to {wave.shape} {wave.dtype}")
        source.noise()


class Checkpoints:
    """Checkpoints with damaged bytes, cards or weights. One that loads answers with the bits of the whole one; those of
    version 1, which have no checksum, answer soundly."""

    CARDS = ("model", "labels", "features", "normalisation", "recipe", "version", "sha256", "detector", "training")

    def __init__(self, folder):
        self.whole, self.path = small_spotter(folder / "model.safetensors"), folder / "damaged.safetensors"
        self.bytes, self.weights, self.wave = self.whole.read_bytes(), load_file(self.whole), chirp(seeded(1))
        self.card = json.loads(self.whole.with_suffix(".json").read_text())
        self.answer = load(self.whole).predict(self.wave, SAMPLE_RATE)

    def __call__(self, rng):
        kind = rng.integers(4)
        card, weights = json.loads(json.dumps(self.card)), dict(self.weights)
        if kind == 0:
            self.path.write_bytes(damaged(rng, self.bytes))
        else:
            if kind == 1:  # as version 1 wrote it
                del card["version"], card["sha256"]
            if kind < 3 or rng.random() < 0.3:
                self.change_card(rng, card)
            if kind == 3 or rng.random() < 0.3:
                self.change_weights(rng, weights)
            try:
                save_file(weights, self.path, metadata={"kwslib": json.dumps(card)})
            except (TypeError, ValueError, OverflowError):  # a value that JSON does not hold
                return
        spotter = load(self.path)
        answer = spotter.predict(self.wave, SAMPLE_RATE)
        if kind != 1 and answer != self.answer:
            raise Defect("a changed checkpoint answers otherwise, without a word")
        sound_answer(answer, [label for label, _ in answer], "detector" in spotter.card)

    def change_card(self, rng, card):
        key = str(rng.choice(self.CARDS))
        part = card.get(key)
        if isinstance(part, dict) and part and rng.random() < 0.7:
            part[str(rng.choice(list(part)))] = pick(rng, ODD)
        elif isinstance(part, list) and rng.random() < 0.7:
            part[rng.integers(len(part))] = pick(rng, [*ODD, part[0]])
        elif rng.random() < 0.2:
            card.pop(key, None)
        else:
            card[key] = pick(rng, ODD)

    def change_weights(self, rng, weights):
        name = str(rng.choice(list(weights)))
        value, kind = weights[name].clone(), rng.integers(6)
        if kind == 0:
            value.view(-1)[rng.integers(value.numel())] = float(rng.choice([math.nan, math.inf, 1e38, -1e38, 7.0]))
        elif kind == 1:
            value.fill_(float(rng.choice([math.nan, -math.inf, 3e38, 1e30, 0.0])))
        elif kind == 2:
            value = value.to(pick(rng, [torch.float16, torch.float64, torch.int8, torch.int64, torch.bool]))
        elif kind == 3:
            value = value.flatten()[: rng.integers(value.numel() + 1)]
        elif kind == 4:
            value = value.reshape(-1, 1)
        weights.pop(name) if kind == 5 else weights.update({name: value})


class Configs:
    """Recipes with odd values. Every other one that is accepted is trained for an epoch on a few clips."""

    def __init__(self, folder):
        self.corpus, self.out, self.accepted = small_corpus(folder / "corpus"), folder / "run", 0

    def __call__(self, rng):
        values = {}
        for _ in range(rng.integers(1, 4)):
            key = str(rng.choice(list(Config.model_fields)))
            default = Config.model_fields[key].default
            values[key] = pick(rng, ODD)
            if rng.random() < 0.5 and isinstance(default, (int, float)):
                values[key] = default * float(rng.choice([0, 0.1, 0.5, 2, 10, -1]))
            elif rng.random() < 0.5 and isinstance(default, list):
                values[key] = [pick(rng, ODD), pick(rng, ODD)] if rng.random() < 0.5 else [0, int(rng.integers(30))]
        Config(**values)
        self.accepted += 1
        if self.accepted % 2:
            return
        fixed = dict(corpus=self.corpus, out=self.out, epochs=1, device="cpu", threads=1, precision="fp32", task="all")
        small = dict(model="keyword_cnn", n_mels=16, n_fft=1024, hop_length=800, batch_size=8, teachers=[])
        for file in self.out.glob("*") if self.out.exists() else ():
            file.unlink()
        card = train(Config(**{**small, **values, **fixed, "model_options": {}}), progress=False)
        if not 0 <= card["validation"]["accuracy"] <= 1:
            raise Defect(f"a training with {values} ends with accuracy {card['validation']['accuracy']}")


class Arguments:
    """predict of samples, rates and paths of every type."""

    def __init__(self, folder):
        self.spotter, self.path = load(small_spotter(folder / "model.safetensors")), folder / "a.wav"
        soundfile.write(self.path, chirp(seeded(0)), SAMPLE_RATE)

    def __call__(self, rng):
        n = int(rng.choice([0, 1, 2, 3, 399, 16_000, 16_001, 40_000]))
        shape = pick(rng, [(n,), (n, 1), (1, n), (2, n), (n, 8), (9, n), (1, 1, n), ()])
        scale = float(rng.choice([0, 1e-30, 0.1, 1, 3, 300, 40_000, 1e30, 1e308]))
        types = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 ? c8 O U5 M8[s]".split()
        with np.errstate(all="ignore"):
            wave = (scale * rng.standard_normal(shape)) if shape else np.array(scale)
            wave = np.asarray(wave).astype(str(rng.choice(types)))
        if rng.random() < 0.2 and wave.dtype.kind == "f" and wave.size:
            wave.reshape(-1)[rng.integers(wave.size)] = float(rng.choice([math.nan, math.inf, 1e30]))
        if rng.random() < 0.2:
            wave = wave.tolist()
        elif rng.random() < 0.2 and isinstance(wave, np.ndarray) and wave.dtype.kind in "fiub" and wave.dtype != "u2":
            wave = torch.tensor(wave.tolist())
        elif rng.random() < 0.2:
            wave = pick(rng, [*ODD, self.path, str(self.path), [self.path, self.path], [self.path, 3], {"array": wave}])
        rate = pick(rng, [*ODD, 16_000, 16_000.0, 8000, 44_100, 192_000, 4000, 191_999, 3999, 10**6, "16000"])
        rate = 16_000 if rng.random() < 0.5 else rate
        answer = self.spotter.predict(wave, rate)
        many = isinstance(wave, (list, tuple)) and answer and isinstance(answer[0], list)
        for one in answer if many else [answer]:
            sound_answer(one)


class Corpora:
    """Packed corpora with damaged files, opened and selected from."""

    def __init__(self, folder):
        self.root = small_corpus(folder / "corpus")
        self.files = {path.name: path.read_bytes() for path in self.root.iterdir()}

    def __call__(self, rng):
        name = str(rng.choice(list(self.files)))
        (self.root / name).write_bytes(damaged(rng, self.files[name]))
        try:
            split = select(load_corpus(self.root), "all", str(rng.choice(["training", "validation", "testing"])))
            if len(split.waves) != len(split.targets):
                raise Defect("a split has more clips than targets")
        finally:
            (self.root / name).write_bytes(self.files[name])


def small_corpus(root):
    """A packed corpus of two tones, 24 clips; returns its folder."""
    rng, rows, waves = seeded(0), [], []
    for split, speakers in {"training": 4, "validation": 1, "testing": 1}.items():
        for word, hz in {"high": 2400, "low": 300}.items():
            for i in range(2 * speakers):
                wave = 3000 * np.sin(2 * np.pi * hz * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
                waves.append((wave + rng.normal(0, 500, SAMPLE_RATE)).astype(np.int16))
                name = dict(path=f"{word}/{split}{i}_nohash_0.wav", word=word, speaker=f"{split}{i}")
                rows.append({**name, "split": split, "samples": SAMPLE_RATE})
    root.mkdir(parents=True)
    np.save(root / "waves.npy", np.array(waves))
    np.save(root / "noise.npy", rng.normal(0, 500, 10 * SAMPLE_RATE).astype(np.int16))
    write_csv(root / "index.csv", rows)
    card = dict(name="tones", source="made", synthetic=True, licence="CC0", attribution="", checksum="0" * 64)
    clips = {"training": 16, "validation": 4, "testing": 4}
    write_json(root / "card.json", {**card, "clips": clips, "words": {}, "speakers": clips})
    return root


def pick(rng, values):
    """One of the values, as it is (numpy would make them of one type)."""
    return values[rng.integers(len(values))]


def seeded(*seed):
    return np.random.default_rng(seed)


FAMILIES = {  # how many inputs of each the whole campaign tries
    Audio: 8000, Archives: 3000, Checkpoints: 4000, Configs: 3000, Arguments: 1600, Corpora: 1000,
}  # fmt: skip
