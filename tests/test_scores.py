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


def test_paired_bootstrap_finds_a_difference_and_finds_none():
    rng = np.random.default_rng(2)
    speakers = rng.integers(150, size=1500)
    base = rng.random(1500) < 0.9
    better = base | (rng.random(1500) < 0.3)
    found = statistics.paired_bootstrap(better, base, speakers, 2000)
    assert found["difference"] == pytest.approx(better.mean() - base.mean())
    assert found["interval"][0] > 0 and found["p"] <= 0.01
    assert statistics.paired_bootstrap(base, better, speakers, 2000)["difference"] == -found["difference"]
    same = statistics.paired_bootstrap(base, base, speakers, 1000)
    assert same["difference"] == 0 and same["p"] == 1


def test_paired_bootstrap_resamples_speakers():
    """One speaker's hundred clips are one piece of evidence, not a hundred."""
    speakers = np.repeat([0, 1, 2, 3], 100)
    better, worse = np.ones(400), np.r_[np.zeros(100), np.ones(300)]
    assert statistics.paired_bootstrap(better, worse, speakers, 2000)["p"] > 0.2
    assert statistics.paired_bootstrap(better, worse, np.arange(400), 2000)["p"] < 0.01


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


def test_babble_is_of_several_voices_and_follows_its_seed():
    voices = torch.randn(30, 400)
    a, b = (robustness.babble(voices, 5, torch.Generator().manual_seed(s)) for s in (0, 0))
    assert torch.equal(a, b) and a.shape == (5, 400)
    assert not torch.equal(a, robustness.babble(voices, 5, torch.Generator().manual_seed(1)))


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
