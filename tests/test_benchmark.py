"""Benchmark: the fit finds known exponents, the result file is whole, mistakes end in one sentence."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from kwslib import cli as commands
from kwslib.checkpoint import save_checkpoint
from kwslib.io import KwsError, cli, read_json
from kwslib.machine import machine
from kwslib.models.cost import count_parameters
from kwslib.models.registry import build
from paper.benchmarks import memory
from paper.benchmarks import models as benchmark_models
from paper.benchmarks import timing as benchmark
from paper.benchmarks.models import fit_exponent

CPU = torch.device("cpu")
LENGTHS = (1, 2, 4, 8, 16, 32, 64)


class Tiny(nn.Module):
    """Mean over the frames, then a linear layer: 205 parameters, 200 multiply-accumulates."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(40, 5)

    def forward(self, inputs, lengths=None):
        return self.classify(inputs.mean(1))


class Failing(Tiny):
    """Counts fine (in the first pass), and then fails."""

    passes = 0

    def forward(self, inputs, lengths=None):
        self.passes += 1
        if self.passes > 1:
            raise ValueError("no more")
        return super().forward(inputs, lengths)


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def check_entry(entry, threads, batches, memory=()):
    """Every key of a model's entry, with values that can be."""
    assert set(entry) == {
        "parameters",
        "macs",
        "latency_ms",
        "repeats",
        "wave_to_label_ms",
        "features_ms",
        "throughput",
        *memory,
    }
    assert entry["parameters"] > 0 and entry["macs"] > 0
    assert list(entry["latency_ms"]) == list(entry["repeats"]) == threads
    assert all(n >= 2 for n in entry["repeats"].values())
    for times in entry["latency_ms"].values():
        assert set(times) == {"p50", "p95", "p99"} and 0 < times["p50"] <= times["p95"] <= times["p99"]
    for times in (entry["wave_to_label_ms"], entry["features_ms"]):
        assert set(times) == {"p50", "p95"} and 0 < times["p50"] <= times["p95"]
    assert list(entry["throughput"]) == [str(n) for n in batches]
    assert all(x > 0 for x in entry["throughput"].values())
    if memory:
        assert entry["peak_batch"] == batches[-1] and (entry["peak_mb"] is None or entry["peak_mb"] > 0)


@pytest.mark.parametrize("exponent", (0.5, 1.0, 2.0))
def test_fit_recovers_the_exponent(exponent):
    assert fit_exponent(LENGTHS, [3 * s**exponent for s in LENGTHS]) == pytest.approx(exponent)


def test_fit_reads_only_the_longest_lengths():
    squares = [s**2 for s in LENGTHS]
    assert fit_exponent(LENGTHS, [9.0, 900.0, 0.5] + squares[3:]) == pytest.approx(2)
    assert fit_exponent(LENGTHS, [9.0, 900.0] + squares[2:6] + [None]) == pytest.approx(2)
    mixed = fit_exponent(LENGTHS, [64.0] * 5 + [32.0**2, 64.0**2])
    assert 1 < mixed < 5, "lengths 8 and 16, at which the cost is flat, count too"


def test_fit_needs_two_lengths():
    assert fit_exponent(LENGTHS, [None] * 6 + [5.0]) is None
    assert fit_exponent((1, 2), (0.0, 5.0)) is None


def test_entry_of_a_bare_module(set_threads):
    set_threads(2)
    spotters = {"tiny": benchmark.spotter_of(Tiny(), features="mfcc")}
    entry = benchmark.benchmark_spotters(spotters, seconds_budget=0.01, batches=(1, 4))["tiny"]
    check_entry(entry, ["1", "2"], (1, 4))
    assert (entry["parameters"], entry["macs"]) == (205, 200)
    assert torch.get_num_threads() == 2


def test_threads_are_put_back_after_a_failure(set_threads):
    set_threads(2)
    with pytest.raises(ValueError, match="no more"):
        benchmark.benchmark_spotters({"failing": benchmark.spotter_of(Failing(), features="mfcc")}, 0.01)
    assert torch.get_num_threads() == 2


def test_sides_take_turns_and_are_called_equally_often(monkeypatch):
    """On a made clock, in seconds, so that a busy machine changes nothing."""
    order, now = [], [0.0]

    def side(name, seconds):
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    runs = {"slow": lambda: side("slow", 0.02), "fast": lambda: side("fast", 0.001)}
    took = benchmark.rounds(runs, CPU, 0.25)
    assert took == {"slow": 10 * [pytest.approx(20)], "fast": 10 * [pytest.approx(1)]}
    assert order == ["slow", "fast"] * 2 + 5 * (2 * ["slow"] + 2 * ["fast"])  # two calls of each before it is timed
    assert {n: len(ms) for n, ms in benchmark.rounds(runs, CPU, 0.001).items()} == {"slow": 5, "fast": 5}
    assert benchmark.rounds({}, CPU, 0.1) == {}
    cold = lambda: side("fast", 0.001 if order[-1] == "fast" else 0.1)  # noqa: E731
    took = benchmark.rounds({"slow": runs["slow"], "fast": cold}, CPU, 0.6, settle=1)
    assert took == {"slow": 5 * [pytest.approx(20)], "fast": 5 * [pytest.approx(1)]}


@pytest.mark.parametrize("busy", (0.1, 0.9))
def test_a_busy_machine_marks_the_result(monkeypatch, capsys, busy):
    """A made clock of others' seconds: `busy` cores."""
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(benchmark, "others", lambda: busy * now[0])
    with benchmark.watch_load() as mark:
        benchmark.time.sleep(10)
    assert mark["load"] == {"before": busy, "during": busy, "after": busy, "limit": benchmark.MOST_LOAD}
    assert mark["loaded"] == (busy > benchmark.MOST_LOAD) == ("is loaded" in capsys.readouterr().err)


def test_without_proc_stat_the_load_average_counts(monkeypatch):
    monkeypatch.setattr(benchmark, "others", lambda: None)
    monkeypatch.setattr(benchmark.os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    with benchmark.watch_load() as mark:
        pass
    assert mark["loaded"] and mark["load"] == {"before": 3.0, "during": None, "after": None, "limit": 0.2}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/stat")
def test_work_of_our_own_is_not_that_of_others():
    """A second of this process's own work adds less to the others' than an idle machine with it would."""
    before, started, own = benchmark.others(), time.perf_counter(), time.process_time()
    while time.process_time() < own + 0.5:
        pass
    seconds = time.perf_counter() - started
    assert -0.1 < benchmark.others() - before < os.cpu_count() * seconds - 0.4


@pytest.mark.parametrize("resets", (True, False))
def test_peak_memory_is_what_a_pass_takes(monkeypatch, resets):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can reset its high-water mark")
    memory.peak_memory(lambda: None, CPU)  # the mark is now at what is in use
    if not resets:
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: None)  # a C library without malloc_trim
    assert 60 < memory.peak_memory(lambda: torch.ones(16_000_000).sum(), CPU) < 80  # 64 MB of float32


def test_lengths_that_are_too_costly_are_null_with_a_reason(monkeypatch, set_threads):
    set_threads(1)
    limit = benchmark_models.expected_bytes("kwt_1", 2)
    monkeypatch.setattr(benchmark_models, "MOST_MEMORY", limit)
    result = benchmark_models.benchmark_length(["kwt_1"], (1, 2, 4), seconds_budget=0.01)
    assert result["seconds"] == [1, 2, 4] and result["threads"] == 1
    entry = result["models"]["kwt_1"]
    assert entry["ms"][2] is None and entry["mb"][2] is None and entry["missing"]["4"].startswith("not run")
    assert all(ms > 0 for ms in entry["ms"][:2]) and entry["fitted_over"] == [1, 2]
    assert isinstance(entry["exponent_time"], float)


def test_memory_that_does_not_show_is_null_with_a_reason(monkeypatch, set_threads):
    set_threads(1)
    monkeypatch.setattr(benchmark_models, "peak_memory", lambda run, device: None)
    entry = benchmark_models.benchmark_length(["kwt_1"], (1, 2), seconds_budget=0.01)["models"]["kwt_1"]
    assert entry["mb"] == [None, None] and set(entry["missing"]) == {"1", "2"}
    assert entry["exponent_memory"] is None and isinstance(entry["exponent_time"], float)


def test_by_default_no_length_is_left_out():
    for name in benchmark_models.LENGTH_MODELS:
        assert benchmark_models.expected_bytes(name, benchmark_models.SECONDS[-1]) < benchmark_models.MOST_MEMORY < 5e9


def test_result_file(tmp_path, set_threads):
    set_threads(1)
    out, shown = tmp_path / "results" / "benchmark.json", []
    names = ["kwt_1", "keyword_cnn"]
    result = benchmark_models.benchmark_paper(
        ",".join(names), out, 12, small=True, show=lambda title, _: shown.append(title)
    )
    assert read_json(out) == result
    assert set(result) == {"machine", "n_classes", "models", "gpu", "length", "load", "loaded"}
    assert set(result["machine"]) == set(machine()) and result["n_classes"] == 12
    assert list(result["models"]) == names
    for name, entry in result["models"].items():
        check_entry(entry, ["1"], (1, 2), ("peak_mb", "peak_batch"))
        assert entry["parameters"] == count_parameters(build(name, 12))
    assert list(result["length"]["models"]) == ["kwt_1"]
    entry = result["length"]["models"]["kwt_1"]
    assert len(entry["ms"]) == len(entry["mb"]) == len(result["length"]["seconds"])
    assert all(ms > 0 for ms in entry["ms"])
    assert set(entry) == {"ms", "mb", "missing", "exponent_time", "exponent_memory", "fitted_over"}
    assert (result["gpu"] is not None) == torch.cuda.is_available()
    assert shown[:2] == ["kwt_1 on cpu", "keyword_cnn on cpu"]
    said = benchmark_models.cost_findings(result)
    assert "KWT-1" in said and result["machine"]["cpu"] in said and "exponent" in said


@pytest.mark.parametrize(
    "mistake, sentence",
    [
        ({"names": "kwt_1,kwt_9"}, "'kwt_9' is unknown"),
        ({"names": ""}, "is unknown"),
        ({"names": ["kwt_1"], "n_classes": 0}, "n_classes is 0"),
        ({"names": ["kwt_1"], "seconds_budget": 0}, "above 0"),
    ],
)
def test_mistakes(mistake, sentence):
    with pytest.raises(KwsError, match=sentence):
        benchmark.benchmark_models(**mistake)


def test_command_line_times_a_checkpoint(tmp_path, capsys, set_threads):
    set_threads(1)
    card = {
        "model": "kwt_1",
        "labels": ["go", "left", "stop"],
        "features": {"kind": "mfcc"},
        "normalisation": {"mean": -1.0, "std": 2.0},
    }
    save_checkpoint(tmp_path / "model.safetensors", build("kwt_1", 3).state_dict(), card)
    out = tmp_path / "timed.json"
    with pytest.raises(SystemExit) as end:
        cli(lambda: benchmark.main(["--model-path", str(tmp_path), "--small", "--out", str(out)]))
    assert not end.value.code
    printed, result = capsys.readouterr().out, read_json(out)
    assert result["n_classes"] == 3 and list(result["models"]) == ["kwt_1"]
    parameters = count_parameters(build("kwt_1", 3))
    assert result["models"]["kwt_1"]["parameters"] == parameters
    for expected in ("kwt_1 on cpu", "p50", "p99", "wave to label", "clips/s", f"{parameters:,}"):
        assert expected in printed


def test_command_line_without_a_checkpoint(root, tmp_path):
    command = [sys.executable, "-m", "kwslib.benchmark", "--model-path", str(tmp_path / "none")]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and "does not exist" in ended.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
def test_entry_on_a_gpu():
    spotters = {"tiny": benchmark.spotter_of(Tiny(), "cuda", features="mfcc")}
    entry = benchmark.benchmark_spotters(spotters, 0.01, (1, 4))["tiny"]
    check_entry(entry, ["1"], (1, 4))


def test_the_command_times_a_checkpoint(capsys):
    commands.bench(["mamba_light", "--batch", "1", "2", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["threads 1, batch   1", "threads 1, batch   2"]
    for line in lines:
        middle, low, high = (float(x) for x in re.findall(r"[\d.]+", line.split(":")[1])[:3])
        assert 0 < low <= middle <= high and "clips/s" in line
    with pytest.raises(SystemExit):
        commands.bench(["--batch", "1"])
    assert "required: checkpoint" in capsys.readouterr().err
