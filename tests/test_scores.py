"""Scores beyond accuracy, against scikit-learn and cases whose answer is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from kwslib import metrics
from paper import robustness, statistics


def test_report_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(4, size=200), rng.integers(4, size=200)
    report = metrics.report(targets, predictions, rng.integers(20, size=200), list("abcd"))
    assert report["accuracy"] == pytest.approx(accuracy_score(targets, predictions))
    assert report["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro"))
    assert report["confusion"] == confusion_matrix(targets, predictions).tolist()


def test_area_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    known, unknown = np.round(rng.normal(1, 1, 300), 1), np.round(rng.normal(0, 1, 200), 1)  # with ties
    found = statistics.roc(known, unknown)
    truth = np.r_[np.ones(300), np.zeros(200)]
    assert found["area"] == pytest.approx(roc_auc_score(truth, np.r_[known, unknown]))
    assert np.all(np.diff(found["known_accepted"]) >= 0) and found["known_accepted"][-1] == 1
    threshold = np.quantile(unknown, 0.95, method="higher")
    assert found["known_at_5"] == pytest.approx((known > threshold).mean()) and (unknown > threshold).mean() <= 0.05


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    error, diagram = statistics.calibration_error(p, torch.tensor([0, 1, 0, 0]))
    assert error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    assert [d["n"] for d in diagram] == [2, 2] and diagram[0]["accuracy"] == 1 and diagram[1]["accuracy"] == 0.5


def test_temperature_corrects_confidence_and_nothing_else():
    torch.manual_seed(0)
    logits = torch.randn(4000, 5)
    targets = torch.distributions.Categorical(logits=logits).sample()
    found = statistics.calibration(3 * logits[:2000], targets[:2000], 3 * logits[2000:], targets[2000:])
    assert found["temperature"] == pytest.approx(3, rel=0.1)
    assert found["error_scaled"] < 0.03 < 0.1 < found["error"]


# -- what is done to the clips


def sines(n=4):
    t = torch.arange(16000) / 16000
    return torch.stack([0.3 * torch.sin(2 * torch.pi * f * t) for f in (440, 1000, 2500, 6000)])[:n]


@pytest.mark.parametrize("snr", robustness.SNRS)
def test_noise_is_mixed_at_the_ratio_asked_for(snr):
    waves, noise = sines(), robustness.pink(4, 16000, torch.Generator().manual_seed(0))
    out = robustness.mixed(waves, noise, snr)
    gain = (out * waves).sum(1) / waves.square().sum(1)  # what the clip was scaled by; noise and tone hardly correlate
    rest = out - gain[:, None] * waves
    found = 10 * torch.log10((gain[:, None] * waves).square().mean(1) / rest.square().mean(1))
    torch.testing.assert_close(found, torch.full((4,), float(snr)), atol=0.3, rtol=0)
    assert out.abs().max() <= 1


def test_pink_noise_falls_three_decibels_an_octave():
    power = torch.fft.rfft(robustness.pink(200, 16000, torch.Generator().manual_seed(0))).abs().square().mean(0)
    octaves = torch.stack([power[2**k : 2 ** (k + 1)].mean() for k in range(5, 13)])
    assert torch.allclose(octaves[:-1] / octaves[1:], torch.tensor(2.0), rtol=0.1)


def test_babble_is_of_six_other_speakers():
    rng = np.random.default_rng(0)
    speakers = np.repeat([f"s{i}" for i in range(9)], rng.integers(1, 12, 9))
    own = np.array(["s0", "s8", "s3", "nobody"] * 50)
    picks = robustness.talkers(speakers, own, torch.Generator().manual_seed(0))
    heard = speakers[picks.numpy()]
    assert heard.shape == (200, 6) and all(len(set(row)) == 6 and who not in row for row, who in zip(heard, own))
    assert set(picks.ravel().tolist()) == set(range(len(speakers)))  # every clip of every speaker comes up
    again = robustness.talkers(speakers, own, torch.Generator().manual_seed(0))
    assert torch.equal(picks, again)


def test_babble_has_all_words_of_the_test_split_and_needs_six_others():
    from types import SimpleNamespace

    rng = np.random.default_rng(0)
    waves = (3000 * np.sin(np.arange(16000) / np.arange(2, 18)[:, None])).astype(np.int16)
    speakers, splits = np.array([f"s{i % 8}" for i in range(16)]), np.array(["testing"] * 16)
    corpus = SimpleNamespace(waves=waves, speakers=speakers, splits=splits)
    out = robustness.babble(corpus, speakers, torch.Generator().manual_seed(int(rng.integers(9))))
    unit = torch.from_numpy(waves / 32768).float()
    unit = unit / unit.square().mean(1, keepdim=True).sqrt()
    weights = torch.linalg.lstsq(unit.T, out.T).solution.T * 6  # how often each clip is in each babble
    assert torch.allclose(weights, weights.round(), atol=1e-3) and (weights.round().sum(1) == 6).all()
    assert (weights.round().max(0).values == 1).all()  # no word is left out
    assert (weights[speakers[:, None] == speakers].abs() < 1e-3).all()
    splits[5::8] = "training"
    splits[6::8] = "validation"
    assert robustness.babble(corpus, speakers, torch.Generator()) is None  # six speakers are left, five others


def test_noise_is_seen_where_the_recipe_mixes_in_noise_files():
    assert robustness.seen_noises({"background_snr": None}, ["yes"]) == {
        "pink": False,
        "babble": False,
        "recorded": False,
    }
    for recipe, labels in (({"background_snr": [5, 20]}, []), ({"background_volume": 0.1}, []), ({}, ["_silence_"])):
        assert robustness.seen_noises(recipe, labels) == {"pink": True, "babble": False, "recorded": False}


def test_shift_moves_and_zeros_come_in():
    waves = torch.rand(2, 16000) + 1
    later, earlier = robustness.shifted(waves, 100), robustness.shifted(waves, -100)
    assert torch.equal(later[:, 1600:], waves[:, :-1600]) and later[:, :1600].abs().max() == 0
    assert torch.equal(earlier[:, :-1600], waves[:, 1600:]) and earlier[:, -1600:].abs().max() == 0
    assert torch.equal(robustness.shifted(waves, 0), waves)


def test_a_cut_keeps_the_loudest_part():
    waves = 0.01 * torch.randn(2, 16000)
    waves[0, 3000:7800] = 1.0
    waves[1, 11200:] = 1.0
    out = robustness.loudest(waves, 0.3)
    assert (out[:, :4800] == 1).all() and out[:, 4800:].abs().max() == 0
    assert torch.equal(robustness.loudest(waves, 1.0), waves)


def test_telephone_keeps_speech_and_drops_the_rest():
    low = 0.3 * torch.sin(2 * torch.pi * 80 * torch.arange(16000) / 16000)
    waves = torch.cat([sines(), low[None]])
    kept = robustness.telephone(waves).square().mean(1) / waves.square().mean(1)
    assert kept.shape == (5,) and (kept[1:3] > 0.5).all() and (kept[3:] < 0.05).all()


def test_speakers_are_drawn_whole_and_other_statistics_share_the_draws():
    speakers, right = np.repeat(np.arange(30), 4), np.repeat(np.arange(30) < 20, 4)
    means = metrics.speaker_bootstrap(right, speakers, draws=1500)
    assert means.shape == (1500,) and means.mean() == pytest.approx(2 / 3, abs=0.02)
    np.testing.assert_allclose(means * 30, np.round(means * 30))  # speakers, never single clips
    np.testing.assert_array_equal(
        metrics.speaker_bootstrap(right, speakers, 1500, statistic=lambda s, n: s), means * 120
    )
    assert np.array_equal(means, metrics.speaker_bootstrap(right, speakers, 1500))
    assert not np.array_equal(means, metrics.speaker_bootstrap(right, speakers, 1500, seed=1))
