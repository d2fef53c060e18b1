"""Features and augmentation: torchaudio's numbers; a clip gets the same ones alone and in a batch."""

import numpy as np
import pytest
import torch

from kwslib.data.augment import Augment, SpecMask, TimeWarp, resample_each, tempo, white
from kwslib.data.features import Normalise, WaveToSpec, to_float
from kwslib.data.tasks import Split
from kwslib.io import KwsError

RATE = 16000
SMALL = dict(n_mels=40, n_fft=512, hop_length=320)
EVERYTHING = dict(
    shift_ms=100,
    noise=(0.001, 0.01),
    stretch=(0.9, 1.1),
    background_snr=(0, 20),
    background=(np.random.default_rng(7).normal(0, 2000, 3 * RATE)).astype(np.int16),
)


pytestmark = pytest.mark.usefixtures("one_thread")


def tone(hz, samples=RATE, amplitude=0.3):
    return amplitude * torch.sin(2 * torch.pi * hz * torch.arange(samples) / RATE)


@pytest.fixture(scope="module")
def waves():
    """Four different clips, float (4, 16000)."""
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(4, RATE, generator=g)
    return torch.stack([tone(440), 0.2 * noise[1], tone(2000) + 0.01 * noise[2], 0.001 * noise[3]])


@pytest.fixture(scope="module")
def split(waves):
    samples = torch.tensor([16000, 12000, 9000, 15999])
    clips = (waves * 32767).round().short() * (torch.arange(RATE) < samples[:, None])
    return Split(
        clips.short(),
        torch.tensor([2, 0, 1, 2]),
        samples,
        np.array(list("aabb")),
        np.array(list("wxyz")),
        ["down", "go", "up"],
    )


# -- features


@pytest.mark.parametrize("options", [{}, SMALL], ids=["paper", "small"])
def test_mel_is_torchaudio_s(waves, options):
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    o = {"n_mels": 128, "n_fft": 2048, "hop_length": 256, **options}
    theirs = torch.nn.Sequential(
        MelSpectrogram(RATE, power=2.0, pad_mode="constant", **o), AmplitudeToDB("power", 80.0)
    )
    ours = WaveToSpec(**options)(waves)
    assert ours.dtype == torch.float32 and ours.shape == (4, 1 + RATE // o["hop_length"], o["n_mels"])
    # one by one: in a batch, torchaudio's floor is below the loudest clip's maximum
    for clip, mel in zip(waves, ours):
        torch.testing.assert_close(mel, theirs(clip).T, atol=0.02, rtol=1e-4)
        assert mel.max() - mel.min() <= 80.001


def test_mfcc_is_torchaudio_s(waves):
    from torchaudio.transforms import MFCC

    theirs = MFCC(RATE, 40, melkwargs=dict(n_fft=2048, hop_length=256, n_mels=128, pad_mode="constant"))
    ours = WaveToSpec(kind="mfcc")(waves)
    assert ours.shape == (4, 63, 40)
    for clip, mfcc in zip(waves, ours):
        torch.testing.assert_close(mfcc, theirs(clip).T, atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mel", "mfcc"])
def test_a_clip_has_its_features_whoever_is_beside_it(waves, kind):
    spec = WaveToSpec(kind=kind)
    loud = torch.cat([waves, 0.99 * torch.ones(1, RATE).bernoulli_().mul(2).sub(1)])
    for batch in (waves, loud, loud.repeat(5, 1)):  # the last is large enough to be made in parts
        for clip, features in zip(waves, spec(batch)):
            torch.testing.assert_close(features, spec(clip), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 255, 256, 8000, 16000, 20 * RATE])
def test_frames(samples):
    spec = WaveToSpec()
    assert (
        spec(torch.zeros(samples)).shape == (spec.frames(samples), 128) and spec.frames(samples) == 1 + samples // 256
    )


def test_silence_is_finite():
    for kind in ("mel", "mfcc"):
        assert WaveToSpec(kind=kind)(torch.zeros(2, RATE)).isfinite().all()


def test_wrong_features():
    with pytest.raises(KwsError, match="'spectrum'; it must be 'mel' or 'mfcc'"):
        WaveToSpec(kind="spectrum")
    with pytest.raises(KwsError, match="n_mfcc is 40, more than the 20 mel bands"):
        WaveToSpec(kind="mfcc", n_mels=20)


def test_normalised_training_clips_have_mean_zero_and_deviation_one(split):
    spec = WaveToSpec(**SMALL)
    x = Normalise.measure(split, spec, batch_size=3)(spec(to_float(split.waves)))
    assert x.mean().abs() < 1e-4 and abs(x.std(correction=0) - 1) < 1e-4


def test_a_silent_corpus_is_refused(split):
    silent = Split(torch.zeros_like(split.waves), *list(vars(split).values())[1:])
    with pytest.raises(KwsError, match="no variance"):
        Normalise.measure(silent, WaveToSpec(), batch_size=3)


# -- augmentation


def row_of(draw, i):
    return {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in draw.items()}


@pytest.mark.parametrize("left_out", [(), ("stretch",), ("background_snr", "background"), ("shift_ms", "noise")])
def test_a_clip_is_changed_alike_alone_and_in_a_batch(waves, left_out):
    augment = Augment(**{k: v for k, v in EVERYTHING.items() if k not in left_out})
    samples = torch.tensor([16000, 9000, 16000, 12000])
    draw = augment.draw(4, RATE, torch.Generator().manual_seed(5))
    together, ends = augment.apply(waves, draw, samples)
    assert not torch.allclose(together[:, :14000], waves[:, :14000], atol=1e-3)
    for i in range(4):
        alone, end = augment.apply(waves[i : i + 1], row_of(draw, i), samples[i : i + 1])
        size = alone.shape[1]  # tempo makes clips shorter and longer; zeros follow the shorter ones
        torch.testing.assert_close(alone[0], together[i, :size], atol=1e-6, rtol=1e-5)
        assert end == ends[i] and together[i, size:].abs().sum() == 0


def test_defaults_leave_the_wave_as_it_is(waves):
    assert torch.equal(Augment()(waves), waves) and torch.equal(Augment()(waves[0]), waves[0])
    x = torch.randn(2, 63, 40)
    assert torch.equal(SpecMask()(x), x)


def test_a_generator_decides_everything(waves):
    augment, mask, before = Augment(**EVERYTHING), SpecMask((2, 5), (2, 9)), waves.clone()
    a, b, c = (augment(waves, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(waves, before)
    x = torch.randn(3, 60, 40)
    a, b, c = (mask(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("shift", [-1600, -1, 0, 7, 1600])
def test_shift_moves_by_exactly_that(waves, shift):
    augment = Augment(shift_ms=100)
    samples = torch.tensor([16000, 9000, 500, 15999])
    out, ends = augment.apply(waves, {"shift": torch.full((4,), shift)}, samples)
    expected = torch.zeros_like(waves)
    if shift >= 0:
        expected[:, shift:] = waves[:, : RATE - shift]
    else:
        expected[:, :shift] = waves[:, -shift:]
    assert torch.equal(out, expected)
    assert ends.tolist() == [min(max(n + shift, 1), RATE) for n in samples.tolist()]


def test_shifts_cover_their_range():
    draw = Augment(shift_ms=100).draw(5000, RATE, torch.Generator().manual_seed(0))["shift"]
    assert -1600 <= draw.min() < -1580 and 1580 < draw.max() <= 1600


def test_slower_then_shifted_left_ends_where_the_zeros_begin(waves):
    augment = Augment(shift_ms=100, stretch=(0.9, 0.9))
    out, ends = augment.apply(waves[:1], {"tempo": torch.tensor([0.9]), "shift": torch.tensor([-1600])})
    assert out.shape == (1, 17778) and ends.tolist() == [17778 - 1600]
    assert out[0, 16178:].abs().max() == 0 and out[0, 15700:16178].abs().max() > 0.1  # 82 ms play on at speed 1


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_background_is_mixed_at_the_drawn_ratio(waves, kind):
    noise = EVERYTHING["background"]
    noise = noise if kind is np.int16 else (noise / 32768).astype(kind)
    augment = Augment(background=noise, background_snr=(-5, 20), background_probability=0.5)
    many = waves.repeat(10, 1)
    draw = augment.draw(40, RATE, torch.Generator().manual_seed(1))
    added = augment.apply(many, draw)[0].double() - many.double()
    mixed = added.abs().amax(1) > 0
    assert torch.equal(mixed, draw["mix"]) and 8 < mixed.sum() < 32
    ratio = 10 * torch.log10(many.double().square().mean(1) / added.square().mean(1))
    torch.testing.assert_close(ratio[mixed], draw["snr"].double()[mixed], atol=0.02, rtol=0)
    assert draw["snr"].min() >= -5 and draw["snr"].max() <= 20 and draw["snr"].max() > draw["snr"].min() + 10
    i = int(mixed.nonzero()[0])
    piece = torch.from_numpy(noise).double()[draw["start"][i] : draw["start"][i] + RATE]
    assert torch.corrcoef(torch.stack([piece, added[i]]))[0, 1] > 0.999


def test_background_needs_a_second_of_noise():
    with pytest.raises(KwsError, match="set background_snr to null or add a _background_noise_ folder"):
        Augment(background_snr=(0, 20), background=np.zeros(100, np.int16))


def test_white_noise_is_normal_and_each_row_its_own():
    x = white(torch.arange(50), 16001, "cpu")
    assert x.shape == (50, 16001) and x.isfinite().all()
    assert x.mean().abs() < 0.005 and (x.std() - 1).abs() < 0.005 and (x.pow(4).mean() - 3).abs() < 0.05
    # neighbouring seeds have nothing in common
    assert (x.double().corrcoef() - torch.eye(50)).abs().max() < 0.04
    spectrum = torch.fft.rfft(x).abs().square().mean(0)[1:8001].view(16, 500).mean(1) / 16001
    assert (spectrum - 1).abs().max() < 0.05  # white
    assert torch.equal(white(torch.tensor([7]), 16001, "cpu")[0], x[7])


def test_noise_has_the_drawn_deviation():
    augment, silence = Augment(noise=(0.001, 0.01)), torch.zeros(30, RATE)
    draw = augment.draw(30, RATE, torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.apply(silence, draw)[0].std(1), draw["sigma"], rtol=0.03, atol=0)
    assert 0.001 <= draw["sigma"].min() and draw["sigma"].max() <= 0.01


@pytest.mark.parametrize("rate", [0.8, 0.95, 1.25])
def test_tempo_keeps_the_pitch_and_moves_what_is_heard(rate):
    size = round(RATE / rate)
    heard = tempo(tone(440)[None], torch.tensor([rate]), size)[0]
    assert len(heard) == size
    peak = torch.fft.rfft(heard * torch.hann_window(len(heard)), 4 * RATE).abs().argmax() / 4
    assert abs(peak - 440) < 3
    burst = torch.zeros(1, RATE)
    burst[:, 8000:9600] = tone(1000, 1600)
    envelope = torch.nn.functional.avg_pool1d(tempo(burst, torch.tensor([rate]), size).abs(), 201, 1, 100)[0]
    onset = int((envelope > envelope.max() / 2).nonzero()[0])
    assert abs(onset - 8000 / rate) < 400


@pytest.mark.parametrize("freq, time", [((2, 12), (2, 20)), ((0, 0), (1, 5)), ((1, 500), (0, 0))])
def test_masks_are_zeros_narrower_than_their_bound(freq, time):
    out = SpecMask(freq, time)(torch.ones(300, 63, 40), torch.Generator().manual_seed(0))
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    bands, frames = (out == 0).all(1).sum(1), (out == 0).all(2).sum(1)
    whole = bands == 40  # every band masked: then every frame is, too
    assert bands.max() <= min(freq[0] * freq[1], 40) and frames[~whole].max() <= time[0] * max(time[1] - 1, 0)
    cells = 63 * 40 - (63 - frames[~whole]) * (40 - bands[~whole])
    assert torch.equal((out[~whole] == 0).sum((1, 2)), cells)  # nothing but whole bands and whole frames
    single = SpecMask((1, 12), (1, 20))(torch.ones(2000, 63, 40), torch.Generator().manual_seed(0)) == 0
    widths = single.all(1).sum(1).bincount(minlength=12)
    assert len(widths) == 12 and (widths > 110).all()  # uniform from 0 to 11


def test_speed_moves_pitch_and_length():
    t = torch.arange(16000) / 16000
    waves = torch.sin(2 * torch.pi * 500 * t).repeat(3, 1)
    out = resample_each(waves, torch.tensor([1.0, 1.25, 0.8]))
    torch.testing.assert_close(out[0], waves[0])
    peaks = torch.fft.rfft(out[:, :12000]).abs().argmax(1) * 16000 / 12000
    torch.testing.assert_close(peaks, torch.tensor([500.0, 625.0, 400.0]), atol=2.0, rtol=0)
    assert out[1, 12801:].abs().max() == 0 and out[2, 15000:].abs().max() > 0.9  # 0.8 s of sound; cut at 1 s


def test_speed_is_drawn_for_each_clip_and_moves_its_end():
    augment, waves = Augment(speed=(0.8, 1.25)), torch.rand(64, 16000)
    draw = augment.draw(64, 16000, torch.Generator().manual_seed(0))
    out, samples = augment.apply(waves, draw, torch.full((64,), 10000))
    assert len(draw["speed"].unique()) > 60 and 0.8 <= draw["speed"].min() and draw["speed"].max() <= 1.25
    torch.testing.assert_close(samples, (10000 / draw["speed"]).long())
    alone, _ = augment.apply(waves[5:6], {"speed": draw["speed"][5:6]}, torch.tensor([10000]))
    torch.testing.assert_close(alone[0], out[5])


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: Augment()(torch.zeros(2, 2, RATE)), r"waves has shape \(2, 2, 16000\)"),
        (lambda: Augment().apply(torch.zeros(RATE), {}), r"waves has shape \(16000,\)"),
        (
            lambda: Augment(**{**EVERYTHING, "stretch": None})(torch.zeros(1, 4 * RATE)),
            "waves has 64000 samples, the background noise 48000",
        ),
        (lambda: SpecMask((1, 2))(torch.zeros(63, 40)), r"x has shape \(63, 40\)"),
        (lambda: TimeWarp()(torch.zeros(63, 40)), r"x has shape \(63, 40\)"),
        (lambda: WaveToSpec()(torch.zeros(2, 1, RATE)), r"wave has shape \(2, 1, 16000\)"),
        (lambda: WaveToSpec()(torch.zeros(RATE, dtype=torch.int16)), "type torch.int16"),
        (lambda: WaveToSpec()(torch.zeros(2, 0)), r"shape \(2, 0\)"),
    ],
)
def test_wrong_shapes(call, match):
    with pytest.raises(ValueError, match=match) as e:
        call()
    assert "\n" not in str(e.value)


def test_a_time_warp_moves_frames_in_order_and_keeps_the_ends():
    """Features that are their own time stamps show where each frame was read."""
    stamps = torch.arange(150.0)[None, :, None].expand(200, 150, 2)
    out = TimeWarp(6, 0.25)(stamps, torch.Generator().manual_seed(0))
    assert out.shape == stamps.shape and torch.equal(out[..., 0], out[..., 1])
    assert torch.allclose(out[:, [0, -1], 0], torch.tensor([0.0, 149.0]), atol=1e-3)
    tempo = out[:, :, 0].diff(dim=1)
    assert (tempo > 0).all() and tempo.max() > 1.4 and tempo.min() < 0.7
    assert 3 < (out - stamps).abs().amax((1, 2)).mean() < 20  # frames: enough to matter, and still the word
    assert torch.allclose(TimeWarp(6, 0.0)(stamps), stamps, atol=1e-4)
