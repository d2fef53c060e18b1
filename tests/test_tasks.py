"""Tasks: which clips, which class, and a sentence where a corpus cannot serve."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kwslib.data.corpus import Corpus
from kwslib.data.tasks import COMMANDS, V2_35, noise_of, select, task_labels
from kwslib.io import KwsError


def corpus_of(words, each=(10, 5, 5), noise_seconds=25):
    """A corpus in memory; every clip holds its own number, the noise its own second."""
    counts = dict(zip(("training", "validation", "testing"), each))
    rows = [(w, s, i) for w in words for s, n in counts.items() for i in range(n)]
    waves = np.repeat(np.arange(len(rows), dtype=np.int16)[:, None], 16000, axis=1)
    noise = np.repeat(1000 + np.arange(noise_seconds, dtype=np.int16), 16000)
    text = [np.array(column) for column in zip(*[(f"{w}/{s}{i}.wav", w, f"{s}{i}", s) for w, s, i in rows])]
    return Corpus(Path("made"), {}, waves, noise, *text, np.full(len(rows), 15000))


def test_all_takes_every_clip_of_the_split():
    corpus = corpus_of(["up", "down", "go"])
    split = select(corpus, "all", "validation")
    assert split.labels == ["down", "go", "up"] and split.waves.shape == (15, 16000)
    assert split.waves.dtype == torch.int16 and split.targets.dtype == split.samples.dtype == torch.int64
    rows = np.flatnonzero(corpus.splits == "validation")
    assert split.waves[:, 0].tolist() == rows.tolist() and split.paths.tolist() == corpus.paths[rows].tolist()
    assert [split.labels[t] for t in split.targets] == corpus.words[rows].tolist()
    assert set(split.samples.tolist()) == {15000}
    assert split.speakers.tolist() == corpus.speakers[rows].tolist()


def test_v2_12_is_warden_s():
    corpus = corpus_of(V2_35)
    split = select(corpus, "v2-12", "training")
    assert split.labels == [*COMMANDS, "_unknown_", "_silence_"]
    assert torch.bincount(split.targets).tolist() == [10] * 12  # 100 wanted, so 10 unknown and 10 of silence
    unknown = {p.split("/")[0] for p, t in zip(split.paths, split.targets) if t == 10}
    assert len(unknown) > 3 and not unknown & set(COMMANDS)
    assert len(set(split.paths[split.targets == 10])) == 10
    silence = split.waves[split.targets == 11].float()
    assert silence.min() >= 0 and silence.max() <= 1025 and silence.amax(1).unique().numel() == 10
    again, other = select(corpus, "v2-12", "training"), select(corpus, "v2-12", "training", seed=1)
    assert torch.equal(split.waves, again.waves) and split.paths.tolist() == again.paths.tolist()
    assert split.paths.tolist() != other.paths.tolist()


def test_v2_35_and_lists():
    corpus = corpus_of(V2_35)
    assert len(V2_35) == len(set(V2_35)) == 35 and len(select(corpus, "v2-35", "testing").waves) == 175
    split = select(corpus, ["up", "cat", "_unknown_"], "testing")
    assert split.labels == ["cat", "up", "_unknown_"] and torch.bincount(split.targets).tolist() == [5, 5, 1]
    assert task_labels(corpus, ["_silence_", "up"]) == ["up", "_silence_"]


def test_no_noise_is_heard_in_two_splits():
    corpus = corpus_of(["up"], noise_seconds=25)
    heard = [set(noise_of(corpus, s).ravel().tolist()) for s in ("training", "validation", "testing")]
    assert [len(h) for h in heard] == [16, 2, 2] and len(set.union(*heard)) == 20


@pytest.mark.parametrize(
    "task, split, match, options",
    [
        (["up", "left"], "training", "no word left; choose from: down, up", {}),
        ("v2-35", "training", "no word backward", {}),
        ("v2-12", "training", "no word yes", {}),
        ("v3", "training", "'v3' is not known", {}),
        ([], "training", "none is asked for", {}),
        ("all", "train", "'train' is not known", {}),
        ("all", "validation", "no validation clips", {"each": (3, 0, 3)}),
        (["up", "_silence_"], "training", "less than 10 s", {"noise_seconds": 0}),
        (["up", "down", "_unknown_"], "training", "no other words", {}),
    ],
)
def test_refusals(task, split, match, options):
    with pytest.raises(KwsError, match=match):
        select(corpus_of(["up", "down"], **options), task, split)


def test_v2_12_without_noise():
    with pytest.raises(KwsError, match="background noise; .* or leave _silence_ out .* background_snr"):
        select(corpus_of(V2_35, noise_seconds=5), "v2-12", "testing")


def test_without_noise_every_key_that_asks_for_it_is_named():
    with pytest.raises(KwsError, match="set background_snr and background_volume to null"):
        noise_of(corpus_of(["up"], noise_seconds=0), "training")


def test_clips_of_another_length_are_refused():
    corpus = corpus_of(["up"])
    corpus.waves = corpus.waves[:, :8000]
    with pytest.raises(ValueError, match=r"corpus.waves has shape \(20, 8000\)"):
        select(corpus, "all", "training")
