"""Comparisons: intervals and p on simulated results whose truth is known; Holm by hand; the file and its words."""

import json

import numpy as np
import pytest
from made_results import a_folder, a_run
from small_runs import write_tones

from kwslib.data.corpus import load_corpus
from kwslib.io import KwsError
from paper import comparisons, levels, statistics
from paper.longer import longer_table
from paper.results import load_runs

SPEAKERS, CLIPS = 60, 8


def simulated(rng, seeds, skill, spread=0.0):
    """The tables of some seeds: a speaker's clips are right with probability skill (SPEAKERS,) plus the seed's luck."""
    luck = rng.normal(0, spread, size=(seeds, 1))
    right = rng.binomial(CLIPS, np.clip(skill + luck, 0, 1))
    return [{str(i): (int(r), CLIPS) for i, r in enumerate(row)} for row in right]


def test_the_interval_of_a_mean_covers_the_truth():
    """Speakers differ and so do seeds; the truth is 0.8. The interval may be too wide, never much too narrow."""
    rng, covered, clips = np.random.default_rng(0), 0, 0
    for _ in range(300):
        tables = simulated(rng, 3, rng.beta(8, 2, SPEAKERS), 0.01)
        low, high = statistics.interval_of(statistics.mean_draws({"a": tables}, draws=500)["a"])
        covered += low <= 0.8 <= high
        accuracy = np.mean([comparisons.share(t) for t in tables])
        clips += abs(accuracy - 0.8) < 1.96 * np.sqrt(0.16 / (3 * SPEAKERS * CLIPS))
    assert 0.92 < covered / 300 < 0.99
    assert clips / 300 < 0.75  # as if every clip of every seed were independent


@pytest.mark.parametrize("seeds, spread", [(3, 0.02), (5, 0.02), (3, 0.05)])
def test_the_interval_of_a_difference_covers_it_and_p_is_uniform_or_careful(seeds, spread):
    """Speakers are hard for both models alike; the models do not differ, but seeds do."""
    rng, covered, ps = np.random.default_rng(1), 0, []
    for _ in range(300):
        skill = rng.beta(8, 2, SPEAKERS)
        groups = {m: simulated(rng, seeds, skill, spread) for m in ("a", "b")}
        (found,) = comparisons.compare(groups, [("a", "b")], draws=500)
        covered += found["interval"][0] <= 0 <= found["interval"][1]
        ps.append(found["p"])
    assert covered / 300 > 0.92
    for level in (0.05, 0.25, 0.5, 0.75):  # never more often small than it says, beyond what 300 trials can tell
        assert np.mean(np.array(ps) <= level) < level + 0.055


def test_a_real_difference_is_found():
    rng = np.random.default_rng(2)
    skill = rng.beta(8, 2, SPEAKERS)
    groups = {"a": simulated(rng, 3, np.clip(skill + 0.1, 0, 1)), "b": simulated(rng, 3, skill)}
    (found,) = comparisons.compare(groups, [("a", "b")])
    assert found["interval"][0] > 0 and found["p"] < 0.001 and comparisons.verdict(found) == "better"
    (back,) = comparisons.compare(groups, [("b", "a")])
    assert back["difference"] == -found["difference"] and comparisons.verdict(back) == "worse"
    assert back["interval"] == pytest.approx([-end for end in found["interval"][::-1]])


def test_speakers_are_shared_by_both_sides_and_are_the_unit():
    """The same answers cancel in every draw; one speaker's hundred clips are one piece of evidence."""
    table = {str(i): (i % 5, 5) for i in range(20)}
    draws = statistics.mean_draws({"a": [table], "b": [dict(table)]}, 1000)
    assert np.array_equal(draws["a"], draws["b"]) and draws["a"].std() > 0.03
    groups = {"a": [{s: (100, 100) for s in "1234"}] * 3, "b": [{"1": (0, 100), **{s: (100, 100) for s in "234"}}] * 3}
    (found,) = comparisons.compare(groups, [("a", "b")])
    assert found["p"] > 0.2  # (3/4)^4 of the draws lack that speaker


def test_a_models_draws_do_not_depend_on_the_others_and_vary_as_the_theory_says():
    rng = np.random.default_rng(3)
    tables = simulated(rng, 3, np.full(SPEAKERS, 0.8), 0.1)
    alone = statistics.mean_draws({"a": tables})["a"]
    assert np.array_equal(alone, statistics.mean_draws({"b": tables[:1], "a": tables})["a"])
    shares = np.array([comparisons.share(t) for t in tables])
    by_seeds = shares.var(ddof=1) / 3  # the variance of a mean of three
    assert alone.var() == pytest.approx(by_seeds + 0.16 / (SPEAKERS * CLIPS), rel=0.3) and by_seeds / alone.var() > 0.5


def test_holm_by_hand():
    """0.01 x 4; 0.03 x 3; 0.04 x 2 = 0.08 is raised to 0.09; 0.5 x 1. Two p of 0.6 are 1."""
    assert statistics.holm([0.04, 0.01, 0.5, 0.03]) == pytest.approx([0.09, 0.04, 0.5, 0.09])
    assert statistics.holm([0.6, 0.6]) == [1.0, 1.0] and statistics.holm([0.02]) == [0.02] and statistics.holm([]) == []


def test_two_sided_p_by_hand():
    assert statistics.two_sided_p(np.r_[-np.ones(30), np.ones(970)]) == pytest.approx(0.06)
    assert statistics.two_sided_p(np.ones(1000)) == pytest.approx(0.002) and statistics.two_sided_p(np.zeros(10)) == 1


def test_effective_clips_follow_the_formula_of_equal_clusters():
    """All alike within a speaker: as many clips as speakers. Independent: nearly all. Kish: 1 + (b - 1) rho."""
    alike = {str(i): (10 * (i % 4 > 0), 10) for i in range(100)}
    assert statistics.effective_clips(alike) == pytest.approx(100, rel=0.02)
    rng = np.random.default_rng(4)
    apart = {str(i): (int(rng.binomial(10, 0.8)), 10) for i in range(2000)}
    assert statistics.effective_clips(apart) == pytest.approx(20_000, rel=0.1)
    rho = 1 / 11  # of Beta(8, 2)
    some = {str(i): (int(rng.binomial(10, rng.beta(8, 2))), 10) for i in range(2000)}
    assert statistics.effective_clips(some) == pytest.approx(20_000 / (1 + 9 * rho), rel=0.1)
    assert statistics.effective_clips({"a": (5, 5), "b": (4, 4)}) == 9


# -- the file


def many(*models):
    return [a_run(m, seed, base + 0.02 * seed) for m, base, n in models for seed in range(n)]


def test_the_pairs_are_those_with_the_anchors_and_the_neighbours():
    table = {name: [{"s": (right, 10)}] for name, right in zip(("x", "mamba_light", "y", "z"), (9, 7, 5, 3))}
    assert comparisons.pairs_of(table) == [("mamba_light", "x"), ("mamba_light", "y"), ("mamba_light", "z"), ("y", "z")]


def test_a_profile_is_compared(tmp_path, capsys):
    runs = many(("mamba_light", 0.8, 3), ("kwt_1", 0.6, 3), ("bc_resnet_1", 0.78, 1))
    runs.append(a_run("ds_cnn", 0, 0.9))
    del runs[-1]["test"]["by_speaker"]
    folder = a_folder(tmp_path / "made", runs)
    assert comparisons.main(["made", "--results", str(tmp_path)]) == 0
    found = json.loads((folder / "comparisons.json").read_text())
    assert found == json.loads(json.dumps(comparisons.compare_runs(load_runs(folder))))  # the same every time
    assert found["not_known"] == ["ds_cnn"] and found["speakers"] == 7 and found["draws"] == 10_000
    by_pair = {tuple(e["models"]): e for e in found["comparisons"]}
    kwt, single = by_pair["mamba_light", "kwt_1"], by_pair["mamba_light", "bc_resnet_1"]
    assert (
        kwt["difference"] == pytest.approx(0.2) and kwt["interval"][0] > 0 and kwt["holm"] == kwt["p"]
    )  # one p: itself
    assert single["p"] is None and single["holm"] is None and len(single["interval"]) == 2
    text = capsys.readouterr().out
    assert (
        "After 3 epochs, Mamba-Light is better than KWT-1: +20.00 points" in text
        and "After 3 epochs, Mamba-Light minus BC-ResNet-1, one seed:" in text
    )


def test_models_are_compared_after_the_same_epochs_alone(tmp_path):
    runs = many(("mamba_light", 0.8, 3), ("kwt_1", 0.6, 3))
    more = [run | {"training": {"epochs": 60}} for run in many(("mamba_light", 0.9, 1), ("kwt_1", 0.5, 1))]
    found = comparisons.compare_runs(runs + more)
    assert [(e["epochs"], e["seeds"]) for e in found["comparisons"]] == [("3", [3, 3]), ("60", [1, 1])]
    assert [(e["model"], e["epochs"]) for e in found["models"]] == [
        (model, epochs) for epochs in ("3", "60") for model in ("mamba_light", "kwt_1")
    ]
    short, long = found["comparisons"]
    assert short["difference"] == pytest.approx(0.2) and long["difference"] == pytest.approx(0.4)
    assert comparisons.comparison_sentence(long).startswith("After 60 epochs, Mamba-Light minus KWT-1, one seed:")


def test_a_longer_training_stands_beside_the_shorter_one():
    """Of the same model: one row for each that has been trained for both, the best after the longer one first."""
    pytest.importorskip("pandas")
    runs = many(("mamba_light", 0.8, 3), ("kwt_1", 0.6, 3), ("bc_resnet_1", 0.7, 1))
    more = [
        run | {"training": {"epochs": 60}}
        for run in many(("kwt_1", 0.5, 1), ("mamba_light", 0.9, 1), ("retnet", 0.5, 1))
    ]
    df, caption = longer_table(runs, more)
    assert list(df["model"]) == ["Mamba-Light", "KWT-1"] and list(df["seeds"]) == ["3 and 1"] * 2
    assert list(df["test (%), after 3"]) == ["82.00", "62.00"] and list(df["test (%), after 60"]) == ["90.00", "50.00"]
    better, worse = df["test, difference (points)"]  # both intervals are far from zero; the clips of a_run are few
    assert float(better.split()[0]) == pytest.approx(8, abs=0.5) and "(+" in better
    assert float(worse.split()[0]) == pytest.approx(-12, abs=0.5) and "(-" in worse
    assert "After 3 and after 60 epochs" in caption


def test_a_difference_that_is_not_significant_is_called_so_with_its_corrected_p():
    entry = {"models": ["kwt_1", "ds_cnn"], "seeds": [3, 3], "difference": 0.01, "interval": [0.001, 0.02]}
    sentence = comparisons.comparison_sentence(entry | {"p": 0.03, "holm": 0.09})
    assert (
        "no significant difference between KWT-1 and DS-CNN-L: +1.00 points (+0.10 to +2.00, corrected p = 0.090)."
        in sentence
    )
    assert comparisons.verdict(entry | {"p": 0.03, "holm": 0.09, "seeds": [2, 5]}) == "two seeds"


def test_old_files_say_that_it_is_not_known(tmp_path):
    runs = [a_run("kwt_1", 0, 0.9), a_run("ds_cnn", 0, 0.9)]
    for run in runs:
        del run["test"]["by_speaker"]
    assert comparisons.comparison_tables(runs) == {}
    found = comparisons.compare_runs(load_runs(a_folder(tmp_path / "old", runs)))
    assert found["comparisons"] == found["models"] == [] and found["not_known"] == ["ds_cnn", "kwt_1"]
    with pytest.raises(KwsError, match="test them again"):
        comparisons.main(["old", "--results", str(tmp_path)])


def test_one_speaker_is_left_out(claims):
    pytest.importorskip("pandas")
    runs = many(("mamba_light", 0.9, 2))
    for run, right in zip(runs, (2, 4)):
        run["test"]["by_speaker"] = {"a": [9, 10], comparisons.SPEAKER: [right, 10]}
    found = comparisons.without_speaker(comparisons.known_groups(runs))["mamba_light"]
    assert found.pop("intervals") == [pytest.approx([0.2, 0.9]), pytest.approx([0.9, 0.9])]  # either speaker twice
    assert found == {"clips": 10, "wrong": 7, "with": pytest.approx(0.6), "without": pytest.approx(0.9), "seeds": 2}
    df, caption = comparisons.comparison_tables(runs)["without_speaker"]
    assert list(df.iloc[0]) == [
        "Mamba-Light",
        "3",
        "2",
        "60.00 (20.00–90.00)",
        "90.00 (90.00–90.00)",
        "+30.00",
        "10",
        "7.0",
    ]
    assert "without 3f2b358d (%)" in df.columns and "effective n" in caption
    assert comparisons.without_speaker(comparisons.known_groups(runs), "nobody") == {}


def test_levels_of_a_speakers_clips(tmp_path):
    """A quiet hiss, and a tone of amplitude 0.1 for half a second: -23 dB over the second."""
    corpus = write_tones(tmp_path / "tones", takes=2)
    held = load_corpus(corpus)
    speaker = str(held.speakers[held.splits == "testing"][0])
    waves = np.load(corpus / "waves.npy")
    quiet = (held.speakers == speaker) & (held.splits == "testing")
    waves[quiet] = np.tile(np.array([33, -33], np.int16), 8000)  # of 32768: -60 dB, alike throughout
    np.save(corpus / "waves.npy", waves)
    found = levels.levels(corpus, sorted(set(held.words)), speaker)
    assert found["median_db"] == pytest.approx(20 * np.log10(33 / 32768), abs=0.01)
    assert found["clips"] == quiet.sum() and found["quieter_speakers"] == 0
    assert found["flat"]["clips"] == quiet.sum() and found["others_median_db"] > -40
    with pytest.raises(KwsError, match="no test clip of speaker nobody"):
        levels.levels(corpus, sorted(set(held.words)), "nobody")
    titles = [ax.get_title() for ax in levels.waves_figure(corpus, sorted(set(held.words)), speaker).axes]
    of_others = [title for title in titles[-5:] if title]
    assert len([title for title in titles if title]) == found["clips"] + len(of_others) and of_others
