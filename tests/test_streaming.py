"""Streams: what is where, what is counted as spotted, and the state that is carried."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kwslib.io import KwsError
from paper.benchmarks.timing import spotter_of
from paper.spotting import streaming
from paper.spotting.streaming import count, detections, match, operating_point, sweep, thresholds_of
from paper.spotting.streams import Stream, make_stream

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def corpus():
    """Tones for words, a number of speakers for each split; the amplitude says which row a clip is."""
    rng, rows = np.random.default_rng(0), []
    for split, speakers in (("training", 4), ("validation", 3), ("testing", 3)):
        rows += [(split, f"{split}{s}", word) for s in range(speakers) for word in ("yes", "no", "tree")]
    splits, speakers, words = map(np.array, zip(*rows))
    samples = rng.integers(8000, 16001, len(rows))
    waves = np.zeros((len(rows), 16000), np.int16)
    for i, n in enumerate(samples):
        waves[i, :n] = (8000 + 500 * i) * np.sign(np.sin(np.arange(n) * 0.3))
    return SimpleNamespace(
        root="made",
        card={},
        waves=waves,
        words=words,
        speakers=speakers,
        splits=splits,
        samples=samples,
        noise=rng.normal(0, 300, 40 * 16000).astype(np.int16),
    )


def test_events_are_where_they_are_said_to_be(corpus):
    stream = make_stream(corpus, ["yes", "no"], "testing", 0.1, seed=3, snr=(40, 40))
    assert len(stream.wave) == 0.1 * 3600 * 16000 and stream.hours == pytest.approx(0.1)
    assert len(stream.events) == len(stream.speakers) > 20 and {w for *_, w in stream.events} == {"yes", "no"}
    heard = set()
    for start, end, word in stream.events:
        first, last = round(start * 16000), round(end * 16000)
        rows = np.flatnonzero((corpus.words == word) & (corpus.samples == last - first))
        cut = stream.wave[first:last] - corpus.waves[rows[0], : last - first] / 32768
        assert np.abs(cut).max() < 0.1 * np.abs(stream.wave[first:last]).max()  # what is left is the noise
        heard |= set(corpus.splits[rows])
    assert heard == {"testing"}
    for (_, end, _), (start, *_) in zip(stream.events, stream.events[1:]):
        assert start > end


def test_a_stream_follows_its_seed(corpus):
    a, b, c = (make_stream(corpus, ["yes", "no"], "testing", 0.02, seed) for seed in (1, 1, 2))
    assert np.array_equal(a.wave, b.wave) and a.events == b.events and a.events != c.events


def test_a_stream_needs_other_words(corpus):
    with pytest.raises(KwsError, match="no other words in testing for a stream"):
        make_stream(corpus, ["yes", "no", "tree"], "testing", 0.01)


def posteriors(words, labels=("yes", "no", "_unknown_"), sure=0.9):
    """One row a step, its word at `sure`."""
    p = np.full((len(words), len(labels)), (1 - sure) / (len(labels) - 1))
    for i, word in enumerate(words):
        p[i, labels.index(word)] = sure
    return p


LABELS = ["yes", "no", "_unknown_"]


def test_detections_smooth_and_rest():
    words = ["_unknown_"] * 5 + ["yes"] * 4 + ["_unknown_"] * 5 + ["no"] + ["_unknown_"] * 9
    times = 1 + 0.1 * np.arange(len(words))
    p = posteriors(words, tuple(LABELS))
    assert detections(p, times, LABELS, 0.8, 0.2, 0.8) == [
        (pytest.approx(1.6), "yes")
    ]  # the second step of yes; one of no is too few
    assert [w for _, w in detections(p, times, LABELS, 0.8, 0.1, 0.8)] == ["yes", "no"]
    assert [w for _, w in detections(p, times, LABELS, 0.8, 0.1, refractory=0.2)] == ["yes", "yes", "no"]
    assert [w for _, w in detections(p, times, LABELS, 0.8, 0.1, refractory=2)] == ["yes"]
    assert detections(p, times, LABELS, 0.95, smooth=0.1) == []


def test_a_word_is_spotted_once_while_the_window_holds_it():
    words = ["_unknown_"] * 10 + ["yes"] * 14 + ["_unknown_"] * 20  # a window of a second meets a word of half a second
    p = posteriors(words, tuple(LABELS))
    assert len(detections(p, np.arange(len(words)) / 10, LABELS, 0.5)) == 1
    assert len(detections(p, np.arange(len(words)) / 10, LABELS, 0.5, refractory=0.8)) == 2


def test_unknown_is_never_spotted():
    p = posteriors(["_unknown_"] * 20, tuple(LABELS))
    assert detections(p, np.arange(20) / 10, LABELS, 0.1) == []


def stream_of(events, hours=0.5):
    return Stream(np.zeros(round(hours * 3600 * 16000), np.float32), events, ["a"] * len(events))


def test_counts_by_hand():
    stream = stream_of([(10.0, 11.0, "yes"), (20.0, 20.6, "no"), (30.0, 31.0, "yes"), (40.0, 41.0, "no")])
    found = [(10.9, "yes"), (11.2, "yes"), (20.9, "yes"), (32.1, "yes"), (40.2, "no"), (50.0, "no")]
    result = count(found, stream)
    # spotted: the first yes and the last no; late: 32.1; wrong word: 20.9; twice: 11.2; nothing there: 50
    assert result["miss_rate"] == 0.5 and result["alarms_per_hour"] == pytest.approx(4 / 0.5)
    assert (
        match(found, stream) == [pytest.approx(-0.1), None, None, pytest.approx(-0.8)] and result["false_alarms"] == 4
    )
    assert result["delay_s"] == pytest.approx(np.median([-0.1, -0.8])) and result["n"] == 4


def test_counts_of_nothing():
    assert count([], stream_of([(1.0, 2.0, "yes")]))["miss_rate"] == 1
    assert count([(1.0, "yes")], stream_of([], 1.0))["alarms_per_hour"] == pytest.approx(1)


def test_thresholds_reach_from_every_step_to_a_single_one():
    rng = np.random.default_rng(0)
    p, times = rng.dirichlet([0.3] * 3, 5000), 0.1 * np.arange(5000)
    tried = thresholds_of(p, times, LABELS)
    score = streaming.smoothed(p, times, LABELS)[1]
    above = [(score > t).sum() for t in tried]
    assert above == sorted(above, reverse=True) and above[0] > 3000 and above[-1] <= 1 and len(tried) > 30
    assert (score[np.array(LABELS)[streaming.smoothed(p, times, LABELS)[0]] == "_unknown_"] == 0).all()


def test_words_that_were_heard_in_training_do_not_come_in_validation(corpus):
    def others(heard):
        stream = make_stream(corpus, ["yes", "no"], "validation", 0.1, 3, heard, keyword_share=0.0, snr=(60, 60))
        peaks = {
            round(float(np.abs(stream.wave[i : i + 16000]).max()) * 32768)
            for i in range(0, len(stream.wave) - 16000, 8000)
        }
        return {
            i for i in np.flatnonzero(corpus.words == "tree") if any(abs(8000 + 500 * i - peak) < 100 for peak in peaks)
        }

    assert {corpus.splits[i] for i in others(True)} == {"validation"}
    assert {corpus.splits[i] for i in others(False)} == {"validation", "training"}


def test_operating_point_is_the_most_sensitive_that_is_allowed():
    curve = [
        {"threshold": t, "alarms_per_hour": a} for t, a in ((0.1, 9), (0.3, 0.4), (0.5, 0.6), (0.7, 0.5), (0.9, 0))
    ]
    assert operating_point(curve)["threshold"] == 0.7  # 0.3 is quiet by luck: 0.5 is not
    assert operating_point(curve, 0.0)["threshold"] == 0.9
    assert operating_point([{"threshold": 0.9, "alarms_per_hour": 7}])["threshold"] == 0.9  # none is quiet enough


def test_a_higher_threshold_spots_less():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.3] * 3, 5000)
    curve = sweep(
        p,
        0.1 * np.arange(5000),
        LABELS,
        stream_of([(5.0 * i, 5.0 * i + 1, "yes") for i in range(99)]),
        [0.3, 0.6, 0.9, 0.999],
    )
    spotted = [c["alarms_per_hour"] * c["hours"] + c["n"] * (1 - c["miss_rate"]) for c in curve]
    assert spotted == sorted(spotted, reverse=True) and spotted[0] > spotted[-1]


@pytest.mark.parametrize("name", ["mamba_mfcc_small", "mamba_light"])
def test_pieces_of_a_stream_with_carried_state_are_the_whole(name):
    torch.manual_seed(0)
    spotter = spotter_of(name, n_classes=4)
    wave = (0.1 * torch.randn(5 * 16000)).numpy()
    whole, times = streaming.by_carried_state(spotter, wave, piece=30)
    parts, again = streaming.by_carried_state(spotter, wave, piece=1.3)
    assert np.array_equal(times, again) and times[0] == pytest.approx(1, abs=0.05) and times[-1] > 4.8
    assert np.diff(times) == pytest.approx(0.1, abs=0.03)
    np.testing.assert_allclose(parts, whole, atol=2e-3)
    assert np.ptp(whole, 0).max() > 10 * np.abs(parts - whole).max()  # it says something, and says the same


def test_windows_classify_the_second_before():
    torch.manual_seed(0)
    spotter = spotter_of("mamba_mfcc_small", n_classes=4)
    wave = (0.1 * torch.randn(3 * 16000)).numpy()
    p, times = streaming.by_windows(spotter, wave)
    assert times[0] == 1 and times[-1] == pytest.approx(3) and p.shape == (21, 4)
    with torch.no_grad():
        alone = spotter.logits(torch.from_numpy(wave[8000:24000])[None]).softmax(1)
    np.testing.assert_allclose(p[5], alone[0], atol=1e-5)


def test_models_without_state_say_so():
    with pytest.raises(KwsError, match="carries no state; use windows"):
        spotter = spotter_of("keyword_cnn")
        spotter.card["model"] = "keyword_cnn"
        streaming.by_carried_state(spotter, np.zeros(32000, np.float32))
