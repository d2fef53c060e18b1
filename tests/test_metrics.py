"""Metrics: scikit-learn's numbers, and an interval that knows that clips of one speaker are alike."""

import json

import numpy as np
import pytest

from kwslib.metrics import confusion_matrix, report, speaker_interval

LABELS = ["cat", "dog", "go", "up", "yes"]


def answers(n=400, seed=0, words=4):
    """Targets of the first `words` labels, predictions that are mostly right, speakers."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(words, size=n)
    predictions = np.where(rng.random(n) < 0.7, targets, rng.integers(5, size=n))
    return targets, predictions, rng.integers(25, size=n).astype(str)


@pytest.mark.parametrize("words", [4, 5])
def test_scikit_learn_agrees(words):
    sk = pytest.importorskip("sklearn.metrics")
    targets, predictions, speakers = answers(words=words)
    r = report(targets, predictions, speakers, LABELS)
    every, present = range(5), range(words)
    assert r["confusion"] == sk.confusion_matrix(targets, predictions, labels=every).tolist()
    assert r["accuracy"] == pytest.approx(sk.accuracy_score(targets, predictions))
    assert r["macro_f1"] == pytest.approx(sk.f1_score(targets, predictions, labels=present, average="macro"))
    precision, recall, _, n = sk.precision_recall_fscore_support(targets, predictions, labels=every, zero_division=0)
    assert list(r["per_word"]) == LABELS
    for i, word in enumerate(LABELS):
        assert r["per_word"][word] == pytest.approx({"precision": precision[i], "recall": recall[i], "n": n[i]})
    assert r["n"] == 400 and r["speakers"] == len(set(speakers))
    assert json.loads(json.dumps(r, allow_nan=False)) == r


def test_confusion_has_a_row_for_words_that_never_occur():
    assert confusion_matrix([0, 0], np.array([0, 2]), 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_interval_is_wider_where_speakers_agree_with_themselves():
    rng = np.random.default_rng(1)
    speakers = np.repeat(np.arange(40), 20)
    alike = np.repeat(rng.random(40) < 0.8, 20)  # a speaker is all right or all wrong
    independent = rng.permutation(alike)  # the same accuracy, spread over all speakers
    wide, narrow = (np.diff(speaker_interval(c, speakers))[0] for c in (alike, independent))
    assert wide > 3 * narrow
    clips = np.diff(speaker_interval(independent, np.arange(800)))[0]
    assert narrow == pytest.approx(clips, rel=0.35)


@pytest.mark.parametrize("seed", range(5))
def test_interval_holds_the_accuracy_and_is_the_same_every_time(seed):
    targets, predictions, speakers = answers(150, seed)
    correct = targets == predictions
    low, high = speaker_interval(correct, speakers)
    assert 0 <= low < correct.mean() < high <= 1
    assert [low, high] == speaker_interval(correct, speakers)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        speakers = np.repeat(np.arange(60), 10)
        skill = rng.beta(8, 2, size=60)  # the truth is 0.8
        low, high = speaker_interval(rng.random(600) < skill[speakers], speakers, draws=300)
        covered += low <= 0.8 <= high
    assert 0.88 < covered / 200 < 0.995


def test_all_right_is_one():
    assert speaker_interval(np.ones(30, bool), np.arange(30)) == [1.0, 1.0]
