"""From a parameter file to the chapter beyond clean clips: grid, robustness, streaming, release, search."""

import json

import numpy as np
import pytest
import yaml
from small_runs import write_tones

import kwslib
from kwslib.io import KwsError, read_json, write_json
from paper import comparisons, grid, release, robustness, search
from paper.reports import robustness as robustness_report
from paper.reports import robustness_figures
from paper.spotting import streaming
from paper.writing import write_table

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = {"high": 2400, "low": 300, "other": 900}  # tones; the last is no keyword
MODELS = ["keyword_cnn", "mamba_light"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    speakers = {"training": 10, "validation": 3, "testing": 8}
    root = tmp_path_factory.mktemp("beyond") / "tones"
    return write_tones(root, WORDS, speakers, takes=3, hiss=300, noise_seconds=40)


@pytest.fixture(scope="module")
def params(corpus):
    path = corpus.parent / "params.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "profile": "made",
                "root": ".",
                "params": "params.yaml",
                "corpus": {"source": str(corpus), "options": {}},
                "task": ["high", "low"],
                "variants": MODELS,
                "seeds": [0],
                "common": {},
                "each": {m: {} for m in MODELS},
                "benchmark": {},
                "trials": {"plain": {}, "mixed": {"variant": "keyword_cnn", "mixup": 0.3}},
                "train": {
                    "epochs": 3,
                    "batch_size": 12,
                    "lr": 3e-3,
                    "precision": "fp32",
                    "threads": 1,
                    "background_snr": None,
                },
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def trained(corpus, params):
    """Folder of results and checkpoints of both models."""
    out = corpus.parent / "carried"
    from pathlib import Path

    found = grid.run_grid(params, out, corpus=corpus, root=Path(__file__).resolve().parent.parent)
    assert found == [(m, 0, None) for m in MODELS]
    for model in MODELS:
        write_json(
            out / "robustness" / f"{model}-0.json",
            robustness.measure_robustness(out / "checkpoints" / f"{model}-0", corpus),
        )
        write_json(
            out / "streaming" / f"{model}-0.json",
            streaming.measure_streaming(out / "checkpoints" / f"{model}-0", corpus, hours=0.035),
        )
    return out


def test_a_grid_writes_what_is_carried_home_and_does_nothing_twice(trained, params, corpus, capsys, monkeypatch):
    for model in MODELS:
        assert read_json(trained / "runs" / f"{model}-0.json", "run")["test"]["n"] == 48
        assert kwslib.load(trained / "checkpoints" / f"{model}-0").labels == ["high", "low"]
        assert (trained / "history" / f"{model}-0.csv").exists()
    monkeypatch.setattr(grid, "train", lambda *a, **k: pytest.fail("it was trained already"))
    assert grid.run_grid(params, trained, corpus=corpus, root=".") == [(m, 0, None) for m in MODELS]


def test_a_grid_goes_on_after_a_failure(params, corpus, tmp_path, capsys):
    def fail(config, progress):
        raise KwsError("the disk is full")

    found = grid.run_grid(params, tmp_path, ["no_such_model", "keyword_cnn"], [0], corpus, ".", epochs=1)
    assert "no_such_model" in found[0][2] and found[1] == ("keyword_cnn", 0, None)
    assert "no_such_model-0: " in capsys.readouterr().err


def test_robustness_of_a_model(trained):
    entry = read_json(trained / "robustness" / "mamba_light-0.json", "robustness")
    run = read_json(trained / "runs" / "mamba_light-0.json", "run")
    assert entry["clean"] == {
        k: run["test"][k] for k in ("n", "speakers", "accuracy", "interval")
    }  # the same clips and model
    assert np.mean(np.array(entry["predictions"]) == entry["targets"]) == pytest.approx(run["test"]["accuracy"])
    assert set(entry["snr"]) == {"pink", "babble", "recorded"} and entry["open_set"]["unknown_clips"] == 24
    assert run["config"]["background_snr"]  # the recipe's own
    assert entry["seen"] == {"pink": True, "babble": False, "recorded": False}
    assert entry["shift"]["0"]["n"] == 48 and set(entry["cut"]) == {str(s) for s in robustness.CUTS}
    assert "machine" not in entry and json.dumps(
        robustness.measure_robustness(trained / "checkpoints/mamba_light-0", trained.parent / "tones")["snr"]
    ) == json.dumps(entry["snr"])


def test_streaming_of_a_model(trained):
    light, cnn = (read_json(trained / "streaming" / f"{m}-0.json", "streaming") for m in ("mamba_light", "keyword_cnn"))
    assert set(light["ways"]) == {"windows", "carried"} and "carries no state" in cnn["ways"]["carried"]["missing"]
    way = light["ways"]["windows"]
    assert way["test"]["threshold"] == way["validation"]["threshold"] and way["test"]["n"] > 3
    assert way["test"].items() >= next(p for p in way["curve"] if p["threshold"] == way["test"]["threshold"]).items()
    low, high = way["test"]["miss_interval"]
    assert 0 <= low <= way["test"]["miss_rate"] <= high <= 1 and way["test"]["speakers"] == 8


def test_tables_figures_and_findings(trained, tmp_path):
    found = robustness_report.load_beyond(trained)
    built = robustness_report.robustness_tables(found)
    drawn = robustness_figures.robustness_figures(found)
    assert set(built) == {"robustness", "streaming"} and set(drawn) == {"conditions", "confidence", "streaming"}
    for name, (df, caption) in built.items():
        write_table(df, tmp_path, name, caption)
        assert len((tmp_path / f"{name}.md").read_text().splitlines()) == len(df) + 4
    accuracies = {e["model"]: e["clean"]["accuracy"] for e in found["robustness"]}
    df, caption = built["robustness"]
    conditions = df.set_index("model").loc["Mamba-Light"]
    assert conditions.iloc[1].startswith(f"{100 * accuracies['mamba_light']:.2f} [")
    assert [cell.split()[-1] for cell in conditions.iloc[2:5]] == ["(seen)", "(unseen)", "(unseen)"]
    assert "48 test clips of 8 speakers" in caption and "one seed of each model" in caption
    assert "synthetic" in df.columns[2]
    text = robustness_report.findings(found)
    assert f"{100 * max(accuracies.values()):.2f}" in text and "false alarms an hour" in text
    assert all("n = 48" in caption for name, (_, caption) in drawn.items() if name != "streaming")


def test_every_finding_says_after_how_many_epochs_and_groups_are_kept_apart(trained):
    found = robustness_report.load_beyond(trained)
    assert {e["epochs"] for kind in found.values() for e in kind} == {3}
    lines = robustness_report.findings(found).split("\n")
    assert all(line.startswith("- After 3 epochs, ") for line in lines)
    longer = [json.loads(json.dumps(e)) | {"epochs": 60} for e in found["robustness"]]
    both = {**found, "robustness": [*found["robustness"], *longer]}
    df, caption = robustness_report.robustness_tables(both)["robustness"]
    assert list(df["epochs"]) == ["3", "3", "60", "60"] and "after 3 or 60 epochs; one seed" in caption
    assert {line[: len("- After 60")] for line in robustness_report.findings(both).split("\n")} == {
        "- After 3 ",
        "- After 60",
    }
    df, _ = robustness_report.robustness_tables(found)["streaming"]
    assert not any("10 false alarms" in column for column in df.columns)  # chosen on the test: not said


def test_masking_is_said_of_the_models_that_it_changes():
    def entry(model, *masked):
        cut = {s: {"masked": {"accuracy": a}, "padded": {"accuracy": 0.9}} for s, a in zip(("0.3", "0.6"), masked)}
        return {"model": model, "cut": cut}

    sentence = robustness_report.masking_sentence
    assert "none of the models" in sentence([entry("kwt_1", 0.9, 0.9)])
    text = sentence([entry("kwt_1", 0.9, 0.9), entry("mamba_light", 0.91, 0.88), entry("ds_cnn", 0.9, 0.9)])
    assert "-2.00 (Mamba-Light, 0.6 s) to +1.00 (Mamba-Light, 0.3 s) points; that of the 2 other models" in text


def test_a_speaker_is_reported_with_and_without(trained, monkeypatch):
    found = robustness_report.load_beyond(trained)
    assert "of speaker" not in robustness_report.findings(found).split("synthetic stream")[0]
    entry = found["robustness"][0]
    monkeypatch.setattr(robustness_report, "SPEAKER", entry["speakers"][0])
    monkeypatch.setattr(comparisons.without_speaker, "__defaults__", (entry["speakers"][0],))
    text = robustness_report.findings(found)
    clips = entry["speakers"].count(entry["speakers"][0])
    assert f"of the {clips} test clips of speaker {entry['speakers'][0]}; without these" in text


def test_a_shipped_model_is_small_and_says_what_it_is(trained, corpus, tmp_path):
    kept = release.release_model(trained / "checkpoints/mamba_light-0", trained, corpus, tmp_path)
    assert abs(kept["full"] - kept["half"]) <= release.MOST
    assert (tmp_path / "mamba_light.safetensors").stat().st_size < 1_000_000
    wave = np.sin(2 * np.pi * 2400 * np.arange(16000) / 16000).astype(np.float32) * 0.1
    whole, half = (
        kwslib.load(p).predict(wave, 16000)
        for p in (trained / "checkpoints/mamba_light-0", tmp_path / "mamba_light.safetensors")
    )
    assert [w for w, _ in whole] == [w for w, _ in half] and half[0][1] == pytest.approx(whole[0][1], abs=0.01)
    run, text = read_json(trained / "runs/mamba_light-0.json", "run"), (tmp_path / "mamba_light.md").read_text()
    assert f"{100 * run['test']['accuracy']:.2f} %" in text and "CC0" in text and "**Limits.**" in text


def test_trials_are_laid_side_by_side(params, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        search.Profile,
        "config",
        lambda self, variant, seed, _made=search.Profile.config, **k: _made(
            self, variant, seed, **{**k, "corpus": corpus, "out": tmp_path / k["out"].name}
        ),
    )
    monkeypatch.setattr(search, "write_json", lambda path, result: write_json(tmp_path / "trials" / path.name, result))
    for name in ("plain", "mixed"):
        result = search.run_trial(params, name, ".")
        assert "test" not in result and result["validation"]["n"] == 18
    text = search.trials_table(tmp_path)
    assert "n = 18 clips; the test split was not read" in text and "| mixed | keyword_cnn | 0 | mixup 0.3 | 3 |" in text
    with pytest.raises(KwsError, match="trial 'best' is not in"):
        search.run_trial(params, "best", ".")
