"""Wake words of one's own: what is near a phrase, what a window holds, how misses are counted, and a tiny training."""

import math

import numpy as np
import pytest
import soundfile
import torch

import kwslib
from kwslib import cli
from kwslib.io import KwsError, read_csv, write_json
from kwslib.models import build
from kwslib.models.ensemble import members_of
from kwslib.wake import loop, negatives, report, voices
from kwslib.wake.loop import logits_of, loudest
from kwslib.wake.windows import Windows
from paper import release
from paper.spotting.changed import CHANGES, highest
from paper.spotting.wake import judge

RATE = 16_000


def test_distance_counts_edits_and_forgives_accents():
    assert negatives.distance("kat", "kat") == 0
    assert negatives.distance("kat", "kæt") == pytest.approx(0.4)  # one vowel for another
    assert negatives.distance("kat", "kad") == pytest.approx(0.4)  # t and d: one place of the mouth
    assert negatives.distance("kat", "kas") == 1
    assert negatives.distance("kat", "skat") == 1 and negatives.distance("kat", "kata") == pytest.approx(0.6)
    assert negatives.distance("", "kat") == pytest.approx(2.6)


def test_near_words_are_near_and_are_not_the_phrase():
    spellings, sounds = ["kat", "kad", "skat", "bison", "wug", "kept"], ["kat", "kad", "skats", "baɪsən", "vup", "kɛpt"]
    found = negatives.near(spellings, sounds, "kats", 10)
    assert "kad" not in found and "kat" not in found  # an accent away
    assert "skat" not in found  # it holds all of the phrase
    assert set(found) == {"kept"} and found["kept"] == pytest.approx(negatives.distance("kɛpt", "kats"))


def test_candidates_change_the_phrase():
    found = negatives.candidates("view glass", np.random.default_rng(0), 200)
    assert "view glass" not in found and {"view", "glass", "glass view"} & set(found)
    assert len(negatives.candidates("go", np.random.default_rng(0))) > 20  # all that there are, and then it ends
    assert any(f.startswith("view ") for f in found) and any(f.endswith(" glass") for f in found)


@pytest.fixture
def windows():
    word, silence = np.full(8000, 3000, np.int16), np.zeros(4000, np.int16)
    pools = {"near": [silence], "word": [silence], "sentence": [silence], "long": [], "clip": []}
    return Windows([[word]], pools, [0], [], 24_000)


def test_a_phrase_is_whole_in_its_window_and_a_part_is_not(windows):
    places = []
    for _ in range(50):
        window, phrase, _ = windows._one("phrase")
        heard = np.flatnonzero(window)
        assert phrase == 0 and 8000 / 1.16 <= len(heard) <= 8000 / 0.86
        places.append(heard[0])
        window, phrase, _ = windows._one("part")
        assert phrase == -1 and len(np.flatnonzero(window)) <= 0.66 * 8000 / 0.86
    assert min(places) < 3000 and max(places) > 12_000  # anywhere


def test_a_batch_is_loud_enough_and_has_its_targets(windows):
    waves, targets, words = windows.draw(64)
    assert waves.shape == (64, 24_000) and targets.shape == (64, 1) and words.shape == (64,)
    assert set(targets.unique().tolist()) == {0.0, 1.0} and torch.isfinite(waves).all() and waves.abs().max() <= 1


def test_a_heard_past_comes_before_the_window_and_is_not_pooled():
    """Half of the batches are longer, by the past; what they are judged by is the window at their end."""
    word, silence = np.full(8000, 3000, np.int16), np.zeros(4000, np.int16)
    pools = {"near": [silence], "word": [silence], "sentence": [word], "long": [], "clip": []}
    windows = Windows([[word]], pools, [0], [], 24_000, past=16_000)
    sizes = {windows.draw(2)[0].shape[1] for _ in range(20)}
    assert sizes == {24_000, 40_000}
    assert any(windows._earlier().any() for _ in range(20))
    model, x = build("mamba_light", 2).eval(), torch.randn(3, 120, 64)
    with torch.no_grad():
        whole, pooled = logits_of(model, x)
        assert torch.allclose(whole, model(x), atol=1e-5)
        changed = torch.cat([torch.randn(3, 60, 64), x[:, 60:]], 1)  # another past
        late, other = (logits_of(model, inputs, 0.5)[1] for inputs in (x, changed))
    # the past matters by what the blocks carry of it, and less than what is pooled
    assert 0 < (late - other).abs().mean() < (pooled - logits_of(model, changed)[1]).abs().mean()


def test_the_highest_window_counts_where_training_pools():
    """Of 1.5 s in 2 s: at least the score of the last window, and just that where the clip is one window long."""
    model, x = build("mamba_light", 2).eval(), torch.randn(8, 200, 64)
    with torch.no_grad():
        assert torch.allclose(highest(model, x, 1.0)[0], logits_of(model, x, 1.0)[0], atol=1e-5)
        pooled, last = highest(model, x, 0.75)[0], logits_of(model, x, 0.75)[0]
    assert (pooled >= last - 1e-5).all() and (pooled > last + 1e-3).any()
    with CHANGES["max_pooling"]():
        assert loop.logits_of is highest
    assert loop.logits_of is logits_of


def test_the_word_is_cut_from_a_take():
    rng = np.random.default_rng(0)
    take = rng.normal(0, 30, 3 * RATE)
    take[20_000:30_000] += rng.normal(0, 5000, 10_000)
    kept = loudest(take.astype(np.int16), [np.zeros(10_000)] * 5)
    assert len(kept) == 10_000 and np.abs(kept).mean() > 3500  # 0.8 of the standard deviation


def test_events_are_apart_and_curve_counts_them():
    times, scores = np.arange(10) / 10, np.array([0, 3, 2, 0, 0, 1, 5, 1, 0, 0], float)
    assert report.peaks(times, scores, 0.35) == [5, 3]
    best, events = np.array([1.0, 2, 3, 4]), [2.5, 0.5, 3.5, -1]
    rows = report.curve(best, events, hours=2)
    assert [r["alarms"] for r in rows] == [0, 1, 2, 3] and [r["per_hour"] for r in rows] == [0, 0.5, 1, 1.5]
    assert [r["misses"] for r in rows] == [0.75, 0.5, 0, 0]  # thresholds just above 3.5, 2.5, 0.5, -1


def test_thresholds_rise_as_fewer_alarms_are_allowed():
    events = list(np.random.default_rng(0).exponential(1.0, 500))
    found = [report.threshold(events, 1.0, rate) for rate in (0.1, 1, 10, 100)]
    assert found == sorted(found, reverse=True)
    assert sum(e >= found[2] for e in events) == 10
    # exponential scores: a tenth of the rate lies ln 10 above; five events tell the scale roughly, many draws well
    draws = [np.random.default_rng(i).exponential(1.0, 500) for i in range(200)]
    steps = [report.threshold(d, 1.0, 0.1) - report.threshold(d, 1.0, 0.999) for d in draws]
    assert np.mean(steps) == pytest.approx(np.log(10), rel=0.1)


class Loudness:
    """A detector of one phrase whose score is the level of each second, in thousands of steps."""

    def __init__(self):
        self.labels, self.card = ["hush"], {"detector": {"refractory_s": 0.5, "window_s": 1.0}}

    def scores(self, wave, rate):
        seconds = np.abs(wave[: len(wave) // rate * rate].astype(float)).reshape(-1, rate).max(1) / 1000
        return np.arange(len(seconds)) + 1.0, seconds[:, None]


def test_thresholds_come_from_real_speech_where_there_is_enough(tmp_path, monkeypatch):
    """A synthetic voice with other words scores higher than people do; it is heard where people say too little."""
    spoken = {"sentences": [("a b", np.full(RATE, 9000, np.int16))] * 50, "positives": [[np.full(RATE, 9, np.int16)]]}
    real = [np.full(RATE, 20, np.int16)] * 20 + [np.full(100 * RATE, 300, np.int16)]
    monkeypatch.setattr(report, "scene", lambda rng, wave: wave)
    found = {}
    for enough, limit in ((90, 1800), (90, 100), (600, 1800)):
        monkeypatch.setattr(report, "ENOUGH", enough)
        monkeypatch.setattr(report, "LIMIT", limit)
        spotter = Loudness()
        warnings, rows = report.estimate(spotter, spoken, real)
        report.write_curve(rows, tmp_path)
        seconds = round(3600 * spotter.card["validation"]["hours"])
        found[enough, limit] = seconds, spotter.card["validation"]["synthetic"]
        assert "are missed at one false alarm an hour" in warnings[0]  # 9 lies below what is heard without the phrase
        assert (spotter.card["detector"]["thresholds"]["1"]["hush"] > 5) == (enough == 600)
    assert found == {(90, 1800): (120, False), (90, 100): (100, False), (600, 1800): (170, True)}


def test_short_clips_are_heard_one_after_the_other(tmp_path, monkeypatch):
    """Alone each would be decided on once: joined, words are heard as often as in running speech."""
    heard, spotter = [], Loudness()
    spoken = {"sentences": [], "positives": [[np.full(RATE, 9, np.int16)]]}
    real = [np.full(RATE + i, i, np.int16) for i in range(70)] + [np.full(300 * RATE, 3, np.int16)]
    monkeypatch.setattr(report, "ENOUGH", 60)
    monkeypatch.setattr(report, "scene", lambda rng, wave: wave)
    whole = spotter.scores
    monkeypatch.setattr(spotter, "scores", lambda wave, rate: heard.append(len(wave)) or whole(wave, rate))
    report.estimate(spotter, spoken, real)
    assert sorted(map(len, real)) != sorted(heard) and sum(heard) == sum(map(len, real)) + RATE
    assert len(heard) == 4 and min(heard) == RATE  # the long one, two streams of clips, and the phrase itself


def test_a_long_recording_trains_and_is_held_out(tmp_path):
    rng = np.random.default_rng(0)
    for name, seconds in (("kitchen.flac", 630), ("short.flac", 90)):
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, seconds * RATE), RATE)
    found = negatives.real([tmp_path], ["hush"])
    long = [p for p in (*found["train"], *found["held"]) if len(p) != 90 * RATE]
    assert sum(map(len, long)) == 630 * RATE and max(map(len, long)) == 60 * RATE
    assert sum(len(p) for p in found["held"] if len(p) != 90 * RATE) == 630 * RATE // 5
    assert sum(len(p) == 90 * RATE for p in found["train"]) == 1 - negatives.held("short.flac")


def test_held_sentences_have_no_word_of_a_near_phrase(monkeypatch):
    said = []
    monkeypatch.setattr(voices, "jobs", lambda texts, *rest, **more: said.extend(texts) or [])
    monkeypatch.setattr(loop, "spoken", lambda wanted, phrases, workers: wanted)
    held = [word for word in negatives.COMMON if negatives.held(word)]
    loop.speak_held(["hush"], {}, 450, near=set(held[::2]))
    words = {word for text in said for word in text.split()} - {"hush"}
    assert words == set(held[1::2])


def test_the_loss_by_hand():
    """Two windows, two phrases; the second window holds a lone common word, the first of two."""
    logits, targets = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    phrases = sum(math.log(1 + math.exp(x)) for x in (-2.0, -1.0, 0.5, 3.0)) / 2  # minus the log of the right answers
    words = torch.nn.Linear(1, 2, bias=False)
    words.weight.data = torch.tensor([[1.0], [-1.0]])
    pooled = torch.tensor([[9.0], [0.7]])
    found = loop.loss_of(logits, targets, pooled, torch.tensor([-1, 0]), words)
    assert found.item() == pytest.approx(phrases + 0.1 * math.log(1 + math.exp(-1.4)), abs=1e-6)
    alone = loop.loss_of(logits, targets, pooled, torch.tensor([-1, -1]), words)
    assert alone.item() == pytest.approx(phrases, abs=1e-6)
    sure = loop.loss_of(torch.tensor([[30.0, -30.0]]), targets[:1], pooled[:1], torch.tensor([-1]), words)
    assert sure.item() < 1e-6  # nothing caps the score


def test_false_alarms_of_training_join_the_negatives(windows, monkeypatch):
    """At 40 % and 70 % of the steps, with the weights' average: windows of the streams, each as long as a window."""
    sentences = [np.random.default_rng(i).normal(0, 3000, 5 * RATE).astype(np.int16) for i in range(3)]
    spotter, drawn = loop.fresh(["hush"], loop.LISTEN), []
    draw = windows.draw
    monkeypatch.setattr(windows, "draw", lambda n: drawn.append(len(windows.mined)) or draw(n))
    loop.loop(spotter, windows, {"sentences": sentences, "real": {"train": []}}, 100, 2, 1e-4)
    assert drawn[0] == drawn[39] == 0 and drawn[40] == drawn[99] == 3
    assert all(len(window) == windows.size for window in windows.mined)
    with torch.no_grad():
        assert spotter.logits(draw(2)[0]).isfinite().all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny detector, made by the command line with espeak-ng alone, and where it lies."""
    root = tmp_path_factory.mktemp("wake")
    rng = np.random.default_rng(0)
    for i in range(3):
        (root / "takes/open_sesame").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / f"takes/open_sesame/{i}.wav", rng.normal(0, 0.1, RATE), RATE)
        (root / "room").mkdir(exist_ok=True)
        soundfile.write(root / f"room/{i}.wav", rng.normal(0, 0.1, 3 * RATE), RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voices.shutil, "which", lambda name: None)  # no flite
        options = ["--out", str(root / "out"), "--recordings", str(root / "takes"), "--negatives", str(root / "room")]
        options += ["--steps", "6", "--clips", "8", "--alarms-per-hour", "0.25"]
        cli.wake(["open sesame", "go", *options])
    return root / "out"


def test_the_command_writes_a_detector_its_card_and_its_curve(trained):
    spotter = kwslib.load(trained)
    assert spotter.labels == ["open sesame", "go"]
    detector, wake = spotter.card["detector"], spotter.card["wake"]
    assert detector["window_s"] >= 1.5 and list(detector["thresholds"]) == ["0.25", "0.5", "1", "2"]
    assert detector["modes"] == ["windows"]  # nothing was heard before a window
    first, second = (torch.cat([p.flatten() for p in m.parameters()]) for m in members_of(spotter.model))
    assert len(first) == len(second) and not torch.equal(first, second)
    for phrase in spotter.labels:
        limits = [detector["thresholds"][rate][phrase] for rate in ("0.25", "0.5", "1", "2")]
        assert limits == sorted(limits, reverse=True)
    assert wake["recordings"] == {"open sesame": 3, "go": 0} and "espeak-ng" in wake["engines"]
    assert wake["real_speech"][0]["name"] == "room" and spotter.card["features"]["scale"] == "log"
    assert any("'go' is short" in w for w in wake["warnings"])
    assert {r["phrase"] for r in read_csv(trained / "curve.csv")} == {"open sesame", "go"}
    assert (trained / "curve.md").read_text().startswith("| phrase |") and (trained / "curve.png").stat().st_size > 1000


def test_a_detector_scores_and_predicts(trained):
    spotter = kwslib.load(trained)
    wave = np.random.default_rng(1).normal(0, 0.05, 2 * RATE).astype(np.float32)
    times, scores = spotter.scores(wave, RATE)
    assert scores.shape == (len(times), 2) and len(times) == 1 + int((2 - spotter.card["detector"]["window_s"]) / 0.1)
    # each label alone: the sigmoid of its highest score
    expected = 1 / (1 + np.exp(-scores.max(0)))
    assert dict(spotter.predict(wave, RATE)) == pytest.approx(dict(zip(spotter.labels, expected.tolist())), abs=1e-5)


def test_scores_do_not_depend_on_what_is_outside_the_window(trained):
    """The features have no maximum of the clip's own: a loud sound elsewhere leaves a window's score as it was."""
    spotter, rng = kwslib.load(trained), np.random.default_rng(2)
    window = round(spotter.card["detector"]["window_s"] * RATE)
    quiet = rng.normal(0, 0.01, window).astype(np.float32)
    loud = np.concatenate([quiet, rng.normal(0, 0.9, RATE).astype(np.float32)])
    assert spotter.scores(loud, RATE)[1][0] == pytest.approx(spotter.scores(quiet, RATE)[1][0], abs=1e-5)


def test_wake_words_are_shipped_with_what_was_judged(trained, corpus, tmp_path):
    """Half precision, a card in words, and the share heard at one false alarm an hour, as `pretrained` lists it."""
    spotter, rng = kwslib.load(trained), np.random.default_rng(3)
    speech = [rng.normal(0, 800, 12 * RATE).astype(np.int16) for _ in range(2)]
    takes = {
        p: [rng.normal(0, 800, 2 * RATE).astype(np.int16) for _ in range(n)] for p, n in zip(spotter.labels, (4, 2))
    }
    n, found = {p: len(t) for p, t in takes.items()}, judge(spotter, takes, speech)
    write_json(tmp_path / "example.json", {"n": n, "clean": found})
    release.release_detector(trained, corpus, tmp_path / "shipped", "sesame", tmp_path / "example.json")
    card = kwslib.load(tmp_path / "shipped/sesame.safetensors").card
    at = found["at_card_thresholds"]["1"]
    heard = sum(n[p] * (1 - at[p]["misses"]) for p in spotter.labels) / 6
    assert card["test"]["accuracy"] == pytest.approx(heard) and card["test"]["n"] == 6
    assert card["test"]["interval"][0] <= heard <= card["test"]["interval"][1]
    text = (tmp_path / "shipped/sesame.md").read_text()
    assert 'kws wake "open sesame" "go"' in text
    for phrase, limit in card["detector"]["thresholds"]["1"].items():
        assert f"| 1 | {phrase} | {limit:.2f} | {100 * at[phrase]['misses']:.1f} |" in text
    with pytest.raises(KwsError, match="--results is missing"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["release", str(trained), "--corpus", str(corpus)])
            release.main()
