"""Result files made up for the tests of tables and figures: runs, timings, a benchmark."""

import copy

from kwslib.io import write_csv, write_json

WORDS = ["go", "no", "_unknown_"]


def by_speaker(right):
    """Sixty clips of seven speakers of whom `right` are right; the errors fall to one speaker after another."""
    table = {f"s{i}": [9 if i < 4 else 8] * 2 for i in range(7)}
    for _ in range(60 - right):
        speaker = max(table, key=lambda s: table[s][0])
        table[speaker] = [table[speaker][0] - 1, table[speaker][1]]
    return table


def a_run(model, seed, accuracy, synthetic=True):
    name = "beeps" if synthetic else "Speech Commands subset"
    return {
        "model": model,
        "seed": seed,
        "profile": "quick",
        "task": "all",
        "labels": WORDS,
        "parameters": 461_091,
        "macs": 95_400_000,
        "config": {},
        "corpus": {
            "name": name,
            "source": "synthetic",
            "synthetic": synthetic,
            "licence": "CC BY 4.0",
            "attribution": None if synthetic else "Recorded by A & B, CC BY 4.0.",
            "checksum": "c0",
            "clips": {"training": 4_321, "validation": 40, "testing": 60},
            "speakers": {"testing": 7},
        },
        "validation": {"accuracy": accuracy + 0.02, "epoch": 2, "n": 40},
        "test_common": None,
        "test": {
            "n": 60,
            "speakers": 7,
            "accuracy": accuracy,
            "interval": [accuracy - 0.05, accuracy + 0.04],
            "macro_f1": accuracy - 0.01,
            "confusion": [[18, 2, 0], [1, 19, 0], [0, 3, 17]],
            "by_speaker": by_speaker(round(60 * accuracy)),
            "per_word": {word: {"precision": 0.8125, "recall": 0.7512, "n": 20} for word in WORDS},
        },
        "training": {"epochs": 3, "precision": "float32"},
    }


def a_benchmark(gpu=False):
    speed = {
        "parameters": 462_147,
        "macs": 95_500_000,
        "peak_mb": 61.25,
        "latency_ms": {"1": {"p50": 7.534, "p95": 8.0, "p99": 9.0}, "2": {"p50": 4.0, "p95": 5.0, "p99": 6.0}},
        "wave_to_label_ms": {"p50": 9.0, "p95": 9.5},
        "features_ms": {"p50": 1.5, "p95": 2.0},
        "throughput": {"1": 130.0, "8": 400.0, "64": 1_910.2},
    }
    growth = {
        "ms": [7.5, 30.0],
        "mb": [10.0, None],
        "exponent_time": 1.0,
        "exponent_memory": None,
        "fitted_over": [1, 4],
    }
    return {
        "machine": {"cpu": "Test_CPU 100%", "cores": 2, "gpu": "TestGPU" if gpu else None, "torch": "2.0"},
        "models": {"mamba_mel_small": speed, "keyword_cnn": copy.deepcopy(speed)},
        "gpu": {"models": {"mamba_mel_small": speed}} if gpu else None,
        "length": {"seconds": [1, 4], "models": {"mamba_mel_small": growth}},
    }


def a_folder(path, runs, benchmark=None):
    for run in runs:
        stem = f"{run['model']}-{run['seed']}"
        write_json(path / "runs" / f"{stem}.json", run)
        rows = [
            {
                "epoch": e,
                "lr": 0.1,
                "training_loss": 1 / e,
                "training_accuracy": 0.5,
                "validation_loss": 1.0,
                "validation_accuracy": 0.2 * e,
            }
            for e in (1, 2, 3)
        ]
        timed = {
            "seconds": 90.0,
            "clips_per_second": 1_234.4,
            "machine": {"cpu": "Test_CPU", "gpu": None, "threads": 1},
        }
        write_json(path / "timing" / f"{stem}.json", timed)
        (path / "history").mkdir(exist_ok=True)
        write_csv(path / "history" / f"{stem}.csv", rows)
    if benchmark:
        write_json(path / "benchmark.json", benchmark)
    return path
