"""The encoder of wake words: what it is taught, that it learns, and what of it stays as it is in a detector."""

import numpy as np
import pytest
import torch

from kwslib.checkpoint import read_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.wake import loop, negatives, voices
from kwslib.wake.windows import Windows
from paper.spotting import encoder, unseen

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_shipped_encoder_knows_no_word_that_estimates_hold_out():
    """A fifth of the common words is kept for thresholds; of these only words of the corpus, said by people, are in."""
    weights, card = read_checkpoint(loop.ENCODER)
    assert len(card["labels"]) > 400 and {"yes", "stop", "bed"} <= set(card["labels"])
    held = {w for w in negatives.COMMON if negatives.held(w)}
    assert len(held & set(card["labels"])) < 12 and "computer" not in card["labels"]
    assert {w for group in unseen.GROUPS for w in group} & set(card["labels"]) == {
        "follow",
        "forward",
    }  # docs/wake_words.md
    assert card["features"]["scale"] == "log" and "rms" not in card["run"]["engines"]["flite"]
    assert all(w.dtype == torch.float16 for w in weights.values() if w.is_floating_point())
    assert card["run"]["validation"]["accuracy"] > 0.6  # of some five hundred words, on real clips


@pytest.fixture
def windows():
    rng = np.random.default_rng(0)
    tones = [np.int16(6000 * np.sin(np.arange(8000) * f)) for f in (0.1, 0.3)]
    pools = {"near": tones, "word": tones, "sentence": [np.int16(rng.normal(0, 500, 40_000))], "long": [], "clip": []}
    return Windows([[t] for t in tones], pools, [0, 1], [], 24_000, shares={"phrase": 1.0})


def test_it_learns_its_words(windows, corpus):
    spotter = encoder.begin(["low", "high"], load_corpus(corpus))
    assert spotter.card["recipe"]["init"] == "mamba_light"
    encoder.fit(spotter, windows, torch.tensor([0, 1]), 30, batch=16)
    waves, targets, _ = windows.draw(64)
    with torch.no_grad():
        answers = loop.logits_of(spotter.model, spotter.normalise(spotter.frontend(waves)))[0].argmax(1)
    assert (answers == targets.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("still", [loop.STILL, 0])
def test_most_of_it_stays_as_it_is_in_a_detector(windows, still):
    spotter = loop.fresh(["low", "high"], loop.LISTEN)
    before = {k: v.clone() for k, v in spotter.model.state_dict().items()}
    loop.loop(spotter, windows, {}, 3, 4, 1e-3, still=still)
    moved = {k.split(".")[0] + k.split(".")[1] * k.startswith("blocks") for k, v in spotter.model.state_dict().items()
             if not torch.equal(v, before[k])}  # fmt: skip
    assert moved == ({"blocks4", "head"} if still else {"frontend", "head", *(f"blocks{i}" for i in range(5))})
    assert all(p.requires_grad for p in spotter.model.parameters())


def test_with_formant_voices_alone_most_of_the_encoder_stays(windows, monkeypatch):
    """Another engine at hand, and all of it is trained."""
    assert voices.only_formants({"espeak-ng": []}) and not voices.only_formants({"espeak-ng": [], "flite": ["slt"]})
    seen = []
    monkeypatch.setattr(loop, "MEMBERS", 1)
    monkeypatch.setattr(loop, "loop", lambda spotter, *rest: seen.append((spotter.card["recipe"]["init"], rest[-1])))
    rng = np.random.default_rng(0)
    clips = [np.int16(rng.normal(0, 500, 40_000))]
    made = {"positives": [clips], "near": clips, "word": clips, "sentences": clips, "word_of": [0]}
    made["real"] = {"train": [], "noise": []}
    for formants in (True, False):
        loop.fit(["low"], made, [[]], 1, 1, 1e-3, 0, formants=formants)
    assert seen == [("encoder", loop.STILL), ("encoder", 0)]
