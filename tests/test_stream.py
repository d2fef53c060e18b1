"""Listening in chunks gives what listening at once gives, at any rate and in any chunks; events, state, bad input."""

import itertools
import json
import sys
import types

import numpy as np
import pytest
import torch
import torchaudio.functional as AF

import kwslib
from kwslib import cli as commands
from kwslib.checkpoint import frontend_of
from kwslib.data.audio import decode
from kwslib.io import KwsError, cli
from kwslib.models.layers import Carried
from kwslib.models.registry import build
from kwslib.spotter import KeywordSpotter
from kwslib.stream import Resampler, Stream
from kwslib.training.config import Config

sf = pytest.importorskip("soundfile")
pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ["go", "stop", "yes"]
CLOSE = dict(atol=1e-5, rtol=1e-5)


def a_spotter(name, detector=None, normalise=None, **features):
    """A model that was never trained, with weights that tell sounds apart."""
    torch.manual_seed(0)
    model = build(name, len(LABELS))
    if name in ("mamba_light", "mamba_mel_small"):
        features = {"n_mels": model.frontend.project[0].in_features // 8 if name == "mamba_light" else 128} | features
    options = Config(model=name, corpus="-", out="-", **features)
    card = {"model": name, "labels": LABELS, "features": frontend_of(options).options}
    card["normalisation"] = normalise or {"mean": -30.0, "std": 20.0}
    return KeywordSpotter(model, card | ({"detector": detector} if detector else {}))


LOG = {"scale": "log", "center": False, "n_fft": 512, "hop_length": 160, "win_length": 400}
SPOTTERS = {
    "light": lambda: kwslib.load("mamba_light"),
    "mel small": lambda: kwslib.load("mamba_mel_small"),  # its hop does not divide that of the decisions
    "mfcc small": lambda: kwslib.load("mamba_mfcc_small"),
    "log": lambda: a_spotter("mamba_light", {"window_s": 1.5, "smooth": 3}, {"mean": -5.0, "std": 4.0}, **LOG),
    "reflect": lambda: a_spotter("mamba_light", n_fft=512, hop_length=160, pad_mode="reflect"),
    "retnet": lambda: a_spotter("retnet", n_mels=128),
    "cnn": lambda: a_spotter("keyword_cnn", n_fft=400, hop_length=200),
}
CARRY = ("light", "mel small", "mfcc small", "log")


@pytest.fixture(scope="module")
def spotters():
    made = {}
    return lambda name: made.setdefault(name, SPOTTERS[name]())


def sound(seconds=3.2, rate=16000, seed=0):
    """Tones that come and go over noise, with a pause in which there is next to nothing."""
    t = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (300 + 400 * np.floor(t * 3)) * t) * np.sin(np.pi * t) ** 2
    wave += np.random.default_rng(seed).normal(0, 0.01, len(t))
    return np.where((t > 1.5) & (t < 1.8), 1e-4 * wave, wave).astype(np.float32)


def fed(stream, wave, rate, sizes):
    """(times, scores, events) of a wave that comes in chunks of these sizes, again and again."""
    at, times, scores, events = 0, [], [], []
    for size in itertools.cycle(sizes):
        events += stream.feed(wave[at : at + size], rate) if at < len(wave) else stream.finish()
        times.append(stream.times)
        scores.append(stream.scores)
        if at >= len(wave):
            return np.concatenate(times), np.concatenate(scores), events
        at += size


CHUNKS = {"80 ms": [1280], "10 s": [160_000], "odd": [1, 7, 4801, 0, 333, 29]}


# -- the same scores as at once


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", SPOTTERS)
def test_windows_in_chunks_are_the_scores_at_once(spotters, name, chunks):
    times, scores = spotters(name).scores(sound(), 16000)
    assert len(times) > 15 and np.ptp(scores) > 0.01
    found = fed(spotters(name).stream(mode="windows"), sound(), 16000, CHUNKS[chunks])
    np.testing.assert_array_equal(found[0], times)
    np.testing.assert_allclose(found[1], scores, **CLOSE)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_so_are_those_of_other_rates(spotters, rate):
    wave = sound(2.1, rate)
    times, scores = spotters("light").scores(wave, rate)
    for sizes in ([rate // 10], [len(wave)], [1237, 1, 500]):
        found = fed(spotters("light").stream(), wave, rate, sizes)
        np.testing.assert_array_equal(found[0], times)
        np.testing.assert_allclose(found[1], scores, **CLOSE)


def test_one_sample_at_a_time(spotters):
    wave = sound(1.15)
    found = fed(spotters("light").stream(), wave, 16000, [1])
    np.testing.assert_allclose(found[1], spotters("light").scores(wave, 16000)[1], **CLOSE)


@pytest.mark.parametrize("seconds", [0.001, 0.4, 0.9999])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_recording_shorter_than_a_window_is_heard_at_its_end(spotters, seconds, rate):
    wave = sound(seconds, rate)
    for mode in ("windows", "carried"):
        stream = spotters("light").stream(mode=mode)
        assert stream.feed(wave, rate) == [] and len(stream.scores) == 0
        stream.finish()
        assert stream.times.tolist() == [1.0] and np.isfinite(stream.scores).all()
        if mode == "windows":
            np.testing.assert_allclose(stream.scores, spotters("light").scores(wave, rate)[1], **CLOSE)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 44100, 48000, 96000, 16005])
def test_resampling_carries_its_borders(rate):
    wave = np.random.default_rng(0).normal(0, 0.1, rate // 7 + 3).astype(np.float32)
    expected = AF.resample(torch.from_numpy(wave), rate, 16000)
    for size in (1, 160, len(wave)):
        resampler = Resampler(rate)
        parts = [resampler.feed(part) for part in torch.from_numpy(wave).split(size)] + [resampler.finish()]
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-6, rtol=0)


def test_int16_and_two_channels_are_floats(spotters):
    wave = (sound(1.5) * 32767).astype(np.int16)
    one, two = spotters("light").stream(), spotters("light").stream()
    one.feed(wave)
    two.feed(np.stack([wave, wave], 1) / np.float32(32768))
    np.testing.assert_allclose(one.scores, two.scores, **CLOSE)


# -- carried state


@pytest.mark.parametrize("name", CARRY)
def test_carried_in_chunks_is_carried_at_once(spotters, name):
    times, scores, events = fed(spotters(name).stream(mode="carried", threshold=0.0), sound(), 16000, [10**6])
    np.testing.assert_array_equal(times, spotters(name).scores(sound(), 16000)[0])
    assert np.ptp(scores) > 0.1
    for sizes in CHUNKS.values():
        found = fed(spotters(name).stream(mode="carried", threshold=0.0), sound(), 16000, sizes)
        np.testing.assert_allclose(found[1], scores, atol=1e-5)
        assert [e[:2] for e in found[2]] == [e[:2] for e in events]


def frames_at_once(model, features):
    x = model.frontend(features, None)[0]
    for block in model.blocks:
        x = block(x)
    return model.head.norm(x)


@pytest.mark.parametrize("name", CARRY)
def test_carried_is_the_model_over_the_whole_recording(spotters, name):
    """Features, front-end and blocks of everything at once, and means over the frames that each decision can know."""
    spotter, wave = spotters(name), torch.from_numpy(sound())
    front, model, half = spotter.frontend, spotter.model, spotter.frontend.n_fft // 2
    wide = torch.nn.functional.pad(wave, (half, 0)) if front.center else wave
    how = dict(window=front.window, center=False, return_complex=True)
    power = torch.stft(wide, front.n_fft, front.hop_length, front.win_length, **how).abs().square().T @ front.mel[::2]
    if front.scale == "log":
        mel = (power + 1e-6).log()
    else:
        mel, window = 10 * power.clamp_min(1e-10).log10(), front.frames(16000)
        floors = [mel[max(0, i + 1 - window) : i + 1].max() - 80 for i in range(len(mel))]
        mel = torch.maximum(mel, torch.stack(floors)[:, None])
    mel = mel @ front.dct if front.kind == "mfcc" else mel
    with torch.no_grad():
        x = frames_at_once(model, spotter.normalise(mel)[None])
        stream = spotter.stream(mode="carried")
        stream.smooth = 1
        found = fed(stream, wave.numpy(), 16000, [1280])
        reach = {1: 0, 2: 7, 4: 6}[model.frontend.stride]  # frames of features that a frame needs after its own
        logits = []
        for time in found[0]:
            frames = (round(time * 16000) + half * front.center - front.n_fft) // front.hop_length + 1
            last = (frames - 1 - reach) // model.frontend.stride + 1
            logits.append(model.head.classify(x[:, max(0, last - stream.ear.mean) : last].mean(1)))
    odds = torch.cat(logits).double()
    if "detector" not in spotter.card:
        p = odds.softmax(1)
        odds = p.log() - (1 - p).log()
    np.testing.assert_allclose(found[1], odds, atol=2e-4, rtol=1e-4)


def test_compiled_blocks_are_the_blocks(spotters):
    from kwslib.frames import Compiled

    model, x = spotters("light").model, torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = []
        for kind in (Carried, Compiled):
            carry, state, parts = kind(model), None, []
            for part in x.split([100, 1, 1, 10, 3, 85], 1):
                frames, state = carry(part, state)
                parts.append(frames)
            outputs.append(torch.cat(parts, 1))
        whole = frames_at_once(model, x)
    assert outputs[0].shape[1] >= 46
    torch.testing.assert_close(outputs[0], outputs[1], atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[0], whole[:, : outputs[0].shape[1]], atol=5e-5, rtol=1e-5)


def test_models_without_a_state_listen_by_windows(spotters):
    for name in ("retnet", "cnn"):
        assert spotters(name).stream().mode == "windows"
        with pytest.raises(KwsError, match="carries no state; listen with mode windows"):
            spotters(name).stream(mode="carried")
    with pytest.raises(KwsError, match="mode 'both' is not known; choose one of windows, carried"):
        spotters("light").stream(mode="both")


def test_a_card_names_its_mode():
    assert a_spotter("mamba_light", {"mode": "carried"}, **LOG).stream().mode == "carried"


def test_decisions_may_come_faster_than_frames():
    spotter = a_spotter("mamba_mfcc_small", {"hop_s": 0.005}, {"mean": -30.0, "std": 20.0})
    found = [fed(spotter.stream(mode="carried"), sound(1.3), 16000, [size]) for size in (77, 10**6)]
    assert len(found[0][0]) == 61 and np.isfinite(found[0][1]).all()
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


# -- state


@pytest.mark.parametrize("mode", ["windows", "carried"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_state_is_saved_small_and_goes_on(spotters, tmp_path, mode, rate):
    wave, how = sound(2.5, rate), dict(mode=mode, threshold=0.0)
    whole = fed(spotters("light").stream(**how), wave, rate, [rate // 11])
    for cut in (5, rate, int(1.777 * rate)):
        first = spotters("light").stream(**how)
        before = first.feed(wave[:cut], rate)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        assert (tmp_path / "state.pt").stat().st_size < 300_000
        first.feed(wave[cut:], rate)  # what goes on does not change what was saved
        second = spotters("light").stream(**how)
        second.feed(sound(1.3, 8000), 8000)  # nor does what was heard elsewhere matter
        second.load_state_dict(torch.load(tmp_path / "state.pt"))
        found = fed(second, wave[cut:], rate, [999])
        np.testing.assert_allclose(found[1], whole[1][len(whole[1]) - len(found[1]) :], **CLOSE)
        np.testing.assert_array_equal(found[0], whole[0][len(whole[0]) - len(found[0]) :])
        assert [e[:2] for e in before + found[2]] == [e[:2] for e in whole[2]]


def test_a_state_of_another_stream_is_refused(spotters):
    streams = [spotters("light").stream(mode=mode) for mode in ("windows", "carried")]
    for stream in streams:
        stream.feed(sound(1.5))
    for a, b in (streams, streams[::-1], (streams[0], spotters("cnn").stream())):
        with pytest.raises(KwsError, match="the state does not fit this stream"):
            b.load_state_dict(a.state_dict())


@pytest.mark.parametrize("mode", ["windows", "carried"])
def test_reset_forgets(spotters, mode):
    stream = spotters("light").stream(mode=mode, threshold=0.0)
    fresh = fed(spotters("light").stream(mode=mode, threshold=0.0), sound(), 16000, [1280])
    stream.feed(sound(2, 44100, seed=1), 44100)
    stream.reset()
    again = fed(stream, sound(), 16000, [1280])
    np.testing.assert_array_equal(fresh[1], again[1])
    assert fresh[2] == again[2] and len(stream.chunks) == 0


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
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{e.time:9.2f} s  {e.word}  {e.score:.1f}" for e in expected] and lines
    assert run("mamba_light", "--wav", tmp_path / "a.wav", "--threshold", "-1", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["word"], r["time"]) for r in rows] == [e[:2] for e in expected] and list(rows[0]) == [
        *expected[0]._fields
    ]


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
    monkeypatch.setattr("kwslib.listen.queue.Queue", Stopped)
    assert run("--threshold", "-1", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = spotters("light").spot(wave, 44100, threshold=-1.0)
    assert [(r["word"], r["time"]) for r in rows] == [e[:2] for e in expected] and rows


def test_the_live_line_says_level_and_scores(spotters):
    from kwslib.listen import line

    stream = spotters("light").stream()
    stream.feed(sound(1.2))
    text = line(stream, np.full(100, 0.1, np.float32))
    assert " -20.0 dB" in text and "1.2 s" in text and spotters("light").labels[stream.scores[-1].argmax()] in text
    assert "-100.0 dB" in line(stream, np.zeros(100, np.float32))
