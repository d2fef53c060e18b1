"""Listening in chunks gives what listening at once gives, at any rate and in any chunks, by windows or with a state."""

import numpy as np
import pytest
import torch
import torchaudio.functional as AF
from small_streams import CARRY, CHUNKS, CLOSE, LOG, SPOTTERS, a_spotter, fed, sound

from kwslib.io import KwsError
from kwslib.listening.stream import Resampler
from kwslib.models.ensemble import members_of
from kwslib.models.layers import Carried

sf = pytest.importorskip("soundfile")
pytestmark = pytest.mark.usefixtures("one_thread")


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
    front, members, half = spotter.frontend, members_of(spotter.model), spotter.frontend.n_fft // 2
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
        whole = [frames_at_once(member, spotter.normalise(mel)[None]) for member in members]
        stream = spotter.stream(mode="carried")
        stream.smooth = 1
        found = fed(stream, wave.numpy(), 16000, [1280])
        reach = {1: 0, 2: 7, 4: 6}[
            stride := members[0].frontend.stride
        ]  # frames of features that a frame needs after its own
        logits = []
        for time in found[0]:
            frames = (round(time * 16000) + half * front.center - front.n_fft) // front.hop_length + 1
            last = (frames - 1 - reach) // stride + 1
            means = [x[:, max(0, last - stream.ear.mean) : last].mean(1) for x in whole]
            logits.append(torch.stack([m.head.classify(mean) for m, mean in zip(members, means)]).mean(0))
    odds = torch.cat(logits).double()
    if "detector" not in spotter.card:
        p = odds.softmax(1)
        odds = p.log() - (1 - p).log()
    np.testing.assert_allclose(found[1], odds, atol=2e-4, rtol=1e-4)


def test_compiled_blocks_are_the_blocks(spotters):
    from kwslib.listening.frames import Compiled

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
    assert a_spotter("mamba_light", {"modes": ["carried"]}, **LOG).stream().mode == "carried"


def test_decisions_may_come_faster_than_frames():
    spotter = a_spotter("mamba_mfcc_small", {"hop_s": 0.005}, {"mean": -30.0, "std": 20.0})
    found = [fed(spotter.stream(mode="carried"), sound(1.3), 16000, [size]) for size in (77, 10**6)]
    assert len(found[0][0]) == 61 and np.isfinite(found[0][1]).all()
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


def test_two_states_take_turns():
    """With restart_s, every decision is that of a stream that began between once and twice as many seconds before."""
    spotter = a_spotter("mamba_light", {"smooth": 1, "carried": {"restart_s": 1.0}}, **LOG)
    wave = sound(5.0)
    times, scores, _ = fed(spotter.stream(mode="carried"), wave, 16000, [16000, 777, 3200])
    before, after = spotter.stream(mode="carried"), spotter.stream(mode="carried")
    before.feed(wave[:40_000])
    after.load_state_dict(before.state_dict())
    np.testing.assert_array_equal(fed(after, wave[40_000:], 16000, [999])[1], scores[-25:])
    del spotter.card["detector"]["carried"]
    plain = fed(spotter.stream(mode="carried"), wave, 16000, [1280])[1]
    assert np.abs(scores[:11] - plain[:11]).max() < 1e-5 < 1e-3 < np.abs(scores[11:] - plain[11:]).max()
    for begin in (1, 2, 3):  # the convolutions go on over a start: a second later nothing is left of that
        late = fed(spotter.stream(mode="carried"), wave[16000 * begin :], 16000, [1280])
        at = np.isin(np.round(times, 1), np.round(late[0] + begin, 1)) & (times > begin + 1.05) & (times < begin + 2.05)
        own = late[1][np.isin(np.round(late[0] + begin, 1), np.round(times[at], 1))]
        assert at.sum() == 10
        np.testing.assert_allclose(scores[at], own, atol=0.05)
    for wrong, words in (
        (0.5, "restart_s is 0.5; a state hears a window of 1 s"),
        ("no", "carried.restart_s is wrong"),
    ):
        spotter.card["detector"]["carried"] = {"restart_s": wrong}
        with pytest.raises(KwsError, match=words):
            spotter.stream(mode="carried")


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
