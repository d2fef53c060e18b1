"""What a listener hears of: events, files, a microphone, bad input."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from small_streams import CLOSE, LABELS, a_spotter, fed, sound

import kwslib
from kwslib import cli as commands
from kwslib.data.audio import decode
from kwslib.io import KwsError, cli
from kwslib.listening.stream import Stream

sf = pytest.importorskip("soundfile")
pytestmark = pytest.mark.usefixtures("one_thread")


# -- events


def events_of(times, scores, thresholds, rest):
    """The rule for events, from its definition."""
    found, last = [], {}
    for time, row in zip(times, scores):
        for label, score, threshold in zip(LABELS, row, thresholds):
            if score >= threshold and time - last.get(label, -np.inf) >= rest - 1e-6:
                found.append((label, time))
                last[label] = time
    return found


def test_events_are_scores_at_the_threshold_with_a_rest(monkeypatch):
    own = {"thresholds": {"0.5": 0.4, "2": {"go": 0.1, "yes": -0.2}}, "refractory_s": 0.4, "smooth": 1}
    spotter = a_spotter("keyword_cnn", own, n_fft=400, hop_length=200)
    monkeypatch.setattr(spotter, "logits", lambda w, s=None: torch.stack([w[:, 0], -w[:, 0], w[:, 1]], 1))
    wave = np.random.default_rng(0).uniform(-1, 1, 160_000).astype(np.float32)
    times, scores = spotter.scores(wave, 16000)
    for how, thresholds in (
        ({}, (0.4, 0.4, 0.4)),  # the strictest
        ({"alarms_per_hour": 0.5}, (0.4, 0.4, 0.4)),
        ({"alarms_per_hour": 2}, (0.1, np.inf, -0.2)),
        ({"threshold": 0.9}, (0.9, 0.9, 0.9)),
        ({"threshold": {"stop": 0.5}}, (np.inf, 0.5, np.inf)),
    ):
        expected = events_of(times, scores, thresholds, 0.4)
        stream = Stream(spotter, mode="windows", **how)
        stream.ear.shares = False
        found = fed(stream, wave, 16000, [1280])[2]
        assert [(e.word, e.time) for e in found] == expected and len(expected) > 3
        assert all(e.score == scores[np.searchsorted(times, e.time), LABELS.index(e.word)] for e in found)
    with pytest.raises(KwsError, match="card has thresholds for 0.5, 2, not for 7 false alarms an hour"):
        Stream(spotter, alarms_per_hour=7)
    with pytest.raises(KwsError, match="threshold for 'no', which is not a label"):
        Stream(spotter, threshold={"no": 1.0})


def test_thresholds_of_a_card_are_for_the_modes_that_it_names():
    own = {"thresholds": {"1": 0.4}, "modes": ["carried"]}
    spotter = a_spotter("mamba_light", own, n_fft=400, hop_length=200)
    assert Stream(spotter).mode == "carried"
    for how in ({}, {"alarms_per_hour": 1}):
        with pytest.raises(KwsError, match="thresholds are for mode carried; give one of your own for windows"):
            Stream(spotter, mode="windows", **how)
    assert Stream(spotter, mode="windows", threshold=0.4).mode == "windows"


def test_a_mode_may_have_thresholds_of_its_own():
    own = {"thresholds": {"1": 0.4, "2": 0.2}, "refractory_s": 0.4, "smooth": 1}
    carried = {"thresholds": {"1": {"go": 0.7}}, "refractory_s": 1.2, "smooth": 3}
    spotter = a_spotter("mamba_light", own | {"carried": carried}, n_fft=400, hop_length=200)
    windows, other = Stream(spotter), Stream(spotter, mode="carried")
    assert (windows.smooth, windows.rest, windows.thresholds.tolist()) == (1, 6400, [0.4] * 3)
    assert (other.smooth, other.rest, other.thresholds.tolist()) == (3, 19200, [0.7, np.inf, np.inf])
    with pytest.raises(KwsError, match="card has thresholds for 1, not for 2 false alarms an hour"):
        Stream(spotter, mode="carried", alarms_per_hour=2)
    for wrong, key in ((5, "detector.carried"), ({"smooth": 0}, "detector.carried.smooth")):
        spotter.card["detector"]["carried"] = wrong
        with pytest.raises(KwsError, match=f"card's {key} is wrong"):
            Stream(spotter, mode="carried")


def test_a_classifier_has_a_default_threshold_and_no_rates(spotters):
    stream = spotters("light").stream()
    assert np.allclose(1 / (1 + np.exp(-stream.thresholds)), 0.8)
    with pytest.raises(KwsError, match="card has no threshold for 1 false alarms an hour"):
        spotters("light").stream(alarms_per_hour=1)
    spotter = a_spotter("keyword_cnn", n_fft=400, hop_length=200)
    spotter.labels[1:] = ["_unknown_", "_silence_"]
    assert Stream(spotter, threshold=-1.0).thresholds.tolist() == [-1.0, np.inf, np.inf]


def words(corpus_path, count=6):
    """A recording of real words with a second of faint noise between them: (samples, [(word, second), …])."""
    import zipfile

    rng, parts, said, labels = np.random.default_rng(0), [], [], kwslib.load("mamba_light").labels
    with zipfile.ZipFile(corpus_path) as archive:
        names = sorted(n for n in archive.namelist() if not n.endswith("/") and n.split("/")[-2] in labels)
        for name in rng.choice(names, count, replace=False):
            wave = decode(archive.read(str(name)))[:16000]
            said.append((name.split("/")[-2], sum(map(len, parts)) / 16000))
            parts += [wave, rng.normal(0, 1e-3, 32000 - len(wave)).astype(np.float32)]
    return np.concatenate(parts), said


@pytest.mark.parametrize("mode", ["windows", "carried"])
def test_real_words_are_heard_when_they_are_said(real_clips, tmp_path, mode):
    wave, said = words(real_clips, 12)
    sf.write(tmp_path / "long.flac", wave, 16000)
    found = kwslib.load("mamba_light").spot(tmp_path / "long.flac", mode=mode)
    right = [w for w, at in said if any(e.word == w and at < e.time < at + 1.9 for e in found)]
    assert len(right) >= 9 and len(found) <= len(right) + 3


def test_spot_is_the_stream_of_a_file(spotters, tmp_path):
    wave = sound(2.0, 22050)
    sf.write(tmp_path / "a.wav", np.stack([wave, wave], 1), 22050, subtype="FLOAT")
    expected = fed(spotters("light").stream(threshold=-1.0), wave, 22050, [2000])[2]
    for found in (
        spotters("light").spot(tmp_path / "a.wav", threshold=-1.0),
        spotters("light").spot(wave, 22050, threshold=-1.0),
    ):
        assert [e[:2] for e in found] == [e[:2] for e in expected] and found
    with pytest.raises(KwsError, match="none.wav does not exist"):
        spotters("light").spot(tmp_path / "none.wav")


# -- anything may come


@pytest.mark.parametrize("mode", ["windows", "carried"])
@pytest.mark.parametrize("name", ["light", "log"])
def test_silence_noise_and_tones_are_heard_without_error(spotters, mode, name):
    t = np.arange(32000) / 16000
    for wave in (np.zeros(32000), np.random.default_rng(0).uniform(-1, 1, 32000), np.sin(6000 * t), np.sign(np.sin(t))):
        scores = fed(spotters(name).stream(mode=mode), wave.astype(np.float32), 16000, [1280])[1]
        assert np.isfinite(scores).all()


def test_bad_chunks_are_one_sentence_and_change_nothing(spotters):
    wave, stream = sound(2.0), spotters("light").stream()
    stream.feed(wave[:9000])
    bad = [
        (np.array([0.1, np.nan]), 16000, "NaN or infinite"),
        (np.array([np.inf]), 16000, "NaN or infinite"),
        (np.array(["a"]), 16000, "the chunk holds"),
        (np.array([300.0]), 16000, "far outside"),
        (wave[:10], 8000, r"sample_rate is 8000, but the stream began at 16000; reset\(\) it first"),
    ]
    for chunk, rate, match in bad:
        with pytest.raises(KwsError, match=match):
            stream.feed(chunk, rate)
    assert stream.feed([]) == []
    stream.feed(wave[9000:])
    np.testing.assert_allclose(stream.scores, spotters("light").scores(wave, 16000)[1], **CLOSE)
    with pytest.raises(KwsError, match="sample_rate is 16001"):
        spotters("light").stream().feed(wave, 16001)


# -- the command


def run(*arguments):
    with pytest.raises(SystemExit) as e:
        cli(lambda: commands.command(["listen", *map(str, arguments)]))
    return e.value.code or 0


def test_the_program_prints_events(spotters, tmp_path, capsys):
    sf.write(tmp_path / "a.wav", sound(4.0), 16000, subtype="FLOAT")
    expected = spotters("light").spot(tmp_path / "a.wav", threshold=-1.0)
    assert run("--wav", tmp_path / "a.wav", "--threshold", "-1") == 0
    out, err = capsys.readouterr()
    assert err.startswith("listening for bed, cat, ") and "an event is a log-odds of -1.0 or more" in err
    lines = out.splitlines()
    assert lines == [f"{e.time:9.2f} s  {e.word}  {e.score:.1f}" for e in expected] and lines
    assert run("mamba_light", "--wav", tmp_path / "a.wav", "--threshold", "-1", "--json") == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert (
        err == ""
        and [(r["word"], r["time"]) for r in rows] == [e[:2] for e in expected]
        and list(rows[0]) == [*expected[0]._fields]
    )


def test_a_reader_that_ends_early_ends_it(tmp_path):
    """As `kws listen … --json | head -1` does."""
    sf.write(tmp_path / "a.wav", sound(20.0), 16000, subtype="FLOAT")
    program = "from kwslib.cli import main; main()"
    command = [sys.executable, "-c", program, "listen", "--wav", tmp_path / "a.wav", "--threshold", "-9", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as heard:
        assert json.loads(heard.stdout.readline())["word"]
        heard.stdout.close()
        assert heard.stderr.read() == b"" and heard.wait() == 0


@pytest.mark.parametrize(
    "options, match",
    [
        (["--device", "gpu"], "device 'gpu' is not known"),
        (["--threshold", "nan"], "invalid number value: 'nan'"),
        (["--threshold", "1", "--rate", "1"], "not allowed with"),
        (["--microphone", "0"], "not allowed with"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, match, tmp_path, capsys):
    sf.write(tmp_path / "a.wav", sound(1.0), 16000, subtype="FLOAT")
    assert run("--wav", tmp_path / "a.wav", *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and match in err


def test_without_a_microphone_there_is_one_sentence(monkeypatch, capsys):
    absent = types.ModuleType("sounddevice")  # installed, and no device

    class PortAudioError(Exception):
        pass

    def query_devices(*_):
        raise PortAudioError("Error querying device -1")

    absent.PortAudioError, absent.query_devices = PortAudioError, query_devices
    for module, match in ((None, "needs sounddevice"), (absent, "no microphone can be opened")):
        monkeypatch.setitem(sys.modules, "sounddevice", module)
        assert run() == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and match in err


def test_a_microphone_is_heard_until_it_is_stopped(monkeypatch, capsys, spotters):
    wave = sound(2.0, 44100)

    class InputStream:
        def __init__(self, callback, samplerate, blocksize, **_):
            self.callback, self.size = callback, blocksize

        def __enter__(self):
            for at in range(0, len(wave), self.size):
                self.callback(wave[at : at + self.size, None], self.size, None, None)

        def __exit__(self, *_):
            pass

    class Stopped:
        def __init__(self):
            self.items = []

        def put(self, item):
            self.items.append(item)

        def get(self):
            if not self.items:
                raise KeyboardInterrupt
            return self.items.pop(0)

    fake = types.ModuleType("sounddevice")
    fake.InputStream, fake.PortAudioError = InputStream, OSError
    fake.query_devices = lambda device, kind: {"default_samplerate": 44100.0}
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr("kwslib.listening.microphone.queue.Queue", Stopped)
    assert run("--threshold", "-1", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = spotters("light").spot(wave, 44100, threshold=-1.0)
    assert [(r["word"], r["time"]) for r in rows] == [e[:2] for e in expected] and rows


def test_the_live_line_says_level_and_scores(spotters):
    from kwslib.listening.microphone import line

    stream = spotters("light").stream()
    stream.feed(sound(1.2))
    text = line(stream, np.full(100, 0.1, np.float32))
    assert " -20.0 dB" in text and "1.2 s" in text and spotters("light").labels[stream.scores[-1].argmax()] in text
    assert "-100.0 dB" in line(stream, np.zeros(100, np.float32))
