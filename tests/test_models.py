"""Models: the published sizes; padding and company change nothing; the published API."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_published_models import PARAMETERS as PUBLISHED
from torch.utils.data import DataLoader

import kwslib
from kwslib.checkpoint import frontend_of
from kwslib.models import MODELS, build, count_macs, count_parameters
from kwslib.models.bc_resnet import SubSpectralNorm
from kwslib.models.matchboxnet import centred
from kwslib.training.config import RECIPES, load_config

PARAMETERS = {  # at 35 and 36 classes
    **PUBLISHED,
    "kwt_1": (608_803, 608_868),
    "bc_resnet_1": (9_991, 10_024),
    "bc_resnet_3": (56_399, 56_496),
    "bc_resnet_8": (326_979, 327_236),
    "matchboxnet": (93_411, 93_540),
    "ds_cnn": (420_107, 420_384),
    "mamba_light": (421_427, 421_476),
}
CLAIMED = {"mamba_mel_small": 403_779, "mamba_mel_medium": 1_339_651, "mamba_mel_large": 3_167_939}
SEQUENCE = {  # with the options that make padding and company harmless: as published, retnet's norm sees the padding
    **dict.fromkeys("mamba_mel_small mamba_mfcc_small keyword_cnn kwt_1 bc_resnet_1 matchboxnet".split(), {}),
    **dict.fromkeys(("ds_cnn", "mamba_light"), {}),
    "retnet": {"norm": "frame"},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def shaken(name, n_classes=35, **options):
    """A model whose biases and running statistics are none of them zero, so padding could matter."""
    torch.manual_seed(0)
    model = build(name, n_classes, **options).eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("running_mean") or key.endswith("bias") and "dt_proj" not in key:
                tensor.normal_(0, 0.3)
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
    return model


def width_of(name):
    """Bands or cepstra that a model reads, as its recipe says."""
    return frontend_of(load_config(RECIPES / f"{name}.yaml")).n_features


@pytest.fixture(scope="module", params=SEQUENCE)
def sequence_model(request):
    return shaken(request.param, **SEQUENCE[request.param]), width_of(request.param)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert tuple(count_parameters(build(name, n)) for n in (35, 36)) == PARAMETERS[name]


def test_every_model_is_counted():
    assert set(MODELS) == set(PARAMETERS)


def test_kwt_1_has_its_published_size():
    assert count_parameters(build("kwt_1", 12)) == 607_308  # as its training log prints it


@pytest.mark.parametrize("name, published", [("bc_resnet_1", 9.2), ("bc_resnet_3", 54.2), ("bc_resnet_8", 321.1)])
def test_bc_resnet_has_its_published_sizes(name, published):
    """In thousands; the paper prints 321 for the last."""
    assert round(count_parameters(build(name, 12)) / 1e3, 1) == published


def test_matchboxnet_has_its_published_size():
    assert round(count_parameters(build("matchboxnet", 35)) / 1e3) == 93


def test_ds_cnn_has_its_published_size():
    """497.6 KB: a byte a weight, batch norm folded into a bias, and the two largest neighbouring maps."""
    model, maps = build("ds_cnn", 12).eval(), []
    for layer in [model.stem, *model.depthwise, *model.pointwise]:
        layer.register_forward_hook(lambda module, args, out: maps.append(out[0].numel()))
    model(torch.zeros(1, 49, 10), None)
    norms = sum(m.bias.numel() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norms == 11 * 276 and maps[:2] == [276 * 25 * 10, 276 * 13 * 5]
    assert (count_parameters(model) - norms + maps[0] + maps[1]) / 1e3 == pytest.approx(497.6, abs=0.05)


def test_mamba_light_is_light():
    assert count_parameters(build("mamba_light")) <= 450_000
    assert count_macs(build("mamba_light"), torch.zeros(1, 101, 64)) <= 25e6


def test_subspectral_norm_normalises_each_band_of_frequencies():
    norm, x = SubSpectralNorm(3, bands=5), torch.randn(4, 3, 20, 9)
    x[:, :, 4:8] += 7  # one band is louder
    y = norm(x).unflatten(2, (5, 4))
    torch.testing.assert_close(y.mean((0, 3, 4)), torch.zeros(3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 3, 4), correction=0), torch.ones(3, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CLAIMED)
def test_the_paper_s_counts_leave_out_the_scan(name):
    hidden = ("x_proj", "dt_proj", "A_log")
    seen = [p.numel() for key, p in build(name).named_parameters() if not any(part in key for part in hidden)]
    assert sum(seen) == CLAIMED[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_logits_of_every_model(name):
    inputs = torch.randn(2, 63, width_of(name))
    with torch.no_grad():
        logits = build(name, 7).eval()(inputs, torch.tensor([63, 30]))
    assert logits.shape == (2, 7) and logits.dtype == torch.float32 and logits.isfinite().all()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=3), more=st.integers(0, 9), seed=st.integers(0, 999))
def test_padding_and_company_change_nothing(sequence_model, lengths, more, seed):
    model, width = sequence_model
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(n, width, generator=generator) for n in lengths]
    batch = torch.randn(len(clips), max(lengths) + more, width, generator=generator) * 10  # padding is anything
    for row, clip in zip(batch, clips):
        row[: len(clip)] = clip
    with torch.no_grad():
        together = model(batch, torch.tensor(lengths))
        alone = torch.cat([model(clip[None], None) for clip in clips])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-3)


def test_the_last_frame_counts(sequence_model):
    model, width = (
        copy.deepcopy(sequence_model[0]).double(),
        sequence_model[1],
    )  # a fresh model says little of one frame
    inputs = torch.randn(1, 20, width, dtype=torch.float64)
    other = inputs.clone()
    other[:, 19] += 5
    with torch.no_grad():
        a, b = model(inputs, torch.tensor([20])), model(other, torch.tensor([20]))
        short = model(inputs, torch.tensor([19]))
    assert (a - b).abs().max() > 1e-12 and (a - short).abs().max() > 1e-12


def test_kwt_longer_than_its_positions():
    model = shaken("kwt_1")
    with torch.no_grad():
        assert model(torch.randn(1, 150, 40)).isfinite().all()


def test_ds_cnn_is_padded_as_tensorflow_pads():
    """At stride 2 an even size is padded at its end only: the last window of 10 cepstra is two of them and a zero."""
    model, seen = build("ds_cnn").eval(), []
    model.depthwise[0][0].register_forward_hook(lambda layer, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        model(torch.randn(1, 49, 10))
        (padded, out), layer = seen[0], model.depthwise[0][0]
        before = padded[:, :, 1:-1, :-1]
        assert padded.shape[2:] == (27, 11) and before.shape[2:] == (25, 10)
        last = (before[0, :, 23:25, 8:] * layer.weight[:, 0, :2, :2]).sum((1, 2)) + layer.bias
    torch.testing.assert_close(out[0, :, 12, 4], last)


def test_matchboxnet_lays_a_clip_in_the_middle_of_128_frames():
    clip, long = torch.arange(1.0, 102).view(1, 101, 1), torch.arange(200.0).view(1, 200, 1)
    assert torch.equal(centred(clip, None, 128)[0, :, 0], torch.cat([torch.zeros(13), clip[0, :, 0], torch.zeros(14)]))
    both = centred(torch.cat([clip, clip]), torch.tensor([101, 3]), 128)[:, :, 0]
    assert both[0].sum() == 101 * 51 and both[1].nonzero()[:, 0].tolist() == [62, 63, 64]
    assert centred(long, None, 128)[0, :, 0].tolist() == list(range(36, 164))


def test_kwt_starts_from_a_cut_normal():
    model = build("kwt_1")
    weights = torch.cat([p.flatten() for k, p in model.named_parameters() if "norm" not in k and "bias" not in k])
    assert weights.abs().max() <= 0.04 and weights.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)
    assert not any(p.any() for k, p in model.named_parameters() if k.endswith("bias"))


def test_mobilenet_takes_an_image_as_collate_image_gives_it():
    model, inputs = shaken("mobilenet_v2_035"), torch.randn(2, 63, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), model(inputs.transpose(1, 2)[:, None], torch.tensor([63, 63])))


def test_the_published_api():
    """The usage that the paper's README shows, with kwslib for its package."""
    data = [(0.1 * torch.randn(16000), target) for target in (3, 1, 2, 0)]
    from kwslib import (
        Augment,
        RetNetKWS,
        SpeechCommands,
        WaveToSpec,
        collate_image,
        collate_seq,
        mamba_mel_medium,
        mobilenet_v2_kws,
    )

    model = mamba_mel_medium(n_classes=35)
    frontend = WaveToSpec(n_mels=128, n_fft=2048, hop_length=256)
    dataset = SpeechCommands(data, None, frontend)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, collate_fn=collate_seq)
    model.eval()
    with torch.no_grad():
        for inputs, targets, lengths in loader:
            assert model(inputs, lengths).shape == (len(targets), 35)
        augmented = SpeechCommands(data, Augment(shift_ms=100), frontend)
        ((images, _, lengths),) = DataLoader(augmented, batch_size=4, collate_fn=collate_image)
        assert mobilenet_v2_kws(n_classes=35).eval()(images, lengths).shape == (4, 35)
        assert RetNetKWS(n_classes=36).eval()(inputs, None).shape == (2, 36)


@pytest.mark.parametrize("name", kwslib.__all__)
def test_every_name_that_is_offered_is_there(name):
    assert callable(getattr(kwslib, name)) or name == "MODELS"
