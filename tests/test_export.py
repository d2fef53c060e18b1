"""ONNX files: in onnxruntime a model gives what it gives in PyTorch, at once and in chunks, or there is no file."""

import json

import numpy as np
import pytest
import torch

import kwslib
from kwslib.cli import command
from kwslib.data.features import WaveToSpec
from kwslib.io import KwsError
from kwslib.spotter import KeywordSpotter

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

from kwslib.export import export, graph, stream, write  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ["go", "stop", "yes"]


def spotter(name, features=None, normalisation=None, options=None, **card):
    """A model with random weights. Its batch norms have seen something."""
    torch.manual_seed(0)
    features = {"n_mels": 64, "n_fft": 512, "hop_length": 160} if features is None else features
    features = {"kind": kwslib.MODELS[name].features} | features
    model = kwslib.build(name, len(LABELS), **options or {})
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    card = {"model": name, "labels": LABELS, "features": features, **card}
    return KeywordSpotter(model, card | {"normalisation": normalisation or {"mean": -30.0, "std": 20.0}})


def light(**card):
    return spotter("mamba_light", options={"n_layers": 1, "d_model": 32}, **card)


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def in_onnxruntime(path, **inputs):
    runs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in runs.get_outputs()], runs.run(None, {k: v.numpy() for k, v in inputs.items()})))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_fft": 512, "hop_length": 160, "n_mels": 64},
        {"n_fft": 480, "hop_length": 160, "n_mels": 80, "center": False},
        {"n_fft": 512, "win_length": 401, "hop_length": 160, "n_mels": 40, "pad_mode": "reflect"},
        {"n_fft": 45, "hop_length": 7, "n_mels": 4},
        {"n_fft": 31, "hop_length": 31, "n_mels": 4},
    ],
)
def test_the_spectrum_in_matrices_is_the_spectrum(options):
    front, waves = WaveToSpec(**options), noise(3, 5000)
    found, right = graph.Spectrum(front)(graph.padded(front, waves)), front.power(waves)
    assert found.shape == right.shape
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * float(right.max()))


def test_a_recurrence_is_what_it_says():
    name, shape = "Recurrence4", [2, 4, 3, 5]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("decay", "entering")]
    values.append(onnx.helper.make_tensor_value_info("initial", onnx.TensorProto.FLOAT, [2, 1, 3, 5]))
    node = onnx.helper.make_node(name, [v.name for v in values], ["states"], domain="kwslib")
    states = onnx.helper.make_tensor_value_info("states", onnx.TensorProto.FLOAT, shape)
    made = onnx.helper.make_graph([node], "g", values, [states])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("kwslib", 1)]
    proto = onnx.helper.make_model(made, opset_imports=opsets, functions=[graph.unrolled(name, 20)], ir_version=10)
    rng = np.random.default_rng(0)
    decay, entering, h = (rng.random(size, np.float32) for size in (shape, shape, (2, 1, 3, 5)))
    runs = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = runs.run(None, {"decay": decay, "entering": entering, "initial": h})[0]
    for t in range(4):
        h = decay[:, t : t + 1] * h + entering[:, t : t + 1]
        np.testing.assert_allclose(found[:, t : t + 1], h, rtol=1e-6)


@pytest.mark.parametrize(
    "name, features, normalisation, options",
    [
        ("mamba_light", None, None, {"n_layers": 2, "d_model": 32}),
        ("mamba_mfcc_small", {"n_mels": 40, "n_mfcc": 40, "hop_length": 512}, None, {"n_layers": 1}),
        ("retnet", {"hop_length": 1024}, {"kind": "clip"}, {"n_layers": 1}),
        ("kwt_1", {"n_mels": 80, "n_fft": 480, "hop_length": 160, "center": False}, None, {"n_layers": 1}),
        ("bc_resnet_1", {"n_mels": 40, "n_fft": 512, "win_length": 480, "hop_length": 160, "pad_mode": "reflect",
                         "scale": "log"}, {"kind": "none"}, None),
        ("keyword_cnn", {"n_mels": 16, "hop_length": 1600}, None, None),
    ],
)  # fmt: skip
def test_onnxruntime_gives_what_pytorch_gives(tmp_path, name, features, normalisation, options):
    model = spotter(name, features, normalisation, options)
    card = export(model, tmp_path / "model.onnx")
    for count in (1, 3):  # any number of clips
        found = in_onnxruntime(tmp_path / "model.onnx", wave=(waves := noise(count, 16000)))
        right = model.logits(waves)
        np.testing.assert_allclose(found["logits"], right.numpy(), atol=1e-3)
        np.testing.assert_allclose(found["probabilities"], right.softmax(1).numpy(), atol=1e-3)
    assert card["check"]["largest_difference"] < 1e-3 and card["labels"] == LABELS and card["samples"] == 16000
    assert json.loads((tmp_path / "model.json").read_text())["bytes"] == (tmp_path / "model.onnx").stat().st_size
    properties = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(properties["kwslib"])["labels"] == LABELS


def test_a_detector_has_a_sigmoid_for_each_label_and_its_own_window(tmp_path):
    rule = {"window_s": 1.5, "smooth": 3, "refractory_s": 2.0, "thresholds": {"1": 4.0}}
    card = export(model := light(detector=rule), tmp_path / "model.onnx")
    assert card["samples"] == 24000 and card["detector"] and card["threshold"] == 4.0
    assert (card["smooth"], card["refractory_s"], card["hop_s"]) == (3, 2.0, 0.1)
    found = in_onnxruntime(tmp_path / "model.onnx", wave=(waves := noise(2, 24000)))
    np.testing.assert_allclose(found["probabilities"], model.logits(waves).sigmoid().numpy(), atol=1e-4)


def test_each_kind_of_graph_says_what_the_card_has_for_its_mode(tmp_path):
    rule = {"smooth": 3, "thresholds": {"1": 4.0}, "carried": {"refractory_s": 2.0, "thresholds": {"1": 5.0}}}
    for streaming, found in ((False, (3, 1.5, 4.0)), (True, (3, 2.0, 5.0))):
        card = export(light(detector=rule), tmp_path / "model.onnx", streaming=streaming)
        assert tuple(card[k] for k in ("smooth", "refractory_s", "threshold")) == found


@pytest.mark.parametrize(
    "name, members", [("mamba_light", 1), ("mamba_light", 2), ("mamba_mel_small", 1), ("mamba_mfcc_small", 1)]
)
def test_at_once_is_the_clip_while_it_is_no_longer_than_a_second(name, members):
    mels = {"mamba_mfcc_small": 40}.get(name, kwslib.MODELS[name].options["n_features"])
    model = spotter(name, {"n_mels": mels}, options={"members": members})
    waves = noise(2, 12_000)
    torch.testing.assert_close(stream.at_once(model, waves)[:, -1], model.logits(waves), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, members, restart",
    [("mamba_light", 1, 0), ("mamba_light", 2, 1.0), ("mamba_mel_small", 1, 0), ("mamba_mfcc_small", 1, 1.2)],
)
def test_a_stream_in_chunks_is_the_wave_at_once(tmp_path, name, members, restart):
    """Over four seconds, of which the first is a second of nothing: borders, states, floors and the mean are right;
    also those of two states that start anew in turn."""
    features = {"n_mels": 128, "n_mfcc": 40} if name != "mamba_light" else None
    model = spotter(name, features, options={"n_layers": 2, "d_model": 32, "members": members})
    if restart:
        model.card["detector"] = {"carried": {"restart_s": restart}}
    card = export(model, tmp_path / "model.onnx", streaming=True)
    wave = torch.cat([torch.zeros(1, 16_000), noise(1, 48_000) * torch.logspace(-4, 1, 48_000)], 1)
    right = stream.at_once(model, wave)[0].numpy()
    runs = write.session(tmp_path / "model.onnx")
    state, end = np.zeros((1, card["state"]), np.float32), stream.StreamGraph(model).first - 1
    for chunk in wave[:, : 64_000 // card["samples"] * card["samples"]].split(card["samples"], 1):
        logits, _, state = runs.run(None, {"chunk": chunk.numpy(), "state": state})
        end += card["frames"]
        if end >= 0:
            np.testing.assert_allclose(logits[0], right[end], atol=1e-4)
    assert end > 0.8 * len(right) and 0.075 <= card["samples"] / 16000 <= 0.12


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    unrolled = graph.unrolled

    def wrong(*arguments):
        function = unrolled(*arguments)
        next(node for node in function.node if node.op_type == "Mul").op_type = "Add"
        return function

    monkeypatch.setattr(write, "unrolled", wrong)
    with pytest.raises(KwsError, match="onnxruntime differ by .*nothing was written"):
        export(light(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_eight_bits_tell_their_accuracy_on_validation(tmp_path, finished, corpus):
    out, _ = finished
    whole = export(out, tmp_path / "whole.onnx", clips=corpus)
    card = export(out, tmp_path / "small.onnx", int8=True, clips=corpus)
    model, split = kwslib.load(out), kwslib.select(kwslib.load_corpus(corpus), "all", "validation")
    waves = split.waves.float() / 32768
    answers = in_onnxruntime(tmp_path / "small.onnx", wave=waves)["logits"].argmax(1)
    assert card["int8"]["accuracy"] == pytest.approx((answers == split.targets.numpy()).mean())
    right = (model.logits(waves).argmax(1) == split.targets).float().mean()
    assert card["int8"]["accuracy_float"] == pytest.approx(float(right))
    assert card["bytes"] < 0.75 * whole["bytes"] and card["check"]["clips"] == len(waves)


@pytest.mark.parametrize(
    "model, told",
    [
        (("keyword_cnn", {"n_mels": 16}), "carries no state; leave out --streaming"),
        (("retnet", {"n_mels": 128}), "carries no state; leave out --streaming"),
        (("mamba_light", None, {"kind": "clip"}), "by its own mean, which no stream has"),
    ],
)
def test_what_has_no_stream_is_refused(tmp_path, model, told):
    with pytest.raises(KwsError, match=told):
        export(spotter(*model), tmp_path / "model.onnx", streaming=True)
    assert not list(tmp_path.iterdir())


def test_a_detector_for_windows_alone_has_no_stream(tmp_path):
    with pytest.raises(KwsError, match="trained for windows alone"):
        export("wake_words", tmp_path / "model.onnx", streaming=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["words", "runs/words", "runs/words/model.safetensors", "runs/words.safetensors"])
def test_a_file_has_the_name_of_its_checkpoint(model):
    assert write.name_of(model, None) == "words" and write.name_of(light(), light()) == "mamba_light"


def test_clips_that_are_none_are_refused(tmp_path):
    with pytest.raises(KwsError, match="does not exist, or is no corpus and holds no recordings"):
        export(light(), tmp_path / "model.onnx", clips=tmp_path)


def test_the_command_says_what_it_checked(tmp_path, capsys):
    import soundfile

    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips/a.wav", noise(30_000).numpy(), 44_100)
    command(["export", "mamba_light", "--to", "onnx", "--out", str(tmp_path / "m.onnx"), "--streaming", "--int8",
             "--clips", str(tmp_path / "clips")])  # fmt: skip
    printed = capsys.readouterr().out
    assert "1280 samples in, 15 labels out" in printed and "checked on 1 clips (recordings)" in printed
    assert "int8: clips 1" in printed and (tmp_path / "m.onnx").stat().st_size < 0.5 * 1_800_000


def test_the_snippet_of_the_docs_runs_as_it_stands(root, tmp_path, monkeypatch, capsys):
    import re

    import soundfile

    monkeypatch.chdir(tmp_path)
    soundfile.write("my recording.wav", noise(24_000).numpy(), 16_000)
    card = export(light(), "mamba_light-streaming.onnx", streaming=True)
    exec(*re.findall(r"^```python\n(.*?)^```$", (root / "docs/deploy.md").read_text(), re.M | re.S), found := {})
    assert found["end"] == 24_000 // card["samples"] * card["samples"] and found["state"].any()


def test_the_scans_choice_is_as_before(tmp_path):
    from kwslib.scan import BACKENDS

    before = dict(BACKENDS)
    model = spotter("mamba_light", options={"n_layers": 1, "scan_backend": "reference"})
    with graph.plain(stream.StreamGraph(model)):
        assert model.model.blocks[0].mixer.scan_backend is None
    assert before == BACKENDS and model.model.blocks[0].mixer.scan_backend == "reference"
