"""The scan's benchmark: it measures what it says, its ratios are ratios, and absent peers are named."""

import contextlib
import copy

import pytest
import torch

from kwslib.models import mamba
from kwslib.models.registry import build
from kwslib.scan import BACKENDS, use_backend
from paper.benchmarks import scan as benchmark_scan
from paper.benchmarks import scan_peers
from paper.benchmarks import training as benchmark_training
from paper.reports import scan as scan_report
from paper.reports import scan_figures
from paper.writing import significant


@pytest.fixture(scope="module")
def result():
    return benchmark_scan.benchmark_scan(small=True)


def test_every_part_is_measured(result):
    assert {row["mode"] for row in result["scan"]} == {"forward", "both"} and len(result["scan"]) == 4
    for row in result["scan"]:
        assert all(ms["kwslib"] > 0 for ms in row["ms"].values()) and all(n >= 5 for n in row["calls"].values())
        for n, sides in row["quartiles"].items():
            assert all(low <= row["ms"][n][side] <= high for side, (low, high) in sides.items())
        assert all(share["fma"] > 0 and share["memory"] > 0 for share in row["share"].values())
        assert row["difference"]["kwslib"] == [0, 0] and row["difference"]["associative_scan"][1] < 1e-4
    assert result["difference"]["kwslib"] < 1e-5
    (model,) = result["models"].values()
    assert sum(model["profile"].values()) == pytest.approx(1) and model["profile"]["scan"] > 0
    assert all(len(result["length"][mode]["ms"]) == 3 for mode in ("forward", "both"))
    assert set(result["load"]) == {"before", "during", "after", "limit"} and isinstance(result["loaded"], bool)


def test_training_starts_from_the_plain_scan_and_changes_come_one_by_one(result):
    (model,) = result["models"].values()
    ways = list(model["training"])
    assert ways[0] == "plain PyTorch scan, float32" and ways[1] == "+ fused scan" and ways[-1] == "+ features by batch"
    options = list(benchmark_training.ways_of("mamba_mel_small").values())
    assert [len(o) for o in options] == list(range(len(options))) and "channels_last" in options[-1]
    assert "channels_last" not in list(benchmark_training.ways_of("mamba_mfcc_small").values())[-1]
    assert list(benchmark_training.ways_of("mamba_mel_small", ablated=False).values()) == options[-1:]


def test_a_step_is_timed_from_one_batch_to_the_next():
    class Feed:
        def epoch(self, epoch):
            yield from range(10)

    clock = benchmark_training.Clock(Feed(), 4)
    assert list(clock.epoch(0)) == [0, 1, 2, 3] and len(clock) == len(clock.ends) == 4


def test_a_peer_that_does_not_run_is_named(monkeypatch):
    def absent(t):
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setenv("CXX", "no-such-compiler")
    scans = {"kwslib": scan_peers.kwslib_scan, "absent": absent, "cpp": scan_peers.cpp_scan} | scan_peers.COMPILED
    works, missing = scan_peers.available(scans, scan_peers.inputs(1, 2, 3))
    assert list(works) == ["kwslib"] and "No module named 'absent'" in missing.pop("absent")
    assert set(missing) == {"cpp", *scan_peers.COMPILED} and set(missing.values()) == {"no compiler"}


def test_what_is_too_large_is_not_run_and_says_so(monkeypatch):
    monkeypatch.setattr(benchmark_scan, "MOST_PEER", 2 * 5 * 4 * scan_peers.STATE - 1)
    shapes = [{"batch": 2, "length": 5, "channels": 4}]
    scans = {"kwslib": scan_peers.kwslib_scan, "peer": scan_peers.kwslib_scan, "compiled_loop": None}
    for row in benchmark_scan.benchmark_shapes(scans, shapes, 0.001):
        assert "kwslib" in row["ms"]["1"] and "peer" not in row["ms"]["1"] and "not run" in row["missing"]["peer"]
        assert "three shapes" in row["missing"]["compiled_loop"]


def test_a_shape_at_which_nothing_runs_takes_no_memory(monkeypatch):
    def refused(*shape, **options):
        raise AssertionError("inputs were made")

    monkeypatch.setattr(benchmark_scan, "MOST_LEAN", 1)
    monkeypatch.setattr(benchmark_scan, "inputs", refused)
    shapes = [{"batch": 2, "length": 5, "channels": 4}]
    for row in benchmark_scan.benchmark_shapes({"kwslib": scan_peers.kwslib_scan}, shapes, 0.001):
        assert row["ms"]["1"] == {} and "not run" in row["missing"]["kwslib"]


def test_a_side_with_other_results_is_not_timed():
    """Other outputs, and other gradients of the same outputs."""

    def doubled(t):
        return lambda: 2 * scan_peers.plain_loop(t)()

    def wrong_gradient(t):
        run = scan_peers.plain_loop(t)
        return lambda: run().detach() + sum(0 * v.sum() for v in t.values())

    scans = {"kwslib": scan_peers.kwslib_scan, "doubled": doubled, "wrong_gradient": wrong_gradient}
    scans |= {"right": scan_peers.torch_associative_scan}
    shapes = [{"batch": 2, "length": 5, "channels": 4}]
    forward, both = benchmark_scan.benchmark_shapes(scans, shapes, 0.001)
    assert set(forward["ms"]["1"]) == {"kwslib", "wrong_gradient", "right"}
    assert set(both["ms"]["1"]) == {"kwslib", "right"} and "differ" in both["missing"]["wrong_gradient"]
    assert both["difference"]["doubled"][1] == pytest.approx(1, abs=0.01)


def test_backward_reaches_every_argument():
    """A pass that left a gradient out would be too fast."""
    t = scan_peers.inputs(2, 5, 4, grad=True)
    found = benchmark_scan.whole_pass(scan_peers.kwslib_scan(t), t, True)()
    assert [x.shape for x in found[1:]] == [v.shape for v in t.values()]
    with pytest.raises(RuntimeError, match="not have been used"):
        benchmark_scan.whole_pass(lambda: 2 * t["u"], t, True)()


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


@pytest.mark.parametrize("batched", (True, False))
def test_both_ways_of_feeding_give_whole_batches(batched):
    way = benchmark_training.Way("mamba_mfcc_small", benchmark_training.clips(8), batch=4, batched=batched)
    with contextlib.closing(way.batches.epoch(0)) as feed:
        inputs, targets, lengths = next(feed)
    assert inputs.shape == (4, 63, 40) and targets.shape == lengths.shape == (4,)


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
        "ms": {k: {"kwslib": 2.0, "mamba_ssm": 100.0, "mambapy": 60.0, "cpp": 1.0} for k in {"1", n}},
        "share": {k: {"fma": 0.5, "memory": 0.25} for k in {"1", n}},
    }
    clip = row | {"batch": 1, "mode": "forward", "ms": {k: {"kwslib": 0.05, "mambapy": 0.5} for k in {"1", n}}}
    made["scan"] = [row, clip]
    numbers = scan_report.headline_numbers(made)
    assert numbers["training.fastest_peer.least"] == numbers["training.cpp.most"] == 0.5
    assert numbers["training.fastest_package.least"] == 30 and numbers["training.mamba_ssm.most"] == 50
    assert numbers["clip.fastest_peer.median"] == pytest.approx(10) and numbers["share.both.fma"] == 50
    ways = [way["p50"] for way in made["models"]["mamba_mfcc_small"]["training"].values()]
    assert numbers["mamba_mfcc_small.scan"] == ways[0] / ways[1] and "one.compiled.least" not in numbers
    df, caption = scan_report.scan_table(made)
    assert df["mambapy, parallel scan (×)"].tolist() == ["30.0", "10.0"] and "cores" in caption
    assert "C++ extension, ours in 1" in scan_report.scan_findings(made)
    assert df["transformers, loop (×)"].tolist() == ["not run", "not run"]
    clip["ms"] = {k: {"kwslib": 0.05, "compiled_loop": 0.06} for k in {"1", n}}
    made["scan"].append(row | {"channels": 256, "ms": {k: {"kwslib": 2.0, "cpp": 1.0} for k in {"1", n}}})
    numbers = scan_report.headline_numbers(made)
    shapes = [numbers[f"training.{among}shapes"] for among in ("", "packages.", "compiled.")]
    assert shapes == [2, 1, 0] and numbers["one.compiled.least"] == pytest.approx(1.2)


def test_tables_and_figures_are_drawn(result):
    drawn = scan_figures.scan_figures(result)
    assert set(drawn) == {"scan_speed", "scan_shapes", "scan_length", "scan_training", "step_profile"}
    assert all(result["machine"]["cpu"] in caption for _, caption in drawn.values())
    tables = scan_report.scan_tables(result)
    assert list(tables["scan_models"][0]["model"]) == ["Mamba-MFCC Small"]
    assert len(tables["scan_training"][0]) == len(result["models"]["mamba_mfcc_small"]["training"])
    sides, _ = tables["scan_sides"]
    assert set(sides["threads"]) == set(result["peaks"]) and (sides["calls"].astype(int) >= 5).all()
    said = scan_report.scan_findings(result)
    assert "Mamba-MFCC Small" in said and "exponent" in said


def test_times_of_a_busy_machine_say_so_in_every_caption(result):
    for loaded in (True, False):
        made = result | {"loaded": loaded, "load": {"before": 0.0, "during": 1.26, "after": None, "limit": 0.2}}
        captions = [
            caption for _, caption in (scan_report.scan_tables(made) | scan_figures.scan_figures(made)).values()
        ]
        assert all(("loaded: other programs used up to 1.3 cores" in caption) == loaded for caption in captions)


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
    assert significant(value, digits) == shown


def test_weights_of_transformers_give_the_same_output():
    """An independent implementation of the block: transformers' mixer, whose parameters are named alike."""
    transformers = pytest.importorskip("transformers", reason="optional: kwslib[transformers]")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    theirs = MambaMixer(transformers.MambaConfig(hidden_size=64, state_size=16, time_step_rank=4), 0).eval()
    ours = mamba.Mamba(64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 31, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
