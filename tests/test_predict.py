"""Prediction: any rate, length and number of channels; every bad input ends in one sentence that names it."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kwslib
from kwslib import cli as commands
from kwslib.checkpoint import save_checkpoint
from kwslib.data.features import WaveToSpec
from kwslib.io import KwsError, cli
from kwslib.models.registry import build
from kwslib.spotter import KeywordSpotter, load

sf = pytest.importorskip("soundfile")
LABELS = ["down", "go", "up", "yes"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that was never trained, its last layer scaled so that it tells two chirps apart."""
    torch.manual_seed(0)
    model, spec = build("mamba_mfcc_small", len(LABELS)).eval(), WaveToSpec(kind="mfcc")
    last = model.head.classify[-1]
    with torch.no_grad():
        logits = model((spec(torch.from_numpy(np.stack([chirp(), chirp(start=3000, end=400)]))) + 2) / 20)
        last.bias -= logits.mean(0)
        for parameter in (last.weight, last.bias):
            parameter *= 3 / (logits[0] - logits[1]).abs().max()
    card = {
        "model": "mamba_mfcc_small",
        "labels": LABELS,
        "features": spec.options,
        "normalisation": {"mean": -2.0, "std": 20.0},
    }
    path = tmp_path_factory.mktemp("checkpoints") / "model.safetensors"
    save_checkpoint(path, model.state_dict(), card)
    return path


@pytest.fixture(scope="module")
def spotter(checkpoint):
    return load(checkpoint)


def chirp(seconds=1.0, rate=16000, start=300, end=2500):
    t = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (start * t + (end - start) / 2 * t * t / seconds))).astype(np.float32)


def values(answer):
    return np.array([dict(answer)[label] for label in LABELS])


def test_the_fixture_tells_sounds_apart(spotter):
    answers = [values(spotter.predict(chirp(start=a, end=b), 16000)) for a, b in ((300, 2500), (3000, 400))]
    assert np.abs(answers[0] - answers[1]).max() > 0.05 and max(answers[0].max(), answers[1].max()) > 0.5


@pytest.fixture(scope="module")
def plain(spotter):
    """What the spotter says of the chirp of some length and rate, mono and float."""
    return functools.cache(lambda seconds, rate: values(spotter.predict(chirp(seconds, rate), rate)))


def test_channels_may_come_first_or_last(spotter):
    """torchaudio gives (channels, samples), soundfile (samples, channels)."""
    wave = np.random.default_rng(0).normal(size=(2, 9_000)).astype(np.float32) * 0.1
    assert spotter.predict(wave.T, 16_000) == spotter.predict(wave, 16_000) == spotter.predict(wave.mean(0), 16_000)
    with pytest.raises(KwsError, match=r"shape \(1, 2, 9000\)"):
        spotter.predict(wave[None], 16_000)


@pytest.mark.parametrize("seconds", [0.3, 1, 3.7])
@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_any_sound_gets_an_answer(spotter, plain, seconds, rate, channels, kind):
    wave = chirp(seconds, rate)
    wave = (wave * 32767).astype(np.int16) if kind is np.int16 else wave
    answer = spotter.predict(wave if channels == 1 else np.stack([wave, wave]), rate)
    p = [probability for _, probability in answer]
    assert sorted(label for label, _ in answer) == LABELS
    assert p == sorted(p, reverse=True) and sum(p) == pytest.approx(1, abs=1e-5) and min(p) >= 0
    np.testing.assert_allclose(values(answer), plain(seconds, rate), atol=0.02)  # neither channels nor integers matter


def test_rates_agree(spotter):
    at = {rate: values(spotter.predict(chirp(rate=rate), rate)) for rate in (16000, 44100, 48000)}
    np.testing.assert_allclose(at[44100], at[16000], atol=0.1)
    np.testing.assert_allclose(at[48000], at[16000], atol=0.1)


@pytest.mark.parametrize("name, subtype", [("a.wav", "PCM_16"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16")])
def test_a_file_is_its_samples(spotter, tmp_path, name, subtype):
    stereo = np.stack([chirp(rate=44100), 0.5 * chirp(rate=44100)], 1)
    sf.write(tmp_path / name, stereo, 44100, subtype=subtype)
    expected = values(spotter.predict(stereo.T, 44100))
    for path in (tmp_path / name, str(tmp_path / name)):
        np.testing.assert_allclose(values(spotter.predict(path)), expected, atol=0.02)


def test_padding_does_not_count(spotter):
    """Of a short recording, the second half of the second is no silence that was said."""
    wave = torch.from_numpy(chirp(0.5))
    padded = torch.nn.functional.pad(wave, (0, 8000))[None]
    with torch.no_grad():
        masked = spotter.logits(padded, torch.tensor([8000])).softmax(1)[0]
        unmasked = spotter.logits(padded).softmax(1)[0]
    np.testing.assert_allclose(values(spotter.predict(wave, 16000)), masked, atol=1e-5)
    assert (masked - unmasked).abs().max() > 1e-3


@pytest.mark.parametrize("at", [0, 16000, 43200])
def test_of_a_long_recording_the_most_confident_window_answers(spotter, at):
    long = np.zeros(59200, np.float32)
    long[at : at + 16000] = chirp(start=3000, end=400)
    starts = [*range(0, 43200, 4000), 43200]  # the last one ends where the recording does
    windows = torch.from_numpy(np.stack([long[s : s + 16000] for s in starts]))
    p = spotter.logits(windows, torch.full((len(starts),), 16000)).softmax(1)
    best = p[p.amax(1).argmax()]
    np.testing.assert_allclose(values(spotter.predict(long, 16000)), best, atol=1e-3)


def test_an_hour_is_not_one_batch(spotter, monkeypatch):
    sizes, logits = [], spotter.logits
    monkeypatch.setattr(spotter, "logits", lambda w, s: sizes.append(len(w)) or logits(w[:1], s[:1]).expand(len(w), -1))
    spotter.predict(np.zeros(16000 * 120, np.float32), 16000)
    assert sum(sizes) == 477 and max(sizes) <= 64


def test_load_takes_file_folder_or_card(checkpoint):
    a, *others = (
        kwslib.load(p).predict(chirp(), 16000)
        for p in (checkpoint, str(checkpoint), checkpoint.parent, checkpoint.with_suffix(".json"))
    )
    assert all(other == a for other in others) and isinstance(kwslib.load(checkpoint), KeywordSpotter)


# -- bad input


def run(*arguments):
    with pytest.raises(SystemExit) as e:
        cli(lambda: commands.predict([*map(str, arguments)]))
    return e.value.code or 0


def test_the_program_prints_what_predict_returns(spotter, checkpoint, tmp_path, monkeypatch, capsys):
    sf.write(tmp_path / "a.wav", chirp(rate=8000), 8000)
    sf.write(tmp_path / "b.wav", chirp(2, start=3000, end=400), 16000)
    assert run(checkpoint, tmp_path / "a.wav", tmp_path / "b.wav", "--top", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{f}: " + "  ".join(f"{label} {p:.1%}" for label, p in spotter.predict(f))
        for f in (tmp_path / "a.wav", tmp_path / "b.wav")
    ]


def bad_sounds(folder):
    (folder / "text.wav").write_text("no sound at all")
    (folder / "nothing.wav").write_bytes(b"")
    (folder / "samples.raw").write_bytes(bytes(2000))
    sf.write(folder / "empty.wav", np.zeros(0), 16000)
    sf.write(folder / "nan.wav", np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    return {
        "missing.wav": "does not exist",
        "text.wav": "cannot be read as audio",
        "nothing.wav": "cannot be read as audio",
        "samples.raw": "cannot be read as audio",
        "empty.wav": "holds no samples",
        "nan.wav": "NaN or infinite",
    }


@pytest.mark.parametrize("name", ["missing.wav", "text.wav", "nothing.wav", "samples.raw", "empty.wav", "nan.wav"])
def test_bad_sounds(spotter, checkpoint, tmp_path, monkeypatch, capsys, name):
    match = bad_sounds(tmp_path)[name]
    with pytest.raises(KwsError, match=f"{name}.*{match}"):
        spotter.predict(tmp_path / name)
    one_line(monkeypatch, capsys, f"{name}", match, checkpoint, tmp_path / name)


def one_line(monkeypatch, capsys, name, match, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and name in err and match in err


def rewritten(path, target, **changes):
    """A copy of a checkpoint whose card says something else."""
    from kwslib.checkpoint import read_checkpoint

    weights, card = read_checkpoint(path)
    save_checkpoint(target, weights, {**card, **changes})


@pytest.mark.parametrize(
    "kind, match",
    [
        ("missing", "does not exist; train one"),
        ("text", "is not a readable safetensors file"),
        ("cut", "is not a readable safetensors file"),
        ("no card", "was not written by kwslib"),
        ("half a card", "was not written by kwslib"),
        ("variant", "does not fit mamba_mfcc_medium"),
        ("labels", "does not fit mamba_mfcc_small with 3 labels"),
        ("future", "is of model 'mamba_3'"),
        ("pickle", "is not a readable safetensors file"),
    ],
)
def test_wrong_checkpoints(checkpoint, tmp_path, monkeypatch, capsys, kind, match):
    path = tmp_path / "wrong.safetensors"
    if kind == "text":
        path.write_text("these are not tensors, although the name says so")
    elif kind == "cut":
        path.write_bytes(checkpoint.read_bytes()[:-1000])
    elif kind == "no card":
        save_file(load_file(checkpoint), path)
    elif kind == "half a card":
        save_file(load_file(checkpoint), path, metadata={"kwslib": json.dumps({"model": "mamba_mfcc_small"})})
    elif kind == "variant":
        rewritten(checkpoint, path, model="mamba_mfcc_medium")
    elif kind == "labels":
        rewritten(checkpoint, path, labels=LABELS[:3])
    elif kind == "future":
        rewritten(checkpoint, path, model="mamba_3")
    elif kind == "pickle":
        torch.save(load_file(checkpoint), path)
    with pytest.raises(KwsError, match=match) as e:
        load(path)
    assert "wrong.safetensors" in str(e.value)
    one_line(monkeypatch, capsys, "wrong.safetensors", match, path, tmp_path / "a.wav")


def test_a_checkpoint_is_replaced_whole_or_not_at_all(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    shutil.copy(checkpoint, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kwslib.io.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        rewritten(checkpoint, path, labels=["a", "b", "c", "d"])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
