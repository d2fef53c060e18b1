"""transformers' Mamba models on kwslib's scan, beside the same models untouched."""

import copy
import importlib
import pickle
import sys
import types

import pytest
import torch

from kwslib.io import KwsError
from kwslib.models.mamba import Mamba
from kwslib.scan import patch_transformers, use_backend
from paper.benchmarks import lm as benchmark_lm

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed: kwslib[transformers]")


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0,
         "eos_token_id": None}  # fmt: skip
SMALL = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "attn_layer_period": 2,
         "attn_layer_offset": 1, "use_mamba_kernels": False}  # fmt: skip
MODELS = {
    "Mamba": {"state_size": 8},
    "FalconMamba": {"state_size": 8},
    "Jamba": {"mamba_d_state": 8, "num_experts": 2, "num_experts_per_tok": 1, **SMALL},
    "Zamba": {"mamba_d_state": 8, "n_mamba_heads": 2, "num_hidden_layers": 9, **SMALL},
}


def model_of(transformers, name, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | MODELS[name] | more)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def tokens(batch=2, length=9):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(0))


def trained(model, x):
    """Logits, loss and every gradient of a training step, by name."""
    model.train().zero_grad()
    out = model(x, labels=x)
    out.loss.backward()
    return {"logits": out.logits.detach(), "loss": out.loss.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_close(got, wanted, tolerance):
    assert got.keys() == wanted.keys()
    for name, b in wanted.items():
        assert got[name].dtype == b.dtype, name
        assert (got[name] - b).abs().max() <= tolerance * max(b.abs().max(), 1e-4), name


def counting(monkeypatch):
    """How often kwslib's scan is called by the patch."""
    module, calls = importlib.import_module("kwslib.scan.patch"), []
    scan = module.selective_scan
    monkeypatch.setattr(module, "selective_scan", lambda *given: calls.append(1) or scan(*given))
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_logits_every_gradient_and_generated_text_are_those_of_the_model_untouched(transformers, name, monkeypatch):
    calls = counting(monkeypatch)
    model, x = model_of(transformers, name), tokens()
    mixers = sum(type(m).__name__.endswith("MambaMixer") for m in model.modules())

    def generated():
        return model.eval().generate(x, max_new_tokens=20, do_sample=False)

    wanted, text = trained(model, x), generated()
    assert not calls
    with patch_transformers():
        got = trained(model, x)
        assert len(calls) == mixers * (2 if name == "Zamba" else 1) > 0  # Zamba has two heads
        assert torch.equal(generated(), text)
    assert_close(got, wanted, 2e-4 if name == "Jamba" else 2e-5)
    assert len(wanted) == 2 + sum(1 for p in model.parameters())
    calls.clear()
    assert torch.equal(trained(model, x)["logits"], wanted["logits"]) and not calls


def test_padding_a_carried_cache_and_other_dtypes(transformers):
    x, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)):
        model, found = model_of(transformers, "Mamba").to(dtype).eval(), []

        @torch.no_grad()
        def run(model=model):
            out = model(x, attention_mask=mask, use_cache=True)
            cache = getattr(out, "cache_params", None) or out.cache  # its name from 5.24 on
            name = "cache_params" if hasattr(out, "cache_params") else "cache"
            more = model(x[:, :1], use_cache=True, **{name: cache})
            return {"first": out.logits, "next": more.logits}

        found = [run()]
        with patch_transformers():
            found.append(run())
        assert_close(found[1], found[0], tolerance)


def test_three_steps_of_training_and_what_a_user_does_with_a_model(transformers, tmp_path):
    losses = []
    for patched in (False, True):
        model, x = model_of(transformers, "Mamba"), tokens()
        patch = patch_transformers() if patched else None
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            loss = model(x, labels=x).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5) and losses[2] < losses[0]
    wanted = model(x).logits
    model.save_pretrained(tmp_path)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), type(model).from_pretrained(tmp_path)):
        assert torch.equal(other.train()(x).logits, wanted)
    model.gradient_checkpointing_enable()
    model(x, labels=x).loss.backward()
    patch.undo()
    patch.undo()  # twice is once


def test_patches_nest_and_a_patched_model_compiles_and_traces(transformers):
    modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
    before = modeling.mamba_selective_scan
    model, x = model_of(transformers, "Mamba").eval(), tokens()
    wanted = model(x, use_cache=False).logits
    with patch_transformers(), patch_transformers():
        compiled = torch.compile(lambda x: model(x, use_cache=False).logits, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted)
        with use_backend("reference"):
            torch.testing.assert_close(model(x, use_cache=False).logits, wanted)
    with pytest.raises(RuntimeError), patch_transformers():
        raise RuntimeError
    assert modeling.mamba_selective_scan is before


def test_packed_sequences_are_refused(transformers):
    model, x = model_of(transformers, "Mamba"), tokens()
    with patch_transformers(), pytest.raises(ValueError, match="packed sequences"):
        model.backbone.layers[0].mixer(torch.zeros(1, 9, 32), seq_idx=torch.zeros_like(x))


def test_a_cuda_package_in_the_place_of_a_function_is_not_called_on_a_cpu(transformers, monkeypatch):
    modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
    for name in ("mamba_inner_fn", "causal_conv1d_fn", "causal_conv1d_update", "mamba_selective_state_update"):

        def kernel(*_, **__):
            raise AssertionError("a CUDA kernel was called")

        kernel.__wrapped__ = getattr(modeling, name).__wrapped__
        monkeypatch.setattr(modeling, name, kernel)
    model, x = model_of(transformers, "Mamba"), tokens()
    with patch_transformers():
        model(x, labels=x).loss.backward()
        model.eval().generate(x, max_new_tokens=3)
        with pytest.raises(AssertionError, match="kernel was called"):
            modeling.causal_conv1d_fn(torch.zeros(1, 2, 3, device="meta"), None)  # elsewhere, all is as before


def test_other_versions_are_refused_in_a_sentence(transformers, monkeypatch):
    modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
    scan = modeling.mamba_selective_scan
    for other in (lambda u, delta, A: None, None):  # other arguments; no such function, as before 5.15
        with monkeypatch.context() as m:
            m.delattr(modeling, "mamba_selective_scan")
            if other:
                m.setattr(modeling, "mamba_selective_scan", other, raising=False)
            with pytest.raises(ValueError, match=r"transformers .* is built otherwise .* 5\.15"):
                patch_transformers()
    assert modeling.mamba_selective_scan is scan


def test_without_transformers(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    with pytest.raises(ImportError, match="needs transformers 5.15 or newer"):
        patch_transformers()


def mambapy_block(**options):
    mamba = pytest.importorskip("mambapy.mamba", reason="mambapy is not installed")
    return mamba.MambaBlock(mamba.MambaConfig(d_model=12, n_layers=1, d_state=5, d_conv=3, expand_factor=3, **options))


def transformers_mixer(**options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: kwslib[transformers]")
    return model_of(transformers, "Mamba", use_conv_bias=True, **options).backbone.layers[0].mixer


def mamba_ssm_module(monkeypatch):
    """mamba_ssm's own module, with its plain scan where its CUDA extension would be."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    simple = pytest.importorskip("mamba_ssm.modules.mamba_simple", reason="mamba_ssm is not installed")
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    monkeypatch.setattr(simple, "selective_scan_fn", scan)
    monkeypatch.setattr(simple, "causal_conv1d_fn", None)
    return simple.Mamba(12, d_state=5, use_fast_path=False)


@pytest.mark.parametrize("package", ["mambapy", "transformers", "mamba_ssm"])
def test_weights_of_other_packages_move_into_a_mixer_of_ours(package, monkeypatch):
    make = {"mambapy": mambapy_block, "transformers": transformers_mixer}.get(package)
    theirs = make() if make else mamba_ssm_module(monkeypatch)
    ours = Mamba.from_module(theirs)
    x = torch.randn(2, 9, theirs.in_proj.in_features, requires_grad=True)
    found = []
    for mixer in (ours, theirs):
        y = mixer(x)
        y.square().sum().backward()
        found.append({"y": y.detach(), "x": x.grad} | {k: p.grad for k, p in mixer.named_parameters()})
        x.grad = None
    assert_close(*found, 1e-5)
    theirs.load_state_dict(ours.state_dict())  # and back
    assert ours.A_log.no_decay and ours.A_log is not theirs.A_log
    assert {p.dtype for p in Mamba.from_module(theirs.double()).parameters()} == {torch.float64}


def test_weights_that_mean_something_else_are_refused(transformers):
    for module, match in (
        (torch.nn.Linear(3, 3), "not a plain Mamba mixer: it has no layers"),
        (transformers_mixer(use_bias=True), r"MambaMixer.in_proj.bias is \(128,\) where .* has absent"),
        (transformers_mixer(hidden_act="gelu"), "not a plain Mamba mixer: it has act"),
        (transformers_mixer(intermediate_size=40), "its weights do not fit"),
        (model_of(transformers, "FalconMamba").backbone.layers[0].mixer, "b_layernorm"),
        (mambapy_block(inner_layernorms=True), "B_layernorm"),
        (mambapy_block(conv_bias=False), r"conv1d.bias is absent where"),
    ):
        with pytest.raises(KwsError, match=match):
            Mamba.from_module(module)


def test_the_benchmark_of_whole_models_times_and_compares_each_variant(transformers, monkeypatch, tmp_path):
    calls = counting(monkeypatch)
    made = benchmark_lm.benchmark_lm(tmp_path / "lm.json", small=True, rounds=2)
    entry = made["models"]["tiny"]
    assert len(calls) == 2 * (1 + 3 + 3)  # layers; the comparison, and two tasks in a warm-up and two rounds
    assert 0 < entry["difference"]["kwslib"] < 1e-5 and (tmp_path / "lm.json").is_file()
    for task in ("prompt", "training"):
        for ms in entry[task]["ms"].values():
            assert 0 < ms["q1"] <= ms["median"] <= ms["q3"]
    with pytest.raises(KwsError, match="at least 1"):
        benchmark_lm.benchmark_lm(rounds=0)
