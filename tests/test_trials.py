"""The table of what was tried to make Mamba-Light better."""

import pytest

from kwslib.io import KwsError, read_json
from paper import trials


@pytest.fixture
def noise(root):
    return read_json(root / "results/search/trials/noise.json", "trial")


def other(trial, name, seed, accuracy, **recipe):
    validation = trial["validation"] | {"accuracy": accuracy}
    return trial | {"trial": name, "seed": seed, "validation": validation, "recipe": trial["recipe"] | recipe}


def test_a_change_is_compared_with_the_unchanged_recipe_of_its_seeds(noise):
    plain = [other(noise, "noise", 0, 0.95), other(noise, "noise_1", 1, 0.97)]
    tried = [other(noise, "squeeze", 0, 0.96, model="light_squeeze")]
    tried += [other(noise, "squeeze_1", 1, 0.9705, model="light_squeeze"), other(noise, "shift", 0, 0.94)]
    df, caption = trials.trials_table([*tried, *plain])
    assert df["what is changed"].tolist() == [trials.WHAT[name] for name in ("squeeze", "noise", "shift")]
    assert df["difference (points)"].tolist() == ["+0.53", "–", "-1.00"] and df["seeds"].tolist() == ["2", "2", "1"]
    assert df["difference of each seed"].tolist() == ["+1.00, +0.05", "–", "-1.00"]
    assert df["parameters"][1] == "420,447" and float(df["MACs (M)"][0]) == pytest.approx(19.5, abs=0.1)
    assert "n = 2,244" in caption and "12 epochs" in caption


def test_what_cannot_be_told_is_refused(noise):
    with pytest.raises(KwsError, match="has no trial 'noise' with seed 1; run it"):
        trials.trials_table([noise, other(noise, "squeeze_1", 1, 0.96)])
    with pytest.raises(KwsError, match="has a trial 'new'; say in paper/trials.py what it changes"):
        trials.trials_table([noise, other(noise, "new", 0, 0.96)])
