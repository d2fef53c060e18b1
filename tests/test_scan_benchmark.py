"""The scan's benchmark: it measures what it says, its ratios are ratios, and absent peers are named."""

import copy

import pytest
import torch

from kwslib.models import mamba
from kwslib.models.registry import build
from kwslib.scan import BACKENDS, use_backend
from paper import benchmark_scan, benchmark_training, scan_figures, scan_report


@pytest.fixture(scope="module")
def result():
    return benchmark_scan.benchmark_scan(small=True)


def test_every_part_is_measured(result):
    assert {row["mode"] for row in result["scan"]} == {"forward", "both"} and len(result["scan"]) == 4
    for row in result["scan"]:
        assert all(ms["kwslib"] > 0 for ms in row["ms"].values())
        assert all(0 < share["fma"] < 1.5 and 0 < share["memory"] < 1.5 for share in row["share"].values())
    assert result["difference"]["kwslib"] < 1e-5
    (model,) = result["models"].values()
    assert model["clips_per_second"] > 0 and model["plain_clips_per_second"] > 0
    assert sum(model["profile"].values()) == pytest.approx(1) and model["profile"]["scan"] > 0
    assert all(len(result["length"][mode]["ms"]) == 3 for mode in ("forward", "both"))


def test_a_peer_that_does_not_import_is_named():
    def absent(t):
        raise ModuleNotFoundError("No module named 'absent'")

    works, missing = benchmark_scan.available(
        {"kwslib": benchmark_scan.ours, "absent": absent}, benchmark_scan.inputs(1, 2, 3)
    )
    assert list(works) == ["kwslib"] and "No module named 'absent'" in missing["absent"]


def test_what_is_too_large_is_not_run_and_says_so(monkeypatch):
    monkeypatch.setattr(benchmark_scan, "MOST_PEER", 2 * 5 * 4 * benchmark_scan.STATE - 1)
    shapes = [{"batch": 2, "length": 5, "channels": 4}]
    rows = benchmark_scan.benchmark_shapes(
        {"kwslib": benchmark_scan.ours, "peer": benchmark_scan.ours}, shapes, 0.001, None
    )
    assert all(
        "kwslib" in row["ms"]["1"] and "peer" not in row["ms"]["1"] and "not run" in row["missing"]["peer"]
        for row in rows
    )


def test_backward_reaches_every_argument():
    """A pass that left a gradient out would be too fast."""
    t = benchmark_scan.inputs(2, 5, 4, grad=True)
    run = benchmark_scan.ours(t)
    assert {id(leaf) for leaf in benchmark_scan.leaves_of(run, t)} == {id(v) for v in t.values()}


def test_the_plain_scan_is_used_inside_and_only_inside(monkeypatch):
    model, x, ran = build("mamba_mfcc_small").eval(), torch.randn(2, 20, 40), []
    for name, (fits, scan) in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, name, (fits, lambda *a, name=name, scan=scan: ran.append(name) or scan(*a)))
    with torch.no_grad():
        fast = model(x)
        with use_backend("reference"):
            plain = model(x)
        model(x)
    assert ran == 8 * ["cpu"] + 8 * ["reference"] + 8 * ["cpu"]
    torch.testing.assert_close(plain, fast, atol=1e-5, rtol=1e-4)


def test_both_ways_of_feeding_give_whole_batches():
    batches = benchmark_training.PlainBatches("mamba_mfcc_small", 2)
    inputs, targets, lengths = next(iter(batches.epoch(0)))
    assert len(batches) == 2 and inputs.shape == (64, 63, 40) and targets.shape == lengths.shape == (64,)


def test_headline_numbers_are_ratios_of_the_rows(result):
    made = copy.deepcopy(result)
    n = scan_report.most_threads(made)
    row = {
        "batch": 64,
        "length": 31,
        "channels": 128,
        "mode": "both",
        "mb": {"kwslib": 1.0},
        "missing": {},
        "ms": {k: {"kwslib": 2.0, "mamba_ssm": 100.0, "mambapy": 60.0} for k in {"1", n}},
        "share": {k: {"fma": 0.5, "memory": 0.25} for k in {"1", n}},
    }
    clip = row | {"batch": 1, "mode": "forward", "ms": {k: {"kwslib": 0.05, "mambapy": 0.5} for k in {"1", n}}}
    made["scan"] = [row, clip]
    numbers = scan_report.headline_numbers(made)
    assert numbers["training.fastest_peer.least"] == 30 and numbers["training.mamba_ssm.most"] == 50
    assert numbers["clip.fastest_peer.median"] == pytest.approx(10) and numbers["share.both.fma"] == 50
    df, caption = scan_report.scan_table(made)
    assert df["mambapy, parallel scan (×)"].tolist() == ["30.0", "10.0"] and "cores" in caption
    assert df["transformers, loop (×)"].tolist() == ["not run", "not run"]


def test_tables_and_figures_are_drawn(result):
    drawn = scan_figures.scan_figures(result)
    assert set(drawn) == {"scan_speed", "scan_shapes", "scan_length", "step_profile"}
    assert all(result["machine"]["cpu"] in caption for _, caption in drawn.values())
    df, _ = scan_report.scan_tables(result)["scan_models"]
    assert list(df["model"]) == ["Mamba-MFCC Small"]
    said = scan_report.scan_findings(result)
    assert "Mamba-MFCC Small" in said and "exponent" in said


@pytest.mark.parametrize(
    "value, digits, shown",
    [
        (1100.4, 2, "1,100"),
        (110.4, 2, "110"),
        (39.4, 2, "39"),
        (1.14, 2, "1.1"),
        (0.0459, 2, "0.046"),
        (99.96, 3, "100"),
        (7.5, 3, "7.50"),
        (0, 3, "0.00"),
    ],
)
def test_numbers_are_printed_without_exponents(value, digits, shown):
    assert scan_report.plain(value, digits) == shown


def test_weights_of_transformers_give_the_same_output():
    """An independent implementation of the block: transformers' mixer, whose parameters are named alike."""
    transformers = pytest.importorskip("transformers", reason="optional; `make peers` installs it")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    theirs = MambaMixer(transformers.MambaConfig(hidden_size=64, state_size=16, time_step_rank=4), 0).eval()
    ours = mamba.Mamba(64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 31, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
