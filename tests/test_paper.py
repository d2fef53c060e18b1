"""Tables and figures: the numbers in them are those of the result files, and nothing is said beyond them."""

import copy
import csv
import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from kwslib.io import KwsError, write_csv, write_json
from paper import figures, tables
from paper import pages as readme

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
WORDS = ["go", "no", "_unknown_"]


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
        "machine": {},
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
            "per_word": {word: {"precision": 0.8125, "recall": 0.7512, "n": 20} for word in WORDS},
        },
        "training": {"epochs": 3, "seconds": 90.0, "clips_per_second": 1_234.4, "precision": "float32"},
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
        "gpu": {"mamba_mel_small": speed} if gpu else None,
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
        (path / "history").mkdir(exist_ok=True)
        write_csv(path / "history" / f"{stem}.csv", rows)
    if benchmark:
        write_json(path / "benchmark.json", benchmark)
    return path


@pytest.fixture(scope="module")
def claims():
    return tables.load_claims()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two seeds of one Mamba, one of MobileNetV2 with a better validation accuracy, timings of two models."""
    runs = [a_run("mamba_mel_small", 0, 0.90), a_run("mamba_mel_small", 1, 0.94), a_run("mobilenet_v2_035", 0, 0.95)]
    return a_folder(tmp_path_factory.mktemp("results") / "quick", runs, a_benchmark(gpu=True))


@pytest.fixture(scope="module")
def drawn(results, claims):
    rng = np.random.default_rng(0)
    mel, power = rng.normal(size=(63, 128)), rng.random((63, 1_025))
    features = figures.feature_pipeline(rng.normal(size=16_000), power, mel, mel, np.zeros_like(mel))
    every = figures.draw_all(tables.load_runs(results), tables.load_benchmark(results), claims)
    return every | {"features": (features, "")}


@pytest.fixture(scope="module")
def built(results, claims):
    return tables.build_tables(tables.load_runs(results), tables.load_benchmark(results), claims)


def row(table, name):
    df, _ = table
    return df.set_index(df.columns[0]).loc[name]


def test_measured_numbers_are_means_over_seeds_in_a_column_of_their_own(built):
    small = row(built["variants"], "Mamba-Mel Small")
    assert small["claimed parameters"] == "404K" and small["true parameters"] == "462,147 (35 classes)"
    assert small["counted here"] == "461,091 (3 classes)"
    assert small["claimed accuracy, V2-35 validation (%)"] == "97.42"
    assert small["measured accuracy, synthetic corpus “beeps” test (%)"] == "92.00 ± 2.83"
    assert small["95 % interval"] == "87.00–96.00" and small["test clips"] == "60" and small["seeds"] == "2"
    assert "403,779" in small["why they differ"]
    one_seed = row(built["variants"], "MobileNetV2 0.35")
    assert one_seed["measured accuracy, synthetic corpus “beeps” test (%)"] == "95.00"


def test_models_without_result_are_listed_as_not_run(built, claims):
    df, _ = built["comparison"]
    assert list(df["model"]) == [entry["name"] for entry in claims["models"].values()]
    absent = row(built["comparison"], "KWT-1")
    assert absent.iloc[2] == "not run" and set(absent.drop(absent.index[2])) == {"–"}
    timed_only = row(built["comparison"], "KeywordCNN")
    assert timed_only.iloc[2] == "not run" and timed_only["CPU latency p50, 1 thread (ms)"] == "7.53"
    assert timed_only["parameters"] == "462,147" and timed_only["CPU clips/s, batch 64"] == "1,910"


def test_comparison_and_timings_are_those_of_the_files(built):
    small = row(built["comparison"], "Mamba-Mel Small")
    assert list(small[["parameters", "MACs, 1 s of audio (M)"]]) == ["461,091", "95.4"]
    assert small["seeds"] == "2" and row(built["comparison"], "MobileNetV2 0.35")["seeds"] == "1"
    assert small["training clips/s"] == "1,234" and small["training minutes"] == "1.50"
    assert small["macro-F1, synthetic corpus “beeps” test (%)"] == "91.00"
    speed = row(built["benchmark"], "Mamba-Mel Small")
    assert speed["latency (ms), threads 2 p95"] == "5.00" and speed["clips/s, batch 8"] == "400.0"
    assert speed["GPU latency (ms) p50"] == "7.53" and speed["peak (MB)"] == "61.2"
    assert speed["claimed, i5 CPU (ms; clips/s)"] == "7.5; 850"
    assert list(row(built["length"], "Mamba-Mel Small")) == ["1.00", "–", "1–4", "7.50", "30.0", "10.0", "–"]


def test_a_synthetic_corpus_is_named_so_in_every_caption_and_measured_column(built):
    for name in ("variants", "comparison", "per_word"):
        df, caption = built[name]
        assert "synthetic corpus “beeps”" in caption and "n = 60 test clips of 7 speakers" in caption
        assert all("synthetic" in c for c in df.columns if is_measured(c))
    assert "; mean ± standard deviation over seeds, one seed where no deviation stands;" in built["comparison"][1]
    assert "; one seed;" in built["per_word"][1]
    assert "MobileNetV2 0.35, seed 0" in built["per_word"][1]  # best on validation
    assert list(row(built["per_word"], "go")) == ["81.25", "75.12", "20"]


def is_measured(column):
    return any(word in column for word in ("measured", "macro-F1", "precision", "recall"))


def test_real_clips_carry_their_attribution_and_no_word_of_synthesis(tmp_path, claims):
    run = a_run("retnet", 0, 0.9, synthetic=False) | {
        "test_common": {
            "minimum_training_clips": 700,
            "words": ["go"],
            "n": 20,
            "accuracy": 0.93209,
            "interval": [0.9, 1.0],
        }
    }
    folder = a_folder(tmp_path / "subset", [run])
    made = tables.build_tables(tables.load_runs(folder), tables.load_benchmark(folder), claims)
    df, caption = made["variants"]
    assert "Recorded by A & B, CC BY 4.0." in caption and "synthetic" not in caption + " ".join(df.columns)
    assert "measured accuracy, Speech Commands subset test (%)" in df.columns
    common = "accuracy, Speech Commands subset test, words of 700+ training clips (%)"
    assert row(made["comparison"], "RetNet-KWS")[common] == "93.21"
    assert row(made["comparison"], "KWT-1")[common] == "–"
    assert set(row(made["benchmark"], "RetNet-KWS")) == {"–"} and "length" not in made


def test_all_of_the_corpus_has_a_column_of_its_own(results, tmp_path, claims):
    column = "test accuracy, all of Speech Commands V2, 35 words (%)"
    a_folder(
        tmp_path / "paper",
        [a_run("mamba_mel_small", seed, accuracy, synthetic=False) for seed, accuracy in ((0, 0.95), (1, 0.96))],
    )
    for folder, shown in ((results, "not run"), (tmp_path / "subset", "95.50 ± 0.71")):
        made = tables.build_tables(tables.load_runs(results), None, claims, tables.whole_corpus(folder))
        small = row(made["variants"], "Mamba-Mel Small")
        assert (
            small[column] == shown and small["measured accuracy, synthetic corpus “beeps” test (%)"] == "92.00 ± 2.83"
        )
        assert row(made["variants"], "RetNet-KWS")[column] == "not run"


def test_no_results_at_all_still_give_tables(tmp_path, claims):
    (tmp_path / "none").mkdir()
    made = tables.build_tables(tables.load_runs(tmp_path / "none"), None, claims)
    assert set(made["variants"][0]["counted here"]) == {"not run"} and "per_word" not in made
    with pytest.raises(KwsError, match="absent does not exist"):
        tables.load_runs(tmp_path / "absent")


def test_runs_on_different_corpora_and_incomplete_files_are_refused(tmp_path):
    other = a_run("retnet", 0, 0.9)
    other["corpus"]["checksum"] = "c1"
    with pytest.raises(KwsError, match="different corpora"):
        tables.load_runs(a_folder(tmp_path / "mixed", [a_run("kwt_1", 0, 0.9), other]))
    del other["test"]
    with pytest.raises(KwsError, match="retnet-0.json lacks test"):
        tables.load_runs(a_folder(tmp_path / "short", [other]))


def test_published_figures_are_all_listed_and_never_called_measured(built, claims):
    df, caption = built["rivals"]
    assert list(df["model"]) == [rival["model"] for rival in claims["rivals"]]
    assert all(c.startswith("published") for c in df.columns[1:4]) and "none was measured" in caption
    assert row(built["rivals"], "KWT-1")["published V2-35 test (%)"] == "96.95 ± 0.14"


def test_counts_in_claims_are_those_of_the_models_with_and_without_the_ssm(claims):
    pytest.importorskip("torchvision")
    import torch

    from kwslib.models.registry import MODELS

    for name, entry in claims["models"].items():
        for classes, true in list(entry.get("true_parameters", {}).items())[:1]:
            with torch.device("meta"):  # shapes without memory
                counts = {key: w.numel() for key, w in MODELS[name].make(n_classes=classes).named_parameters()}
            assert sum(counts.values()) == true, name
            ssm = sum(n for key, n in counts.items() if any(w in key for w in ("x_proj", "dt_proj", "A_log")))
            assert entry.get("without_ssm", true - ssm) == true - ssm, name


def test_tables_are_written_as_markdown_csv_and_escaped_latex(built, tmp_path):
    from pandas import DataFrame

    df = DataFrame({"model": ["a_b & 50%", "c|d"], "share (%)": ["1.0 ± 0.1", "–"]})
    tables.write_table(df, tmp_path, "t", "Up to 100 % of $x_1$ #1 {a}~b^c\\d")
    tex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert r"a\_b \& 50\% & 1.0 $\pm$ 0.1 \\" in tex and r"c|d & -- \\" in tex
    assert r"model & share (\%) \\" in tex
    assert r"100 \% of \$x\_1\$ \#1 \{a\}\textasciitilde{}b\textasciicircum{}c\textbackslash{}d" in tex
    assert [tex.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == sorted(
        tex.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")
    )
    assert r"| c\|d | – |" in (tmp_path / "t.md").read_text(encoding="utf-8")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as f:
        assert list(csv.reader(f)) == [["model", "share (%)"], ["a_b & 50%", "1.0 ± 0.1"], ["c|d", "–"]]
    tables.write_table(*(built["per_word"][0], tmp_path, "words", built["per_word"][1]))
    assert r"| \_unknown\_ |" in (tmp_path / "words.md").read_text(encoding="utf-8")
    assert not (set("±×–“”") & set((tmp_path / "words.tex").read_text(encoding="utf-8")))


def test_readme_is_filled_and_filling_again_changes_nothing(results, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "Trained on <!-- n: quick/corpus.training -->0<!-- /n --> clips: "
        "<!-- n: quick/mamba_mel_small.test.accuracy -->0<!-- /n -->, claimed "
        "<!-- n: quick/mamba_mel_small.claimed.accuracy --><!-- /n -->.\n"
        "<!-- table: quick/comparison -->\nold\n<!-- end -->\ntail\n"
    )
    readme.main([str(page), str(results)])
    filled = page.read_text(encoding="utf-8")
    assert "-->4,321<!--" in filled and "-->92.00 ± 2.83<!--" in filled and "-->97.42<!--" in filled
    assert "| Mamba-Mel Small | 461,091 |" in filled and "old" not in filled
    assert filled.endswith("<!-- end -->\ntail\n")
    readme.main([str(page), str(results)])
    assert page.read_text(encoding="utf-8") == filled


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- table: quick/nothing --><!-- end -->", "table: quick/nothing.*unknown"),
        ("<!-- n: retnet.accuracy -->1<!-- /n -->", "n: retnet.accuracy.*unknown"),
        ("<!-- table: variants --> and no end", "not closed"),
        ("<!-- n: x -->1", "not closed"),
    ],
)
def test_unknown_and_open_markers_are_refused(built, text, message):
    with pytest.raises(KwsError, match=message):
        readme.fill_readme(text, built)


def test_every_figure_is_saved_as_pdf_and_png_the_same_bytes_in_every_process(results, drawn, tmp_path):
    code = (
        "import sys; from paper import figures, tables; results, out = sys.argv[1:]; claims = tables.load_claims(); "
        "drawn = figures.draw_all(tables.load_runs(results), tables.load_benchmark(results), claims); "
        "[figures.save(fig, out + '/quick', name) for name, (fig, _) in drawn.items()]"
    )
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code, str(results), str(tmp_path)], env=env) as other:
        for name, (fig, _) in drawn.items():
            figures.save(fig, tmp_path / "here", name)
    names = set(drawn)
    assert other.returncode == 0
    assert names == {
        "learning_curves",
        "confusion",
        "accuracy_parameters",
        "accuracy_macs",
        "latency",
        "latency_gpu",
        "length",
        "architecture",
        "features",
    }
    for name in names:
        for kind, start in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
            saved = (tmp_path / "here" / f"{name}.{kind}").read_bytes()
            assert saved.startswith(start) and len(saved) > 3_000, name
            if name != "features":  # drawn from arrays, not from results
                assert saved == (tmp_path / "quick" / f"{name}.{kind}").read_bytes(), f"{name}.{kind} differs"


def test_measured_and_published_accuracy_share_axes_only_on_the_same_test_set(claims):
    run = a_run("mamba_mel_small", 0, 0.9)
    apart = figures.accuracy_against([run], claims).axes
    assert len(apart) == 2 and "synthetic corpus “beeps”" in apart[0].get_ylabel()
    assert [line.get_ydata()[0] for line in apart[0].lines if line.get_marker() == "o"] == [90.0]
    claimed = [line.get_ydata()[0] for line in apart[1].lines if line.get_marker() == "x"]
    assert claimed == [
        float(e["claimed"]["accuracy"]) for e in claims["models"].values() if e["claimed"] and e["claimed"]["accuracy"]
    ]
    run["labels"], run["test"]["n"] = [str(i) for i in range(35)], claims["v2_35"]["test_clips"]
    assert len(figures.accuracy_against([run], claims).axes) == 2  # synthetic never does
    run["corpus"]["synthetic"] = False
    assert len(figures.accuracy_against([run], claims).axes) == 1


def test_labels_beside_points_do_not_cover_each_other(claims):
    ax = figures.accuracy_against([a_run("mamba_mel_small", 0, 0.9)], claims).axes[1]
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) > 10 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_who_lies_far_below_is_named_at_the_end_of_the_axis(claims):
    near, far = a_run("mamba_mel_small", 0, 0.9), a_run("keyword_cnn", 0, 0.56789)
    ax = figures.accuracy_against([near, far], claims).axes[0]
    assert [t.get_text() for t in ax.texts] == ["CNN 56.8"] and ax.get_ylim()[0] == pytest.approx(70)
    ax = figures.accuracy_against([near, a_run("keyword_cnn", 0, 0.8)], claims).axes[0]
    assert not ax.texts and ax.get_ylim()[0] < 75


def test_legends_lie_off_the_curves(results, claims):
    runs, benchmark = tables.load_runs(results), tables.load_benchmark(results)
    for fig in (figures.learning_curves(runs, claims), figures.length_scaling(benchmark, claims)):
        fig.draw_without_rendering()
        for ax in fig.axes:
            assert not ax.get_legend() or not ax.get_legend().get_window_extent().overlaps(ax.bbox)
        assert any(ax.get_legend() for ax in fig.axes)


def test_confusion_rows_sum_to_the_spoken_word_and_counts_stand_in_cells():
    ax = figures.confusion_matrix(a_run("retnet", 0, 0.9)).axes[0]
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()).sum(1), 100)
    assert sorted(int(text.get_text()) for text in ax.texts) == [1, 2, 3, 17, 18, 19]


@pytest.mark.parametrize(
    "kind, n_mels, shapes",
    [
        ("mel", 128, ["(B, 63, 128)", "(B, 32, 31, 64)", "(B, 31, 2048)", "(B, 31, 192)", "(B, 192)", "(B, 12)"]),
        ("mfcc", 40, ["(B, 63, 40)", "(B, 63, 192)", "(B, 63, 384)", "(B, 192)", "(B, 12)"]),
    ],
)
def test_architecture_shapes_follow_from_its_arguments(kind, n_mels, shapes):
    (ax,) = figures.architecture(192, 5, n_mels, n_classes=12, kind=kind).axes
    texts = [text.get_text() for text in ax.texts]
    assert set(shapes) <= set(texts) and "Mamba block\n× 5" in texts


def test_captions_name_corpus_clips_and_machine(drawn, claims):
    for name in ("accuracy_parameters", "accuracy_macs", "confusion"):
        assert "synthetic corpus “beeps”" in drawn[name][1] and "n = 60" in drawn[name][1]
    assert "n = 40" in drawn["learning_curves"][1] and "synthetic" in drawn["learning_curves"][1]
    assert "Test_CPU" in drawn["latency"][1] and "TestGPU" in drawn["latency_gpu"][1]
    assert set(figures.draw_all([], None, claims)) == {"architecture"}
