"""Models by name and by option; what they cost, counted by hand."""

import pytest
import torch

from kwslib.io import KwsError
from kwslib.models import MODELS, build, cost, count_macs, count_parameters, features_of, macs_of, register
from kwslib.models.ensemble import members_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_unknown_model():
    for function in (build, features_of):
        with pytest.raises(KwsError, match="'mamba_xl' is unknown; it must be one of .*mamba_mel_small"):
            function("mamba_xl")


def test_the_registry_describes_every_model():
    cepstra = {"kwt_1", "matchboxnet", "ds_cnn", "mamba_mfcc_small", "mamba_mfcc_medium", "mamba_mfcc_large"}
    for name, model in MODELS.items():
        assert features_of(name) == model.features == ("mfcc" if name in cepstra else "mel"), name
        assert model.label and model.short, name
    assert len({m.label for m in MODELS.values()}) == len({m.short for m in MODELS.values()}) == len(MODELS)


def test_options_reach_the_architecture():
    model = build("mamba_light", 7, d_model=24, n_layers=2, d_state=4, d_conv=3, expand=1, scan_backend="reference")
    mixer = model.blocks[1].mixer
    assert len(model.blocks) == 2 and mixer.A_log.shape == (24, 4) and mixer.conv1d.weight.shape == (24, 1, 3)
    assert mixer.scan_backend == "reference" and model(torch.randn(2, 30, 64)).shape == (2, 7)
    assert (
        len(build("mamba_mel_large", n_layers=1).blocks) == 1
        and build("mamba_mel_large", n_layers=1).blocks[0].mixer.d_inner == 384
    )
    assert build("mamba_mfcc_small", n_features=13)(torch.randn(1, 9, 13)).shape == (1, 35)
    assert count_parameters(build("bc_resnet_3", 12, tau=1)) == count_parameters(build("bc_resnet_1", 12))


def test_an_ensemble_gives_the_mean_of_its_members():
    pair, x = build("mamba_light", 3, members=2, n_layers=1).eval(), torch.randn(2, 40, 64)
    first, second = members_of(pair)
    assert not torch.allclose(first(x), second(x), atol=1e-3)  # each has weights of its own
    assert torch.allclose(pair(x), (first(x) + second(x)) / 2)
    one = build("mamba_light", 3, members=1, n_layers=1)
    assert members_of(one) == [one] and count_parameters(pair) == 2 * count_parameters(one)
    assert count_macs(pair, x[:1]) == 2 * count_macs(one, x[:1])
    for members in (0, 17, 1.5, True, "2"):
        with pytest.raises(KwsError, match="members=.*give a whole number from 1 to 16"):
            build("mamba_light", 3, members=members)


def test_mistakes_in_options_are_told_in_a_sentence():
    with pytest.raises(
        KwsError, match="'mamba_light' has no option 'depth'; its options are d_model, n_layers, .*scan_b"
    ):
        build("mamba_light", depth=3)
    with pytest.raises(KwsError, match="'keyword_cnn' has no option 'd_model'; its options are members"):
        build("keyword_cnn", d_model=3)
    with pytest.raises(KwsError, match="'kwt_1' cannot be built with d_model='wide'"):
        build("kwt_1", d_model="wide")
    with pytest.raises(KwsError, match="scan_backend 'gpu' is not known; choose one of cpu, triton"):
        build("mamba_light", scan_backend="gpu")


def test_a_model_registers_itself(monkeypatch):
    monkeypatch.setattr("kwslib.models.registry.MODELS", MODELS := {})

    @register("big", features="mfcc", label="Ours, big", width=9)
    @register("small", features="mel", label="Ours, small", short="S")
    class Ours(torch.nn.Linear):
        def __init__(self, n_classes=35, width=3, bias=True):
            super().__init__(width, n_classes, bias)

    assert build("small", 4).weight.shape == (4, 3) and build("big", 4, bias=False).weight.shape == (4, 9)
    assert MODELS["big"].options == {"width": 9, "bias": True} and features_of("big") == "mfcc"
    assert MODELS["big"].short == "Ours, big" and MODELS["small"].short == "S"
    with pytest.raises(KwsError, match="'small' is registered twice"):
        register("small", features="mel", label="again")(Ours)


def test_multiply_accumulates_by_hand():
    T, d, inner, state = 63, 64, 128, 16
    mixer = d * 2 * inner + inner * (4 + 2 * state) + 4 * inner + inner * d + 4 * inner + 4 * inner * state
    mamba = T * 40 * d + 8 * T * mixer + d * d // 2 + d // 2 * 35
    assert count_macs(build("mamba_mfcc_small"), torch.zeros(1, T, 40)) == mamba
    N = T + 1  # the class token
    kwt = T * 40 * d + 12 * (N * d * 3 * d + 2 * N * N * d + N * d * d + 2 * N * d * 4 * d) + d * 35
    assert count_macs(build("kwt_1"), torch.zeros(1, T, 40)) == kwt


def test_a_layer_that_cannot_be_counted_is_named(monkeypatch):
    class Recurrent(torch.nn.Module):
        def __init__(self, n_classes=35):
            super().__init__()
            self.gru, self.classify = torch.nn.GRU(40, 8, batch_first=True), torch.nn.Linear(8, n_classes)

        def forward(self, inputs, lengths=None):
            return self.classify(self.gru(inputs)[0][:, -1])

    monkeypatch.setattr("kwslib.models.cost._COUNTERS", dict(cost._COUNTERS))
    with pytest.raises(KwsError, match="layer GRU has parameters, but no count"):
        count_macs(Recurrent(), torch.zeros(1, 9, 40))
    macs_of(torch.nn.GRU)(
        lambda gru, x, y: x.shape[1] * sum(w.numel() for k, w in gru.named_parameters() if "weight" in k)
    )
    assert count_macs(Recurrent(), torch.zeros(1, 9, 40)) == 9 * 24 * (40 + 8) + 8 * 35
    assert not any(module._forward_hooks for module in Recurrent().modules())
    with pytest.raises(KwsError, match="layer ConvTranspose1d"):
        count_macs(torch.nn.Sequential(torch.nn.ConvTranspose1d(1, 1, 2)), torch.zeros(1, 1, 4))


def test_counting_leaves_the_model_as_it_was():
    model = build("mamba_mfcc_small").train()
    first = count_macs(model, torch.zeros(1, 20, 40))
    assert model.training and count_macs(model, torch.zeros(1, 20, 40)) == first
