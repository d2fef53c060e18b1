"""Faults: what is damaged, lies about itself, or is done twice at once ends in one sentence, and nothing is lost."""
# ruff: noqa: F811 (fixtures, which are imported, are names of arguments)

import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_predict import LABELS, checkpoint, chirp, sf, spotter  # noqa: F401 (some are fixtures)

import kwslib
from kwslib.checkpoint import halved, read_checkpoint
from kwslib.io import KwsError, locked, replacing
from kwslib.spotter import load

pytestmark = pytest.mark.usefixtures("one_thread")


def sound(format="WAV", channels=1, wave=None, **options):
    """The bytes of a sound file that holds a second of a chirp, or `wave`."""
    out, wave = io.BytesIO(), chirp() if wave is None else wave
    sf.write(out, np.stack([wave] * channels, 1), 16_000, format=format, **options)
    return out.getvalue()


def refused(match, call, *arguments, **options):
    """The call must end in a KwsError of one line that matches."""
    with pytest.raises(KwsError, match=match) as e:
        call(*arguments, **options)
    assert "\n" not in str(e.value)


# -- sounds


@pytest.mark.parametrize("rate", [1_000_003, 191_999, 0, 2**32 - 1])
def test_a_file_that_claims_an_odd_rate(spotter, tmp_path, rate):
    path = tmp_path / "a.wav"
    path.write_bytes(sound()[:24] + struct.pack("<I", rate) + sound()[28:])
    refused("a.wav cannot be read as audio", spotter.predict, path)


def test_a_flac_that_claims_a_trillion_frames(spotter, tmp_path):
    data = bytearray(sound("FLAC"))
    assert int.from_bytes(data[21:26], "big") & 0xFFFFFFFFF == 16_000  # 36 bits of STREAMINFO
    data[21:26] = (int.from_bytes(data[21:26], "big") | 0xFFFFFFFFF).to_bytes(5, "big")
    (tmp_path / "a.flac").write_bytes(data)
    refused("a.flac cannot be read as audio", spotter.predict, tmp_path / "a.flac")


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF", "FLAC", "OGG", "MP3"])
def test_half_a_file_is_no_recording(spotter, tmp_path, format):
    data = sound(format)
    (tmp_path / "whole").write_bytes(data)
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    assert len(spotter.predict(tmp_path / "whole")) == len(LABELS)
    refused("half cannot be read as audio", spotter.predict, tmp_path / "half")


def test_many_channels_and_one_wild_sample(spotter, tmp_path):
    (tmp_path / "a.wav").write_bytes(sound(channels=16))
    refused("has 16 channels, more than 8", spotter.predict, tmp_path / "a.wav")
    wild = chirp()
    wild[5] = 1e30
    (tmp_path / "b.wav").write_bytes(sound(wave=wild, subtype="FLOAT"))
    refused("b.wav .*a sample of 1e\\+30", spotter.predict, tmp_path / "b.wav")
    refused("a sample of 1e\\+30", spotter.predict, wild, 16_000)


@pytest.mark.parametrize("rate", ["x", 1e12, np.inf, [16_000], 1j, b"16000", 10**400, object()])
def test_odd_rates(spotter, rate):
    refused("sample_rate is ", spotter.predict, chirp(), rate)


@pytest.mark.parametrize("wave", [chirp() + 1j, chirp() > 0, [True] * 9, np.array(["a"]), {}, 5, b"abc", [[]], [1e400]])
def test_odd_waves(spotter, wave):
    refused("the wave ", spotter.predict, wave, 16_000)


# -- checkpoints


def tampered(checkpoint, target, weights=None, first=False, **changes):
    """A copy of a checkpoint whose weights or card are others, and whose checksum is not."""
    old, card = read_checkpoint(checkpoint)
    if first:  # as version 1 was written
        card = {k: v for k, v in card.items() if k not in ("version", "sha256")}
    card = {**card, **changes}
    save_file(old if weights is None else weights, target, metadata={"kwslib": json.dumps(card)})
    return target


def test_a_new_checkpoint_has_a_checksum_and_an_old_one_needs_none(checkpoint, tmp_path):
    card = read_checkpoint(checkpoint)[1]
    assert card["version"] == 2 and len(card["sha256"]) == 64
    old = tampered(checkpoint, tmp_path / "a.safetensors", first=True)
    assert "version" not in read_checkpoint(old)[1]
    assert load(old).predict(chirp(), 16_000) == load(checkpoint).predict(chirp(), 16_000)


def test_what_does_not_fit_half_precision_is_refused():
    weights = {"a": torch.ones(2), "count": torch.tensor(3)}
    assert {k: v.dtype for k, v in halved(weights).items()} == {"a": torch.float16, "count": torch.int64}
    with pytest.raises(KwsError, match="weight b does not fit half precision"):
        halved(weights | {"b": torch.tensor([1e6])})


def test_what_is_changed_after_writing_is_refused(checkpoint, tmp_path):
    path, weights = tmp_path / "a.safetensors", load_file(checkpoint)
    name = max(weights, key=lambda k: weights[k].numel())
    bit = {k: v.clone() for k, v in weights.items()}
    bit[name].view(torch.int32).view(-1)[7] ^= 1
    half = halved(weights)
    features = read_checkpoint(checkpoint)[1]["features"]
    for changes in (
        {"weights": bit},
        {"weights": half},
        {"labels": LABELS[::-1]},
        {"features": {**features, "top_db": 79.0}},
        {"normalisation": {"mean": -2.0, "std": 19.0}},
        {"recipe": {"lengths": "full"}},
        {"detector": {"smooth": 3}},
    ):
        refused("a.safetensors is damaged .*checksum", load, tampered(checkpoint, path, **changes))
    refused("sha256: missing", load, tampered(checkpoint, path, sha256=None))


@pytest.mark.parametrize(
    "key, value",
    [
        *(
            ("labels", v)
            for v in (5, None, [], "abcd", ["a", "a", "b", "c"], ["a", None, "b", "c"], ["", "a", "b", "c"])
        ),
        *(("features", v) for v in ({"kind": "cqt"}, {"n_fft": 10**10}, {"hop_length": 0}, {"colour": 1}, [], None)),
        *(("features", {"n_mels": v}) for v in (-1, 1.5, "128", True, 10**9)),
        *(("normalisation", {"mean": -2.0, "std": v}) for v in (0, -1.0, float("nan"), float("inf"), "1", None)),
        *(("model", v) for v in ({}, None, 3)),
        *(("recipe", v) for v in (5, {"model_options": {"d_model": 10**9}}, {"model_options": 3}, {"lengths": "odd"})),
        *(("detector", v) for v in (5, {"hop_s": 0}, {"window_s": -1.0}, {"smooth": 0}, {"thresholds": {"1": "low"}})),
        ("version", 3),
        ("sha256", 5),
    ],
)
def test_cards_that_no_model_can_have(checkpoint, tmp_path, key, value):
    path = tampered(checkpoint, tmp_path / "a.safetensors", first=True, **{key: value})
    refused(f"a.safetensors is damaged .{key}", load, path)


def test_a_card_that_names_no_detector_is_of_a_classifier(checkpoint, tmp_path):
    path = tampered(checkpoint, tmp_path / "a.safetensors", first=True, detector=None)
    assert load(path).predict(chirp(), 16_000) == load(checkpoint).predict(chirp(), 16_000)


@pytest.mark.parametrize("text", ["5", "[]", "null", "[" * 100_000, '"model"', "{", '{"model": {}}'])
def test_headers_that_are_no_cards(checkpoint, tmp_path, text):
    save_file(load_file(checkpoint), tmp_path / "a.safetensors", metadata={"kwslib": text})
    refused("a.safetensors", load, tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_weights_that_give_nan_are_an_error_not_an_answer(checkpoint, tmp_path, value):
    """Also without a checksum, and where every weight is finite but their products are not."""
    weights = load_file(checkpoint)
    for name in [k for k, v in weights.items() if v.dim() == 2]:
        weights[name] = torch.full_like(weights[name], value)
    path = tampered(checkpoint, tmp_path / "a.safetensors", weights, first=True)
    refused("NaN", lambda: load(path).predict(chirp(), 16_000))


def test_depth_is_compared_before_memory_is_taken(checkpoint, tmp_path):
    options = {"d_model": 1024, "n_layers": 100}  # 3 GB
    path = tampered(checkpoint, tmp_path / "a.safetensors", first=True, recipe={"model_options": options})
    refused("does not fit", load, path)


def test_a_training_checks_the_checkpoint_that_it_finds(finished, corpus, tmp_path):
    from small_runs import run

    weights, card = read_checkpoint(finished[0])
    weights = {k: v + 1 if v.is_floating_point() else v for k, v in weights.items()}
    tampered(finished[0], tmp_path / "model.safetensors", weights)
    refused("model.safetensors is damaged", run, corpus, tmp_path)


# -- files


def test_a_killed_write_leaves_nothing_after_the_next(tmp_path):
    code = "import os, signal; from kwslib.io import replacing\n"
    code += "with replacing('a.json') as s: s.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
    with replacing(tmp_path / "a.json") as scratch:
        with replacing(tmp_path / "b.json") as other:
            other.write_text("b")
        scratch.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_a_write_under_way_is_not_taken_for_a_stray(tmp_path):
    code = "import sys; from kwslib.io import replacing\n"
    code += "with replacing('a.json') as s: s.write_text('first'); print('ready', flush=True); sys.stdin.read()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, **pipes) as first:
        assert first.stdout.readline() == "ready\n"
        with replacing(tmp_path / "a.json") as scratch:
            scratch.write_text("second")
        first.stdin.close()
    assert first.returncode == 0 and (tmp_path / "a.json").read_text() == "first"


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError) as e, replacing(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    assert e.value.filename == str(tmp_path / "a.json")


def test_a_lock_names_the_process_that_holds_it(tmp_path):
    with locked(tmp_path / "lock", "out is in use"):
        refused(
            f"out is in use: process {os.getpid()} on .*; wait", locked(tmp_path / "lock", "out is in use").__enter__
        )
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "lock", "out is in use"):
        pass


def test_what_may_not_be_read_is_not_to_be_deleted(checkpoint, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kwslib.checkpoint.safe_open", forbidden)
    refused("Permission denied.*; see to it that you may read it", load, checkpoint)


def test_importing_changes_nothing_of_the_caller():
    code = "import os; before = dict(os.environ); mask = os.umask(0o27); import torch; torch.set_num_threads(3)\n"
    code += "import kwslib; [getattr(kwslib, name) for name in kwslib.__all__]\n"
    code += "assert dict(os.environ) == before and torch.get_num_threads() == 3 and os.umask(0) == 0o27"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert kwslib.__all__
