"""The rows of the paper are the networks that its notebooks trained: sizes, first weights, formulas, check values.

The check values of retention were computed with yet-another-retnet 0.5.1;
`paper/benchmarks/parity.py` compares the codes."""

import math

import pytest
import torch
import torch.nn.functional as F

from kwslib.io import read_json
from kwslib.models import build, count_macs, count_parameters
from kwslib.models.mamba import MambaBlock
from kwslib.models.retnet import MultiScaleRetention, RetNetBlock, decays
from paper.benchmarks import parity

PARAMETERS = {  # at 35 and 36 classes; the notebooks print the first three at 35, and retnet at 36
    "mamba_mel_small": (462_147, 462_180),
    "mamba_mel_medium": (1_506_051, 1_506_116),
    "mamba_mel_large": (3_504_323, 3_504_420),
    "mamba_mfcc_small": (268_259, 268_292),
    "mamba_mfcc_medium": (1_183_651, 1_183_716),
    "mamba_mfcc_large": (3_053_411, 3_053_508),
    "retnet": (1_626_627, 1_626_692),
    "mobilenet_v2_075": (1_399_827, 1_401_108),
    "mobilenet_v2_035": (440_675, 441_956),
    "keyword_cnn": (97_635, 97_764),
}
AS_RUN = "mamba_mel_small", "mamba_mel_medium", "mamba_mel_large", "retnet", "mobilenet_v2_075"
PARAMETERS |= {f"{name}_as_run": PARAMETERS[name] for name in AS_RUN}
SIZES = {"small": (64, 8), "medium": (128, 10), "large": (192, 12)}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert tuple(count_parameters(build(name, n)) for n in (35, 36)) == PARAMETERS[name]


@pytest.mark.parametrize("name", AS_RUN)
def test_rows_as_run_are_the_same_network(name):
    models = [build(name), build(f"{name}_as_run")]
    assert str(models[0]) == str(models[1])
    assert [k for k, _ in models[0].named_parameters()] == [k for k, _ in models[1].named_parameters()]


@pytest.mark.parametrize("kind", ["mel", "mfcc"])
@pytest.mark.parametrize("size", SIZES)
def test_mamba_starts_as_published(kind, size):
    d_model, n_layers = SIZES[size]
    model, rank = build(f"mamba_{kind}_{size}"), math.ceil(d_model / 16)
    assert [b.dropout.p for b in model.blocks] == pytest.approx([max(0.02, 0.05 - 0.005 * i) for i in range(n_layers)])
    for mixer in (block.mixer for block in model.blocks):
        assert (mixer.d_inner, mixer.dt_rank, mixer.d_conv) == (2 * d_model, rank, 4)
        torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).repeat(2 * d_model, 1))
        assert (mixer.D == 1).all()
        delta = F.softplus(mixer.dt_proj.bias)
        assert 0.00099 < delta.min() and delta.max() < 0.101
        weight = mixer.dt_proj.weight.abs()
        assert 0.9 * rank**-0.5 < weight.max() <= rank**-0.5
        assert 0.49 < mixer.conv1d.weight.abs().max() <= 0.5 and mixer.in_proj.weight.abs().max() <= d_model**-0.5
    first = torch.cat([F.softplus(block.mixer.dt_proj.bias) for block in model.blocks]).log10()  # uniform in -3 to -1
    assert first.mean().item() == pytest.approx(-2, abs=0.1)
    assert first.std().item() == pytest.approx(2 / 12**0.5, abs=0.05)


def test_mamba_block_is_the_plain_recurrence():
    torch.manual_seed(0)
    block, x = MambaBlock(12, 0.05).double().eval(), torch.randn(2, 17, 12, dtype=torch.float64)
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # so that norms and D are not 1; A is float32 in the scan
        torch.testing.assert_close(block(x), plain_mamba_block(block, x), atol=1e-7, rtol=1e-6)


def plain_mamba_block(block, x):
    """x + mixer(LayerNorm(x)), one frame, one channel of the convolution's past at a time: slow, and the formulas."""
    m, w = block.mixer, dict(block.mixer.named_parameters())
    centre = x - x.mean(-1, keepdim=True)
    u = centre / (centre.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight + block.norm.bias
    h = torch.zeros(len(x), m.d_inner, m.d_state, dtype=x.dtype)
    past = torch.zeros(len(x), 4, m.d_inner, dtype=x.dtype)  # the last four inputs of the convolution
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        projected = u[:, t] @ w["in_proj.weight"].T
        inner, z = projected[:, : m.d_inner], projected[:, m.d_inner :]
        past = torch.cat([past[:, 1:], inner[:, None]], 1)
        inner = (past * w["conv1d.weight"][:, 0].T).sum(1) + w["conv1d.bias"]
        inner = inner * torch.sigmoid(inner)
        mixed = inner @ w["x_proj.weight"].T
        dt, B, C = mixed[:, : m.dt_rank], mixed[:, m.dt_rank : -m.d_state], mixed[:, -m.d_state :]
        delta = torch.log1p(torch.exp(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"]))[:, :, None]
        h = torch.exp(delta * -torch.exp(w["A_log"])) * h + delta * B[:, None] * inner[:, :, None]
        out = (h * C[:, None]).sum(-1) + w["D"] * inner
        y[:, t] = (out * z * torch.sigmoid(z)) @ w["out_proj.weight"].T
    return x + y


def wave(shape, start, scale=0.5):
    """scale · sin(0.7 i + start), row by row."""
    return scale * torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


def filled_retention():
    module = MultiScaleRetention(16, 2).double()
    with torch.no_grad():
        for c, layer in enumerate((module.q_proj, module.k_proj, module.v_proj, module.g_proj, module.out_proj)):
            layer.weight.copy_(wave((16, 16), c))
            layer.bias.copy_(wave((16,), c + 0.5))
    return module


def check(y, first, last, total):
    torch.testing.assert_close(y[0, 0, :4], torch.tensor(first, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(y[0, 4, :4], torch.tensor(last, dtype=torch.float64), atol=1e-5, rtol=0)
    assert y.sum().item() == pytest.approx(total, abs=1e-5)


def test_retention_gives_the_check_values():
    t = torch.arange(80, dtype=torch.float64).view(1, 5, 16)
    inputs = (0.3 * t).cos(), (0.2 * t + 1).cos(), (0.5 * t).sin()
    first, last = (-0.489546, 0.110254, 0.037953, -0.304903), (-0.094622, 0.228802, -0.308840, -0.564252)
    with torch.no_grad():
        check(filled_retention()(*inputs), first, last, 5.821860)


def test_retnet_block_gives_the_check_values():
    block = RetNetBlock(16, 2, 0.0, groups=2).double()
    block.retention = filled_retention()
    layers = block.q, block.k, block.v, block.out, block.ffn[0], block.ffn[3]
    with torch.no_grad():
        for c, layer in enumerate(layers, 10):
            layer.weight.copy_(wave(layer.weight.shape, c))
            if layer.bias is not None:
                layer.bias.copy_(wave(layer.bias.shape, c + 0.5))
        j = torch.arange(16, dtype=torch.float64)
        for g, norm in enumerate((block.norm1, block.norm2)):
            norm.weight.copy_(1 + 0.1 * torch.sin(j + g))
            norm.bias.copy_(0.1 * torch.cos(j + g))
        y = block((0.37 * torch.arange(80, dtype=torch.float64)).sin().view(1, 5, 16))
    check(y, (0.668022, 1.402156, 1.824452, 2.084403), (-0.389194, -0.144685, 0.561547, 1.203547), 1.235236)


def test_decays():
    single = [0.96875, 0.978970, 0.985848, 0.990476, 0.993591, 0.995687, 0.997098, 0.998047]
    half = [0.96875, 0.97900, 0.98584, 0.99023, 0.99365, 0.99561, 0.99707, 0.99805]  # those of mixed precision
    assert decays(8, torch.zeros(1)).tolist() == pytest.approx(single, abs=5e-7)
    assert decays(8, torch.zeros(1).half()).tolist() == pytest.approx(half, abs=5e-6)


def test_retnet_is_built_and_starts_as_published():
    model = build("retnet", 36)
    assert [count_parameters(b) for b in model.blocks] == [214_656] * 6
    assert [b.dropout.p for b in model.blocks] == pytest.approx([max(0.02, 0.03 - 0.003 * i) for i in range(6)])
    for block in model.blocks:
        retention = block.retention
        assert count_parameters(retention) == 82_560 and retention.n_heads == 8
        assert (retention.norm.eps, retention.norm.affine, retention.norm.num_groups) == (1e-6, False, 8)
        assert (block.norm1.eps, block.norm1.affine, block.norm1.num_groups) == (1e-5, True, 8)
        assert [layer.p for layer in block.ffn if isinstance(layer, torch.nn.Dropout)] == [block.dropout.p] * 2
        for layer in retention.children():
            if isinstance(layer, torch.nn.Linear):
                assert layer.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)  # Xavier
                assert layer.weight.abs().max() > 3 * layer.weight.std() and not layer.bias.any()  # normal, not uniform
        for layer in (block.q, block.k, block.v):
            assert layer.bias is None and layer.weight.abs().max() <= 128**-0.5
        with torch.no_grad():
            q, k, _ = block.inputs(torch.randn(2, 9, 128))
        for vectors in (q, k):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 9))


def test_multiply_accumulates_of_retention():
    T, d = 30, 128
    block = 9 * d * d + 2 * d * 2 * d  # q, k, v twice, gate, out twice; the FFN
    counts = [count_macs(build("retnet", n_layers=n), torch.zeros(1, 2 * T, 128)) for n in (1, 2)]
    assert counts[1] - counts[0] == T * block + 2 * T * T * d


@pytest.mark.parametrize("width", ["075", "035"])
def test_mobilenet_starts_as_published(width):
    """The two layers that the paper put in start as PyTorch starts them; torchvision's own are normal, without bias."""
    net = build(f"mobilenet_v2_{width}", 36).net
    stem, (dropout, classify) = net.features[0][0], net.classifier
    assert dropout.p == 0.2 and (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (2, 2), (1, 1))
    assert 0.3 < stem.weight.abs().max() <= 1 / 3 and stem.bias is None
    assert classify.in_features == 1280 and classify.bias.any()
    assert 0.99 * 1280**-0.5 < classify.weight.abs().max() <= 1280**-0.5


def test_parity_finds_equal_and_unequal_models():
    ours, theirs, inputs = parity.mobilenet()
    inputs = (inputs[0][:2, :, :32, :32],)
    assert max(parity.compare(ours, theirs, inputs).values()) < 1e-12
    theirs.features[1].conv[0][1].eps = 1e-3
    assert min(parity.compare(ours, theirs, inputs).values()) > 1e-9


def test_parity_records_what_is_not_installed(monkeypatch):
    def absent():
        raise ModuleNotFoundError("No module named 'mamba_ssm'")

    monkeypatch.setattr(parity, "CASES", {"mamba block": ("mamba-ssm", absent)})
    monkeypatch.setattr(parity, "FRONT_ENDS", ())
    found = parity.parity()
    assert found["largest differences"] == {"mamba block": "not installed"} and found["versions"]["mamba-ssm"] is None


def test_front_ends_equal_those_of_torchaudio(monkeypatch):
    """In dB, or their cepstra; natural logarithms are others."""
    for recipe in parity.FRONT_ENDS:
        assert parity.front_end(recipe)["output"] < 1e-3, recipe
    ours = parity.frontend_of
    monkeypatch.setattr(parity, "frontend_of", lambda config: ours(config.model_copy(update={"scale": "log"})))
    assert parity.front_end("mamba_mel_small")["output"] > 1


def test_the_recorded_parity_is_of_every_package(root):
    found = read_json(root / "results/parity.json", "parity")
    assert all(found["versions"].values()) and found["versions"]["yet-another-retnet"] == "0.5.1"
    assert found["largest differences"].keys() == parity.CASES.keys() | {f"front-end of {r}" for r in parity.FRONT_ENDS}
    for name, differences in found["largest differences"].items():
        bound = 1e-4 if name.startswith("front-end") else 1e-6  # float32; mamba_ssm's scan is in float32, too
        assert max(differences.values()) < bound, name


def test_retention_equals_the_package_that_the_paper_used():
    pytest.importorskip("yet_another_retnet")
    for case in (parity.retention, parity.retnet_block):
        assert max(parity.compare(*case()).values()) < 1e-12
