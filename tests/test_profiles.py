"""Profiles: right ones load, and every wrong one ends in a sentence that names the key or the file."""

import json
import re
from pathlib import Path

import pytest

from kwslib.io import KwsError
from kwslib.training.config import parse_yaml
from paper.profile import Profile

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted([ROOT / "params.yaml", *(ROOT / "profiles").glob("*/params.yaml")])


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.parent.name)
def test_profiles_and_their_runs_load(path):
    profile = Profile(path, ROOT)
    assert profile.variants and profile.seeds
    for variant in profile.variants:
        for seed in profile.seeds:
            config = profile.config(variant, seed)
            assert (config.model, config.seed) == (variant, seed)
            assert Path(config.out) == profile.checkpoint(variant, seed) and Path(config.corpus) == profile.data


def test_every_row_of_subset_has_the_rate_that_won_on_validation(root):
    """Of profile rates' trials of its model; Medium, Large and "as run" take what their Small found."""
    found = {}
    for path in (root / "results/rates/trials").glob("*.json"):
        trial = json.loads(path.read_text())
        found.setdefault(trial["variant"], []).append((trial["validation"]["accuracy"], trial["changes"]["lr"]))
    subset = Profile(root / "profiles/subset/params.yaml", root)
    for variant in subset.variants:
        trials = found[re.sub("(medium|large|small_as_run)$", "small", variant)]
        assert len(trials) >= 2 and subset.each[variant]["lr"] == max(trials)[1], variant


def test_what_an_experiment_sets_wins_over_all(tmp_path):
    text = PROFILES[0].read_text()
    assert "{epochs: null" in text
    plain, changed = (
        Profile(written(tmp_path, text)),
        Profile(written(tmp_path, text.replace("{epochs: null", "{epochs: 1"))),
    )
    for variant in plain.variants:
        before, after = plain.config(variant, 0), changed.config(variant, 0)
        assert after.epochs == 1 < before.epochs and after == before.model_copy(update={"epochs": 1})


@pytest.mark.parametrize(
    "key, value",
    [
        *(("profile", name) for name in ("x; touch FILE", "..", "$(touch FILE)", "", "-rf")),
        *(("seeds", [seed]) for seed in ("0; ls", -1, None)),
        ("variants", ["a b"]),
        ("trials", {"a;b": {}}),
    ],
)
def test_names_that_would_reach_a_shell_are_refused(tmp_path, key, value):
    """dvc puts them into commands; `make repro` asks first."""
    values = parse_yaml(PROFILES[0].read_text()) | {key: value}
    with pytest.raises(KwsError, match=f"recipe.yaml: key {key} holds .*; names are letters, digits"):
        Profile(written(tmp_path, json.dumps(values)))


def test_wrong_profile(tmp_path):
    with pytest.raises(KwsError, match="none.yaml does not exist"):
        Profile(tmp_path / "none.yaml")
    good = PROFILES[0].read_text()
    with pytest.raises(KwsError, match="unknown key 'colour'"):
        Profile(written(tmp_path, good + "\ncolour: red\n"))
    with pytest.raises(KwsError, match="recipe.yaml: key .* missing"):
        Profile(written(tmp_path, "profile: quick\n"))
    for broken in ("profile: [", "just words"):
        with pytest.raises(KwsError, match="recipe.yaml"):
            Profile(written(tmp_path, broken))


# -- learning rate
