"""Spotting: noise without seams, cut words, the two measures, and the shipped detector's silence."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import poisson as law

import kwslib
from kwslib.data.audio import coloured_noise
from kwslib.data.folder import which_set
from kwslib.io import read_json
from paper.reports import spot
from paper.spotting import commands, counts, day, encoder, rivals, unseen
from paper.spotting.commands import COMMANDS, span, trimmed
from paper.spotting.counts import Heard, alarms, delays, hits, mean_of_last, missed_at, per_thousand
from paper.spotting.engines import Engine
from paper.spotting.false_alarms import card_rule, hear
from paper.spotting.streams import Stream, joined, noise_bed
from paper.spotting.wake import NEVER, WORDS, gather, judge

pytestmark = pytest.mark.usefixtures("one_thread")


def test_noise_has_no_seams_and_keeps_its_power():
    rng = np.random.default_rng(0)
    hum = 1000 * np.sin(np.arange(30 * 16000) * 0.01)  # slow: a cut would show as a step
    bed = noise_bed(rng, hum, 120 * 16000, (100.0, 100.0), piece=4 * 16000)
    assert np.abs(np.diff(bed)).max() < 3 * 100 * 0.01  # the hum's own slope is 1.4, two pieces' at most twice that
    white = noise_bed(rng, rng.normal(0, 1, 30 * 16000), 120 * 16000, (50.0, 50.0), piece=4 * 16000)
    seconds = np.sqrt(np.square(white).reshape(-1, 16000).mean(1))
    assert seconds.min() > 47 and seconds.max() < 53
    low = noise_bed(rng, rng.normal(0, 1, 30 * 16000), 120 * 16000, (10.0, 1000.0), piece=4 * 16000)
    assert np.ptp(np.log(np.sqrt(np.square(low).reshape(-1, 16000).mean(1)))) > 2


def test_a_word_is_cut_from_its_clip():
    rng = np.random.default_rng(0)
    clip = rng.normal(0, 20, 16000)
    clip[6000:11000] += rng.normal(0, 4000, 5000)
    clip = clip.astype(np.int16)
    start, end = span(clip)
    assert start == pytest.approx(6000, abs=320) and end == pytest.approx(11000, abs=320)
    assert len(trimmed(clip)) == end - start + 2560
    assert span(np.zeros(16000, np.int16)) == (0, 16000)


def test_a_score_is_the_mean_of_the_last():
    scores = np.arange(10.0)[:, None] ** 2
    assert mean_of_last(scores, 3)[:, 0] == pytest.approx(
        [0, 0.5, *(np.mean(scores[i - 2 : i + 1]) for i in range(2, 10))]
    )


def test_hits_and_alarms_by_hand():
    loud = np.random.default_rng(0).normal(0, 5000, 8000).astype(np.int16)
    corpus = SimpleNamespace(waves=np.pad(loud, (0, 8000))[None], samples=np.array([16000]))  # ends at 0.5 s
    stream = Stream(np.zeros(16000 * 12, np.float32), [(2.0, 3.0, "go"), (6.0, 7.0, "go")], ["a", "b"], [0, 0])
    times = np.arange(1.5, 12, 0.1)
    scores = np.full((len(times), len(COMMANDS)), -9.0)
    at = lambda t: int(round((t - 1.5) / 0.1))  # noqa: E731
    scores[at(2.7), COMMANDS.index("go")] = 4  # 0.2 s after the end
    scores[at(9.0), COMMANDS.index("go")] = 3  # later than any window holds the second one
    scores[at(6.5), COMMANDS.index("no")] = 5  # another word
    heard = Heard([(times, scores)], 12 / 3600)
    best, near = hits(heard, stream, COMMANDS, corpus, 1, 1.5, np.zeros(8))
    assert best.tolist() == [4, -9] and missed_at(best, stream.speakers, 3.5)["misses"] == 0.5
    assert delays(near, 3.5) == pytest.approx([0.2], abs=0.05)
    events = alarms(heard, 1, 1.0)
    assert [sorted(e, reverse=True)[:2] for e in events if max(e) > 0] == [[4, 3], [5, -9]]


def test_a_word_said_again_does_not_count_for_the_one_before():
    loud = np.random.default_rng(0).normal(0, 5000, 8000).astype(np.int16)
    corpus = SimpleNamespace(waves=np.pad(loud, (0, 8000))[None], samples=np.array([16000]))
    events = [(2.0, 3.0, "go"), (3.2, 4.2, "no"), (3.4, 4.4, "go")]
    stream = Stream(np.zeros(16000 * 12, np.float32), events, ["a", "b", "c"], [0, 0, 0])
    times, scores = np.arange(1.5, 12, 0.1), np.full((105, len(COMMANDS)), -9.0)
    scores[times > 3.75, COMMANDS.index("go")] = 4  # only the second one is heard, 1.25 s after the first one's end
    best, _ = hits(Heard([(times, scores)]), stream, COMMANDS, corpus, 1, 1.5, np.zeros(8))
    assert best.tolist() == [-9, -9, 4]


def test_recordings_are_heard_one_after_the_other():
    waves = [np.full(n, 1000, np.int16) for n in (16_000, 8_000, 24_000)]
    pieces = list(joined(waves, seconds=1.4))
    assert [len(p) for p in pieces] == [24_000, 24_000]
    assert pieces[0][0] == pieces[0][15_999] == pieces[0][16_000] == 0 and pieces[0][8_000] == 1000  # no click


def test_repeats_and_other_words_are_counted_by_the_rule_of_a_stream():
    stream = Stream(np.zeros(16000 * 12, np.float32), [(2.0, 3.0, "go"), (7.0, 8.0, "go")], ["a", "b"], [0, 0])
    times, scores = np.arange(1.5, 12, 0.1), np.full((105, len(COMMANDS)), -9.0)
    scores[(times > 2.5) & (times < 4.05), COMMANDS.index("go")] = 4  # 1.5 s long
    scores[(times > 7.5) & (times < 7.9), COMMANDS.index("no")] = 4
    counted = lambda rest: counts.beside(  # noqa: E731
        Heard([(times, scores)]), stream, COMMANDS, 1, 1.5, np.zeros(8), rest
    )
    assert counted(1.0) == {"repeats": 500, "wrong": 500} and counted(1.8) == {"repeats": 0, "wrong": 500}


def test_the_commands_are_learned_from_the_shipped_classifier():
    """Each command has the row of its own word in Mamba-Light's head."""
    spotter, shipped = commands.start(), kwslib.load("mamba_light")
    assert spotter.labels == COMMANDS and spotter.card["recipe"]["init"] == "mamba_light"
    for label, command in enumerate(COMMANDS):
        row = shipped.model.head.classify[-1].weight[shipped.labels.index(command)]
        assert torch.equal(spotter.model.head.classify[-1].weight[label], row)


def test_no_recording_of_a_word_that_is_judged_as_unseen_has_trained(corpus, monkeypatch):
    judged = {word for group in unseen.GROUPS for word in group}
    assert not judged & {word for known in kwslib.pretrained() for word in known.words} and not judged & set(WORDS)
    monkeypatch.setattr("paper.spotting.wake.speak", lambda *given: {})
    packed = kwslib.load_corpus(corpus)
    word, speech = str(packed.words[0]), np.ones(9, np.int16)
    real = gather([word], {}, 1, 0, corpus, [speech])["real"]
    padded, silence, heard = unseen.clips(packed, word), unseen.BESIDE, encoder.beside(packed)
    own = [wave[silence : len(wave) - silence].tobytes() for wave in padded]
    assert (
        len(own) == ((packed.words == word).sum() - (packed.words[heard] == word).sum()) < (packed.words == word).sum()
    )
    assert not any(w[:silence].any() or w[-silence:].any() for w in padded)
    assert real["train"][-1] is speech and len(real["train"]) > 1
    assert not set(own) & {w.tobytes() for w in real["train"] + real["held"]}
    assert not set(own) & {packed.waves[i, : packed.samples[i]].tobytes() for i in heard}


def test_intervals_are_the_exact_ones():
    low, high = counts.poisson(5, 2.0)
    assert law.sf(4, 2 * low) == pytest.approx(0.025) and law.cdf(5, 2 * high) == pytest.approx(0.025)
    assert counts.poisson(0, 1.0) == [0, pytest.approx(-np.log(0.025))]


def test_confusable_words_are_counted_by_the_thousand():
    found = per_thousand(np.array([1.0, -1, 2, -2]), ["bed", "bed", "cat", "two"], 0.0)
    assert found["alarms"] == 2 and found["per_1000"] == 500 and found["mistaken"] == {}  # of words with so few clips
    often = per_thousand(np.array([1.0] * 15 + [-1.0] * 5 + [1.0]), ["bed"] * 20 + ["cat"], 0.0)
    assert often["mistaken"] == {"bed": [15, 20]}


def test_words_that_trained_are_not_in_the_number_of_confusable_words():
    points = {"words that trained": 0, "words left out": 6, "near words": 2}
    groups = {name: {"0.5": {"n": 50, "alarms": k}} for name, k in points.items()}
    assert counts.confused(groups, "0.5") == (80, 100)


def test_the_alarms_of_a_day_are_counted_word_by_word():
    """Heard by hand: "go" at 3 and, too soon after it to count again, at 4; "no" at 1, whose offset is lower."""
    scores = np.full((100, len(COMMANDS)), -9.0)
    scores[10, COMMANDS.index("go")], scores[15, COMMANDS.index("go")], scores[50, COMMANDS.index("no")] = 3, 4, 1
    heard = Heard([(1.5 + 0.1 * np.arange(100), scores)], 2.0)
    offsets = [0.5 if word == "go" else -0.5 if word == "no" else 0.0 for word in COMMANDS]
    found = day.count(heard, 1.4, {"smooth": 1, "offsets": offsets, "limits": {"0.5": 3.0, "1.0": 1.2}})
    assert [found["all"][r]["alarms"] for r in ("0.5", "1.0")] == [1, 2] and found["all"]["1.0"]["per_hour"] == 1.0
    assert found["words"]["0.5"]["go"] == 1 and found["words"]["1.0"]["no"] == 1 and found["words"]["0.5"]["no"] == 0


def test_several_processes_hear_what_one_does(shipped):
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 3000, n).astype(np.int16) for n in (48_000, 30_000, 40_000)]
    alone, beside = hear(shipped, waves), day.side_by_side("commands", iter(waves), 2)
    assert beside.hours == alone.hours and len(beside.parts) == 3
    for own, other in zip(alone.parts, beside.parts):
        assert np.array_equal(own[0], other[0]) and np.array_equal(own[1], other[1])


def test_the_cards_thresholds_are_of_each_word():
    chosen = {
        "limits": {"0.5": 2.0, "1.0": 1.0},
        "offsets": np.arange(8.0),
        "smooth": 3,
        "refractory_s": 1.8,
        "restart_s": 1.5,
    }
    found = card_rule(chosen)
    assert list(found["thresholds"]) == ["0.5", "1"] and found["thresholds"]["1"][COMMANDS[3]] == 4.0
    assert (found["smooth"], found["refractory_s"], found["restart_s"]) == (3, 1.8, 1.5)


class Scripted(Engine):
    """Says a word wherever it is told to: {second of the wave: (word, score)}."""

    def __init__(self, said):
        super().__init__(COMMANDS, 1.0)
        self.said = said

    def scores(self, wave, sample_rate=16000):
        times = np.arange(1, len(wave) // 16000 + 1, dtype=float)
        scores = np.full((len(times), len(self.labels)), NEVER)
        for second, (word, score) in self.said.items():
            scores[second - 1, self.labels.index(word)] = score
        return times, scores


def test_each_word_of_a_rival_has_its_threshold_from_validation():
    engine = Scripted({3: ("go", 7.0), 9: ("go", 6.0), 20: ("no", 2.0), 31: ("no", 1.0)})
    offsets = dict(zip(COMMANDS, rivals.offsets_of(engine, [np.zeros(16000 * 60, np.int16)])))
    assert offsets["go"] > 7.0 > offsets["no"] > 2.0  # an eighth of an alarm an hour is less than one in a minute
    assert np.isfinite(list(offsets.values())).all() and offsets["stop"] < offsets["no"]  # never said


def test_a_rival_is_judged_as_a_detector_is_and_may_say_nothing():
    engine = Scripted({2: ("go", 5.0)})
    engine.labels = ["go"]
    takes, speech = {"go": [np.zeros(48000, np.int16), np.zeros(16000, np.int16)]}, [np.zeros(480_000, np.int16)]
    said = {48_000: 5.0, 240 * 16_000: 2.0}  # of the speech, too, which is heard as one
    engine.scores = lambda wave, rate: (np.array([2.0]), np.array([[said.get(len(wave), NEVER)]]))
    found = judge(engine, takes, speech * 8)
    assert found["mean_misses"] == {0: 0.5} and found["hours"] == pytest.approx(240 / 3600)
    assert [row["alarms"] for row in found["words"]["go"]] == [0]  # there is one false alarm, and none after it


def test_an_engine_that_is_not_installed_is_named():
    assert rivals.tried(lambda: __import__("no_such_engine")) == {"missing": "No module named 'no_such_engine'"}


@pytest.fixture(scope="module")
def shipped():
    return kwslib.load("commands")


def test_the_shipped_detector_says_what_it_is(shipped, root):
    entry = {m.name: m for m in kwslib.pretrained()}["commands"]
    assert sorted(shipped.labels) == COMMANDS and entry.licence == "MIT" and "CC BY" in entry.data_licence
    assert list(shipped.card["detector"]["thresholds"]) == ["0.5", "1", "2"] and shipped.card["spotting"]["curve"]
    limits = [shipped.stream(mode=mode, alarms_per_hour=1).thresholds for mode in ("windows", "carried")]
    assert not (limits[0] == limits[1]).any() and shipped.stream(mode="carried").ear.lanes == 2
    text = (root / "kwslib/pretrained/commands.md").read_text()
    assert f"| {100 * (1 - entry.accuracy):.1f} [" in text and "Apache 2.0" in text


def quiet(kind):
    rng, t = np.random.default_rng(0), np.arange(10 * 16000) / 16000
    if kind == "silence":
        return np.zeros(len(t))
    if kind == "tones":  # chords of three, one each half second, with overtones
        notes = rng.integers(0, 36, (20, 3))
        waves = [sum(np.sin(2 * np.pi * 110 * 2 ** (n / 12) * k * t[:8000]) / k for n in row for k in (1, 2, 3))
                 * np.exp(-3 * t[:8000]) for row in notes]  # fmt: skip
        return 0.1 * np.concatenate(waves)
    return 0.1 * coloured_noise(rng, len(t), {"white": 0, "pink": 1, "brown": 2}[kind])


@pytest.fixture(scope="module")
def wake():
    return kwslib.load("wake_words")


def test_the_shipped_wake_words_are_those_that_were_judged(wake, root):
    """Their card, what `pretrained` lists, and the run's file tell the same."""
    entry = {m.name: m for m in kwslib.pretrained()}["wake_words"]
    run, text = read_json(root / "results/spot/example.json"), (root / "kwslib/pretrained/wake_words.md").read_text()
    limits, at = wake.card["detector"]["thresholds"], run["clean"]["at_card_thresholds"]["1"]
    assert wake.labels == entry.words == list(run["n"]) and entry.n == sum(run["n"].values())
    heard = sum(n * (1 - at[word]["misses"]) for word, n in run["n"].items())
    assert entry.accuracy == pytest.approx(heard / entry.n)
    assert wake.card["wake"]["recordings"] == dict.fromkeys(wake.labels, 0)  # from their text alone
    assert list(wake.card["wake"]["engines"]) == run["engines"]
    for word in wake.labels:
        assert limits["0.5"][word] >= limits["1"][word] >= limits["2"][word]
        assert f"| 1 | {word} | {limits['1'][word]:.2f} | {100 * at[word]['misses']:.1f} |" in text


@pytest.mark.parametrize("kind", ["silence", "white", "pink", "brown", "tones"])
@pytest.mark.parametrize("name, mode", [("shipped", "windows"), ("shipped", "carried"), ("wake", "windows")])
def test_what_is_no_speech_gives_nothing(name, mode, kind, request):
    """In the modes that the detector was trained for: wake words hear windows alone."""
    spotter = request.getfixturevalue(name)
    assert spotter.spot(quiet(kind).astype(np.float32), 16000, alarms_per_hour=1, mode=mode) == []


def test_wake_words_are_heard_and_not_taken_for_each_other(wake, wake_words):
    """Every tenth recording of people saying them."""
    own, others, n = 0, 0, 0
    with zipfile.ZipFile(wake_words) as takes:
        for word in wake.labels:
            names = (n for n in takes.namelist() if f"/{word.replace(' ', '_')}/" in n and n.endswith(".opus"))
            for name in sorted(names)[::10]:
                wave, rate = soundfile.read(io.BytesIO(takes.read(name)), dtype="float32")
                heard = {event.word for event in wake.spot(wave, rate, alarms_per_hour=1)}
                own, others, n = own + (word in heard), others + len(heard - {word}), n + 1
    assert own / n > 0.75 and n > 100
    assert others / n < 0.05


def test_it_hears_its_words_and_gives_nothing_for_others(shipped, real_clips):
    """Ten test clips of each word; bed and five were no negatives, and marvin and sheila in no training at all. The
    word off is not here: of its clips, one in five is taken for a command (chapter 8)."""
    own, others = [], []
    with zipfile.ZipFile(real_clips) as clips:
        for words, found in ((("yes", "stop", "left"), own), (("bed", "five", "marvin", "sheila"), others)):
            for word in words:
                names = [n for n in clips.namelist() if f"/{word}/" in n and n.endswith(".opus")]
                for name in sorted(n for n in names if which_set(n.split("/")[-1].split("_")[0]) == "testing")[:10]:
                    wave, rate = soundfile.read(io.BytesIO(clips.read(name)), dtype="float32")
                    events = shipped.spot(np.pad(wave, 12800), rate, alarms_per_hour=1)
                    found.append([e.word for e in events] == [word] if word in shipped.labels else bool(events))
    assert np.mean(own) > 0.75 and np.mean(others) <= 0.1


def test_the_chapter_tells_of_the_day_where_it_was_heard(root):
    """With a day of made counts: the table gets a row, the findings a sentence; without one, neither."""
    found = spot.load_spot(root / "results/spot")
    rates = {"alarms": 12, "hours": 24.0, "per_hour": 0.5, "interval": [0.26, 0.87]}
    said = {word: 12 * (word == "left") for word in COMMANDS}
    heard = {"all": dict.fromkeys(spot.RATES, rates), "words": dict.fromkeys(spot.RATES, said)}
    limits = found["commands"]["chosen"]["limits"]
    for whole, kind in (
        (None, None),
        (heard, "a day of sentences, thresholds of an earlier validation"),
        (heard | {"limits": limits}, "a day of sentences"),
    ):
        own = found | {"day": whole}
        kinds = [k for k in spot.spot_tables(own)["ordinary"][0]["kind"] if "day" in k]
        assert kinds == ([kind] if whole else []) and ("In 24 h of" in spot.findings(own)) == bool(whole)
        assert ("at the one of an earlier validation" in spot.findings(own)) == (whole is heard)
    assert "0.50 [0.3–0.9] false alarms an hour at that threshold (aim: 0.5, reached); 12 of 12 are “left”." in (
        spot.findings(own)
    )
