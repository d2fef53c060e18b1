"""Tables: the numbers in them are those of the result files, and nothing is said beyond them."""

import csv

import pytest
from made_results import a_folder, a_run

from kwslib.io import KwsError
from kwslib.models.registry import MODELS
from paper.facts import paper_findings
from paper.results import load_benchmark, load_runs, whole_corpus
from paper.tables import paper_tables, timing_tables
from paper.writing import write_table

pytest.importorskip("pandas")
MEASURED = "measured accuracy, synthetic corpus “beeps” test (%), after 3 epochs"
INTERVAL, SEEDS, WORTH = (f"{what}, after 3 epochs" for what in ("95 % interval", "seeds", "effective n"))


def all_tables(runs, benchmark, claims, whole=()):
    return paper_tables(runs, benchmark, claims, whole) | timing_tables(runs, benchmark, claims)


@pytest.fixture(scope="module")
def built(results, claims):
    return all_tables(load_runs(results), load_benchmark(results), claims)


def row(table, name):
    df, _ = table
    return df.set_index(df.columns[0]).loc[name]


def test_measured_numbers_are_means_over_seeds_in_a_column_of_their_own(built):
    small = row(built["variants"], "Mamba-Mel Small")
    assert small["claimed parameters"] == "404K" and small["true parameters"] == "462,147 (35 classes)"
    assert small["counted here"] == "461,091 (3 classes)"
    assert small["claimed accuracy, V2-35 validation (%)"] == "97.42"
    assert small[MEASURED] == "92.00 ± 2.83"
    low, high = map(float, small[INTERVAL].split("–"))
    assert low < 92 < high and small[SEEDS] == "2" and 0 < int(small[WORTH]) <= 60
    assert "403,779" in row(built["reasons"], "Mamba-Mel Small")["why they differ"]
    one_seed = row(built["variants"], "MobileNetV2 0.35")
    assert one_seed[MEASURED] == "95.00"
    assert one_seed[INTERVAL] == "90.00–99.00 (one seed)"  # the run's own


def test_an_interval_of_several_seeds_is_not_known_from_older_files(tmp_path, claims):
    runs = [a_run("mamba_mel_small", 0, 0.90), a_run("mamba_mel_small", 1, 0.94)]
    del runs[0]["test"]["by_speaker"]
    made = paper_tables(load_runs(a_folder(tmp_path / "old", runs)), None, claims)
    df, caption = made["comparison"]
    assert row(made["comparison"], "Mamba-Mel Small")[INTERVAL] == "not known" and "comparisons" not in made
    assert row(made["comparison"], "KWT-1")[INTERVAL] == "–" and "effective n " in caption
    for run in runs:
        run["test"].pop("by_speaker", None)
    made = paper_tables(load_runs(a_folder(tmp_path / "older", runs)), None, claims)
    assert row(made["comparison"], "Mamba-Mel Small")[WORTH] == "not known"


def test_models_without_result_are_listed_as_not_run_the_small_before_the_large(built, claims):
    df, _ = built["comparison"]
    claimed = [MODELS[model].label for model in claims["models"]]
    assert list(df["model"])[: len(claimed)] == claimed
    assert sorted(df["model"]) == sorted(m.label for name, m in MODELS.items() if not name.endswith("_as_run"))
    for sizes in (("Mamba-Mel Small", "Mamba-Mel Medium", "Mamba-Mel Large"), [f"BC-ResNet-{n}" for n in (1, 3, 8)]):
        places = [list(df["model"]).index(label) for label in sizes]
        assert places == list(range(places[0], places[0] + 3))
    absent = row(built["comparison"], "KWT-1")
    assert absent.iloc[2] == "not run" and set(absent.drop(absent.index[2])) == {"–"}
    timed_only = row(built["comparison"], "KeywordCNN")
    assert timed_only.iloc[2] == "not run" and timed_only["parameters"] == "462,147"
    cost = row(built["cost"], "KeywordCNN")
    assert cost["CPU latency p50, 1 thread (ms)"] == "7.53" and cost["CPU clips/s, batch 64"] == "1,910"
    assert cost["training clips/s, one CPU thread"] == "–" and set(row(built["cost"], "KWT-1")) == {"–"}


def test_comparison_and_timings_are_those_of_the_files(built):
    small = row(built["comparison"], "Mamba-Mel Small")
    assert list(small[["parameters", "MACs, 1 s of audio (M)"]]) == ["461,091", "95.4"]
    assert small[SEEDS] == "2" and row(built["comparison"], "MobileNetV2 0.35")[SEEDS] == "1"
    cost = row(built["cost"], "Mamba-Mel Small")
    assert cost["training clips/s, one CPU thread"] == "1,234" and cost["training clips/s, GPU"] == "–"
    assert small["macro-F1, synthetic corpus “beeps” test (%), after 3 epochs"] == "91.00"
    speed = row(built["benchmark"], "Mamba-Mel Small")
    assert speed["latency (ms), threads 2 p95"] == "5.00" and speed["clips/s, batch 8"] == "400.0"
    assert speed["GPU latency (ms) p50"] == "7.53" and speed["peak (MB)"] == "61.2"
    assert speed["claimed, i5 CPU (ms; clips/s)"] == "7.5; 850"
    assert list(row(built["length"], "Mamba-Mel Small")) == ["1.00", "–", "1–4", "7.50", "30.0", "10.0", "–"]


def test_a_synthetic_corpus_is_named_so_in_every_caption_and_measured_column(built):
    for name in ("variants", "comparison", "per_word"):
        df, caption = built[name]
        assert "synthetic corpus “beeps”" in caption and "n = 60 test clips of 7 speakers (effective n " in caption
        assert "after 3 epochs" in caption
        assert all("synthetic" in c for c in df.columns if is_measured(c))
    seeds = "; mean ± standard deviation over 2 seeds, one seed where no deviation is given; "
    assert seeds + "95 % intervals of the mean by resampling seeds and speakers together (" in built["comparison"][1]
    assert "; one seed; 95 % intervals of the mean by resampling speakers." in built["per_word"][1]
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
    made = all_tables(load_runs(folder), load_benchmark(folder), claims)
    df, caption = made["variants"]
    assert "Recorded by A & B, CC BY 4.0." in caption and "synthetic" not in caption + " ".join(df.columns)
    assert "measured accuracy, Speech Commands subset test (%), after 3 epochs" in df.columns
    common = "accuracy, Speech Commands subset test, words of 700+ training clips (%), after 3 epochs"
    assert row(made["comparison"], "RetNet-KWS")[common] == "93.21"
    assert row(made["comparison"], "KWT-1")[common] == "–"
    assert row(made["cost"], "RetNet-KWS")["training clips/s, one CPU thread"] == "1,234"
    assert not {"benchmark", "length"} & set(made)


def test_all_of_the_corpus_has_a_column_of_its_own(results, tmp_path, claims):
    column = "test accuracy, all of Speech Commands V2, 35 words (%)"
    a_folder(
        tmp_path / "paper",
        [a_run("mamba_mel_small", seed, accuracy, synthetic=False) for seed, accuracy in ((0, 0.95), (1, 0.96))],
    )
    for folder, shown in ((results, None), (tmp_path / "subset", "95.50 ± 0.71")):
        made = all_tables(load_runs(results), None, claims, whole_corpus(folder))
        small = row(made["variants"], "Mamba-Mel Small")
        assert small.get(column) == shown and small[MEASURED] == "92.00 ± 2.83"
        assert row(made["variants"], "RetNet-KWS").get(column) == (shown and "not run")
        assert ("profile paper" in made["variants"][1]) == (shown is None)


def test_no_results_at_all_still_give_tables(tmp_path, claims):
    (tmp_path / "none").mkdir()
    made = all_tables(load_runs(tmp_path / "none"), None, claims)
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


def test_what_does_not_depend_on_the_machine_names_none(results, claims):
    runs, benchmark = load_runs(results), load_benchmark(results)
    still, timed = paper_tables(runs, benchmark, claims), timing_tables(runs, benchmark, claims)
    assert set(still) == {"variants", "reasons", "comparison", "rivals", "per_word", "comparisons"}
    assert set(timed) == {"cost", "benchmark", "length"}
    for df, caption in still.values():
        assert "Test_CPU" not in caption and not any("ms" in c.split() or "clips/s" in c for c in df.columns)
    assert all("Test_CPU" in caption for _, caption in timed.values())


def test_findings_say_what_the_tables_say(results, claims):
    text = paper_findings(load_runs(results), None, claims)
    rows = len([name for name in MODELS if not name.endswith("_as_run")])
    assert f"2 of {rows} models have been run for 3 epochs on: synthetic corpus “beeps”." in text
    first = "The highest test accuracy: MobileNetV2 0.35 reaches 95.00 % after 3 epochs (95 % interval 90.00–99.00, one"
    assert f"{first} seed; n = 60, effective n " in text
    assert "The lowest test accuracy: Mamba-Mel Small reaches 92.00 ± 2.83 %" in text and "2 seeds; n = 60" in text
    assert paper_findings([], None, claims) == "- No run has finished yet."


def longer(model, seed, accuracy, epochs):
    return a_run(model, seed, accuracy) | {"training": {"epochs": epochs, "precision": "float32"}}


def test_runs_of_different_epochs_have_columns_and_sentences_of_their_own(claims):
    runs = [longer(*of) for of in (("kwt_1", 0, 0.8, 20), ("kwt_1", 1, 0.82, 20), ("kwt_1", 0, 0.9, 60))]
    runs = [run | {"history": [], "timing": {}} for run in [*runs, longer("ds_cnn", 0, 0.7, 20)]]
    df, caption = paper_tables(runs, None, claims)["comparison"]
    kwt, on = row((df, caption), "KWT-1"), "measured accuracy, synthetic corpus “beeps” test (%), after"
    assert kwt[f"{on} 20 epochs"] == "81.00 ± 1.41" and kwt[f"{on} 60 epochs"] == "90.00"
    other = row((df, caption), "DS-CNN-L")
    assert other[f"{on} 20 epochs"] == "70.00" and other[f"{on} 60 epochs"] == "not run"
    assert "after 20 or 60 epochs" in caption and "epochs" not in df.columns
    text = paper_findings(runs, None, claims)
    assert "KWT-1 reaches 81.00 ± 1.41 % after 20 epochs" in text and "KWT-1 reaches 90.00 % after 60 epochs" in text


def test_recipes_of_their_own_epochs_stand_in_one_column_beside_the_number(claims):
    runs = [longer("kwt_1", 0, 0.8, 5) | {"timing": {}}, longer("ds_cnn", 0, 0.7, 7) | {"timing": {}}]
    df, caption = paper_tables(runs, None, claims)["comparison"]
    assert list(df.set_index("model").loc[["KWT-1", "DS-CNN-L"], "epochs"]) == ["5", "7"]
    assert any("after 5 to 7 epochs" in column for column in df.columns)


def test_a_row_as_run_stands_after_its_model_once_it_is_run(tmp_path, claims):
    folder = a_folder(tmp_path / "quick", [a_run("mamba_mel_small_as_run", 0, 0.9)])
    made = paper_tables(load_runs(folder), None, claims)
    assert list(made["variants"][0]["model"])[:3] == ["Mamba-Mel Small", "Mamba-Mel Small, as run", "Mamba-Mel Medium"]
    small, as_run = (row(made["reasons"], f"Mamba-Mel Small{kind}")["why they differ"] for kind in ("", ", as run"))
    assert "twice the frames" in small and "twice the frames" not in as_run


def test_a_model_of_somebody_else_has_a_row_of_its_own(tmp_path, claims):
    folder = a_folder(tmp_path / "quick", [a_run("new_model", 0, 0.9)])
    made = paper_tables(load_runs(folder), None, claims)
    assert row(made["comparison"], "new_model")["parameters"] == "461,091"
