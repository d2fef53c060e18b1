"""Tables: the numbers in them are those of the result files, and nothing is said beyond them."""

import csv

import pytest
from small_results import a_benchmark, a_folder, a_run

from kwslib.io import KwsError
from kwslib.models.registry import MODELS
from paper import pages as readme
from paper.findings import accuracy_findings, cost_findings
from paper.results import load_benchmark, load_claims, load_runs, whole_corpus
from paper.tables import paper_tables, timing_tables
from paper.writing import write_report, write_table

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def claims():
    return load_claims()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two seeds of one Mamba, one of MobileNetV2 with a better validation accuracy, timings of two models."""
    runs = [a_run("mamba_mel_small", 0, 0.90), a_run("mamba_mel_small", 1, 0.94), a_run("mobilenet_v2_035", 0, 0.95)]
    return a_folder(tmp_path_factory.mktemp("results") / "quick", runs, a_benchmark(gpu=True))


def tables_of(folder, claims):
    """All tables of a results folder."""
    runs, benchmark = load_runs(folder), load_benchmark(folder)
    return paper_tables(runs, benchmark, claims) | timing_tables(runs, benchmark, claims)


@pytest.fixture(scope="module")
def built(results, claims):
    return tables_of(results, claims)


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
    assert set(df["model"]) == {model.label for model in MODELS.values()} and len(df) == len(MODELS)
    assert list(df["model"])[: len(claims["models"])] == [MODELS[name].label for name in claims["models"]]
    absent = row(built["comparison"], "KWT-1")
    assert absent.iloc[2] == "not run" and set(absent.drop(absent.index[2])) == {"–"}
    timed_only = row(built["comparison"], "KeywordCNN")
    assert timed_only.iloc[2] == "not run" and timed_only["parameters"] == "462,147"
    cost = row(built["cost"], "KeywordCNN")
    assert cost["CPU latency p50, 1 thread (ms)"] == "7.53" and cost["CPU clips/s, batch 64"] == "1,910"
    assert set(row(built["cost"], "KWT-1")) == {"–"}


def test_comparison_and_timings_are_those_of_the_files(built):
    small = row(built["comparison"], "Mamba-Mel Small")
    assert list(small[["parameters", "MACs, 1 s of audio (M)"]]) == ["461,091", "95.4"]
    assert small["seeds"] == "2" and row(built["comparison"], "MobileNetV2 0.35")["seeds"] == "1"
    cost = row(built["cost"], "Mamba-Mel Small")
    assert cost["training clips/s"] == "1,234" and cost["training minutes"] == "1.50"
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
    assert (
        "; mean ± standard deviation over seeds, a single seed where no deviation is given;" in built["comparison"][1]
    )
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
    made = tables_of(folder, claims)
    df, caption = made["variants"]
    assert "Recorded by A & B, CC BY 4.0." in caption and "synthetic" not in caption + " ".join(df.columns)
    assert "measured accuracy, Speech Commands subset test (%)" in df.columns
    common = "accuracy, Speech Commands subset test, words of 700+ training clips (%)"
    assert row(made["comparison"], "RetNet-KWS")[common] == "93.21"
    assert row(made["comparison"], "KWT-1")[common] == "–"
    assert "benchmark" not in made and "length" not in made
    assert row(made["cost"], "RetNet-KWS")["training minutes"] == "1.50"


def test_all_of_the_corpus_has_a_column_of_its_own(results, tmp_path, claims):
    column = "test accuracy, all of Speech Commands V2, 35 words (%)"
    a_folder(
        tmp_path / "paper",
        [a_run("mamba_mel_small", seed, accuracy, synthetic=False) for seed, accuracy in ((0, 0.95), (1, 0.96))],
    )
    for folder, shown in ((results, "not run"), (tmp_path / "subset", "95.50 ± 0.71")):
        made = paper_tables(load_runs(results), None, claims, whole_corpus(folder))
        small = row(made["variants"], "Mamba-Mel Small")
        assert (
            small[column] == shown and small["measured accuracy, synthetic corpus “beeps” test (%)"] == "92.00 ± 2.83"
        )
        assert row(made["variants"], "RetNet-KWS")[column] == "not run"


def test_no_results_at_all_still_give_tables(tmp_path, claims):
    (tmp_path / "none").mkdir()
    made = tables_of(tmp_path / "none", claims)
    assert set(made["variants"][0]["counted here"]) == {"not run"} and "per_word" not in made
    with pytest.raises(KwsError, match="absent does not exist"):
        load_runs(tmp_path / "absent")


def test_runs_on_different_corpora_and_incomplete_files_are_refused(tmp_path):
    other = a_run("retnet", 0, 0.9)
    other["corpus"]["checksum"] = "c1"
    with pytest.raises(KwsError, match="different corpora"):
        load_runs(a_folder(tmp_path / "mixed", [a_run("kwt_1", 0, 0.9), other]))
    del other["test"]
    with pytest.raises(KwsError, match="retnet-0.json lacks test"):
        load_runs(a_folder(tmp_path / "short", [other]))


def test_only_timing_tables_depend_on_the_machine(results, built, claims):
    """Another machine, other times: the paper's own tables stay the same to the letter."""
    runs, benchmark = load_runs(results), load_benchmark(results)
    benchmark["machine"]["cpu"] = "Other_CPU"
    for run in runs:
        run["timing"] = {"seconds": 5.0, "clips_per_second": 9.0, "machine": {"cpu": "B", "gpu": None, "threads": 1}}
    for entry in benchmark["models"].values():
        entry["latency_ms"] = {"1": {"p50": 1.0, "p95": 1.0, "p99": 1.0}}
    for name, (df, caption) in paper_tables(runs, benchmark, claims).items():
        assert df.equals(built[name][0]) and caption == built[name][1] and "CPU" not in caption, name
    timed = timing_tables(runs, benchmark, claims)
    assert set(timed) == {"cost", "benchmark", "length"} and not timed["cost"][0].equals(built["cost"][0])
    assert "Other_CPU" in timed["cost"][1] and "B, threads: 1" in timed["cost"][1]


def test_a_model_that_is_not_registered_is_listed_under_its_own_name(results, claims):
    runs = [*load_runs(results), a_run("my_model", 0, 0.5) | {"timing": {}}]
    assert row(paper_tables(runs, None, claims)["comparison"], "my_model").iloc[2] == "50.00"


def test_findings_are_sentences_with_the_numbers_of_the_files(results, claims):
    text = accuracy_findings(load_runs(results), claims)
    assert "MobileNetV2 0.35 has the highest accuracy, 95.00 %" in text and "synthetic corpus “beeps”" in text
    assert "Mamba-Mel Small has the lowest, 92.00 ± 2.83 % (95 % interval 87.00–96.00; seeds: 2)" in text
    assert "58,368 of the SSM; the true count is 462,147" in text
    assert accuracy_findings([], claims) == "No run has finished yet."
    text = cost_findings(a_benchmark())
    assert "Test_CPU" in text and "7.53 ms" in text and "1,910 clips/s" in text and "exponent 1.00." in text


def test_published_figures_are_all_listed_and_never_called_measured(built, claims):
    df, caption = built["rivals"]
    assert list(df["model"]) == [rival["model"] for rival in claims["rivals"]]
    assert all(c.startswith("published") for c in df.columns[1:4]) and "none was measured" in caption
    assert row(built["rivals"], "KWT-1")["published V2-35 test (%)"] == "96.95 ± 0.14"


def test_counts_in_claims_are_those_of_the_models_with_and_without_the_ssm(claims):
    pytest.importorskip("torchvision")
    import torch

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
    write_table(df, tmp_path, "t", "Up to 100 % of $x_1$ #1 {a}~b^c\\d")
    tex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert r"a\_b \& 50\% & 1.0 $\pm$ 0.1 \\" in tex and r"c|d & -- \\" in tex
    assert r"model & share (\%) \\" in tex
    assert r"100 \% of \$x\_1\$ \#1 \{a\}\textasciitilde b\textasciicircum c\textbackslash d" in tex
    assert [tex.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == sorted(
        tex.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")
    )
    assert r"| c\|d | – |" in (tmp_path / "t.md").read_text(encoding="utf-8")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as f:
        assert list(csv.reader(f)) == [["model", "share (%)"], ["a_b & 50%", "1.0 ± 0.1"], ["c|d", "–"]]
    write_table(*(built["per_word"][0], tmp_path, "words", built["per_word"][1]))
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


def test_one_call_writes_a_whole_report(built, tmp_path):
    said = write_report({"words": built["per_word"]}, {}, tmp_path / "tables", tmp_path / "figures")
    assert said.startswith("1 tables") and {p.name for p in (tmp_path / "tables").iterdir()} == {
        "words.md", "words.csv", "words.tex",
    }  # fmt: skip
