"""The table of deviations: its two sides, and a reason where they differ and nowhere else."""

import math
from collections import Counter

import pytest

from kwslib.io import KwsError
from kwslib.models.registry import MODELS
from paper import deviations
from paper.results import label_of

PAPER = ["mamba_mel_small", "mamba_mel_medium", "mamba_mel_large", "retnet", "mobilenet_v2_075"]
ROWS = [*PAPER, *(f"{name}_as_run" for name in PAPER), "mamba_mfcc_small", "mamba_mfcc_medium", "mamba_mfcc_large"]
ROWS += ["keyword_cnn", "bc_resnet_1", "bc_resnet_3", "bc_resnet_8", "kwt_1", "matchboxnet", "ds_cnn"]


@pytest.fixture(scope="module")
def published():
    pytest.importorskip("torchvision")
    return deviations.load_published()


@pytest.fixture(scope="module")
def found(published):
    return deviations.deviations()


def test_every_row_of_the_paper_and_every_rival_is_there(published):
    assert set(ROWS) <= published["rows"].keys() <= MODELS.keys()
    assert MODELS.keys() - published["rows"].keys() == {"mamba_light"}  # ours: published by nobody


def test_a_difference_has_a_reason_and_what_is_the_same_has_none(published, found):
    used = set()
    for name, row in published["rows"].items():
        differing = {e["key"] for e in found if e["model"] == name and e["key"] != "same"}
        assert differing == {k for k, v in deviations.ours(name, row).items() if k in row and v != row[k]} - {"source"}
        assert row.get("why", {}).keys() <= differing, name
        used |= differing - row.get("why", {}).keys()
    assert all(e["why"] for e in found) and used == published["why"].keys()


def test_our_side_is_that_of_the_models(found):
    """Values by hand: centred frames are 1 + N // hop, the front-end halves them; 15,912 steps of warm-up are 12 %."""
    by = {(e["model"], e["key"]): e for e in found}
    run, described = (by[f"mamba_mel_small{kind}", "same"]["here"] for kind in ("_as_run", ""))
    assert {"win_length 256", f"frames {1 + 16_000 // 128}", f"blocks_see {126 // 2}"} <= set(run)
    assert {"win_length 2,048", f"frames {1 + 16_000 // 256}", f"blocks_see {63 // 2}"} <= set(described)
    assert "parameters 462,180 with 36 classes" in run
    assert by["ds_cnn", "steps"]["here"] == 35 * (84_843 // 100)  # the last, partial batch is left out
    assert by["kwt_1", "steps"]["published"] == 23_438
    assert by["bc_resnet_1", "classes"]["here"] == 35 and "frames 101" in by["bc_resnet_8", "same"]["here"]
    assert all(e["here"] == "auto" for e in found if e["key"] == "precision")


def test_our_own_habits_are_listed(published):
    caption = deviations.deviation_table()[1]
    assert all(habit in caption for habit in ("lengths valid", "decay matrices", "ema 0.999", "guard rollback"))


def test_the_rates_of_kwt_are_as_near_as_the_table_says():
    def ours(t):
        return t / 0.07 if t < 0.07 else (1 + math.cos(math.pi * (t - 0.07) / 0.93)) / 2

    gaps = [abs(ours(t) - min(1, t / 0.07) * (1 + math.cos(math.pi * t)) / 2) for t in (i / 1000 for i in range(1001))]
    assert max(gaps) < 0.07


def test_what_is_fixed_is_so():
    from kwslib.data.features import WaveToSpec
    from kwslib.training.config import Config

    mel = WaveToSpec().mel[::2]  # (1025, 128): the last band's last weight lies next to 8,000 Hz
    assert mel[-2, -1] > 0 and deviations.FIXED["mel_range"] == [0, 8000]
    assert not deviations.FIXED.keys() & Config.model_fields.keys()


def test_published_rows_agree_with_the_claims(published, claims):
    for name, entry in claims["models"].items():
        true, counts = entry["true_parameters"], published["rows"][name]["parameters"]
        assert true.get(36, counts[36]) == counts[36], name
        if name in published["facts"]["logs"]:
            log = published["facts"]["logs"][name]
            assert log["best"] in (entry["claimed"]["accuracy"], entry.get("best_validation")), name


def test_a_difference_without_a_reason_and_a_key_of_nobody_are_refused(published, monkeypatch):
    row = published["rows"]["ds_cnn"] | {"lr": 1.0}
    monkeypatch.setattr(deviations, "load_published", lambda: {"rows": {"ds_cnn": row}, "why": published["why"]})
    with pytest.raises(KwsError, match="lr of ds_cnn is 0.0005, published 1.0; say why"):
        deviations.deviations.__wrapped__()
    with pytest.raises(KwsError, match="key 'colour' in row ds_cnn"):
        deviations.ours("ds_cnn", {"colour": 1})


def test_the_table_names_models_and_sources(found):
    pytest.importorskip("pandas")
    df, caption = deviations.deviation_table()
    assert list(df.columns) == ["models", "key", "as published", "here", "why"]
    same, differs = df[df["key"] == "same"], df[df["key"] != "same"]
    assert list(same["models"]) == [label_of(entry["model"]) for entry in found if entry["key"] == "same"]
    assert list(df.index[df["key"] == "same"]) == list(range(len(differs), len(df)))
    alike = {(e["key"], str(e["published"]), str(e["here"]), e["why"]) for e in found if e["key"] != "same"}
    assert len(differs) == len(alike) == len(differs.drop_duplicates(["key", "as published", "here", "why"]))
    times = Counter(entry["model"] for entry in found if entry["key"] != "same")
    said = "; ".join(differs["models"]).replace("KWS (both)", "KWS; RetNet-KWS, as run").split("; ")
    assert said.count("RetNet-KWS") == said.count("RetNet-KWS, as run") == times["retnet"] == times["retnet_as_run"]
    assert said.count("KWT-1") == times["kwt_1"] and said.count("DS-CNN-L") == times["ds_cnn"]
    mask = same.set_index("models").loc["KWT-1", "as published"]
    assert "freq_mask 2, 0–6 wide" in mask and "speed 0.85 to 1.15" in mask and "recipe" in caption


def test_names_in_one_line():
    both = ["retnet_as_run", "retnet", "kwt_1"]
    assert deviations.named(both) == "RetNet-KWS (both); KWT-1"
    assert deviations.named(["retnet_as_run"]) == "RetNet-KWS, as run" and deviations.named(["kwt_1"]) == "KWT-1"
