"""Front-ends and augmentations of the paper's notebooks and its rivals: torchaudio's numbers and SoX's lengths."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchaudio.functional as AF
from test_tasks import corpus_of
from torchaudio.transforms import MFCC, AmplitudeToDB, MelSpectrogram

from kwslib.checkpoint import TrainedModel, frontend_of
from kwslib.data.augment import Augment, SpecMask, played, tempo
from kwslib.data.batches import Batches
from kwslib.data.features import Normalise, WaveToSpec, to_float
from kwslib.data.tasks import Split, noise_of
from kwslib.io import KwsError
from kwslib.training.config import Config

RATE = 16000
MEL_256 = dict(win_length=256, hop_length=128, pad_mode="reflect")  # what the notebooks' positional arguments gave
MEL_128 = dict(win_length=128, hop_length=128, pad_mode="reflect")
KEYWORDS = dict(pad_mode="reflect")  # what the paper describes
MFCC_40 = dict(kind="mfcc", pad_mode="reflect")

pytestmark = pytest.mark.usefixtures("one_thread")


def check_wave():
    """Two tones, one of which fades: float32 (16000,)."""
    n = torch.arange(RATE, dtype=torch.float64)
    fading = 0.5 * torch.sin(2 * torch.pi * 440 * n / RATE) * torch.exp(-n / 4000)
    return (fading + 0.1 * torch.sin(2 * torch.pi * 1700 * n / RATE)).float()


def random_clips(n=4):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, RATE, generator=g) * torch.logspace(-3, -0.5, n)[:, None]


def split_of(waves, samples=None):
    samples = torch.full((len(waves),), RATE) if samples is None else torch.tensor(samples)
    clips = (waves.clamp(-0.99, 0.99) * 32768).round().short() * (torch.arange(RATE) < samples[:, None])
    names = np.array([str(i) for i in range(len(waves))])
    return Split(clips.short(), torch.zeros(len(waves), dtype=torch.long), samples, names, names, ["a"])


# -- front-ends


@pytest.mark.parametrize(
    "options, frames, values",
    [
        (MEL_256, 126, (18.126, 30.801, 14.464, -10.987, -32.305, 20.385)),
        (MEL_128, 126, (18.464, 24.429, 17.217, -10.958, -28.841, 23.795)),
        (KEYWORDS, 63, (18.101, 28.825, -32.667, -11.325, -26.611, 15.257)),
        (MFCC_40, 63, (78.595, 9.159, 35.402, -3.540, -8.681, 53.522)),
    ],
    ids=["mel 256/128", "mel 128/128", "mel 2048/256", "mfcc"],
)
def test_the_published_front_ends_give_their_check_values(options, frames, values):
    x = WaveToSpec(**options)(check_wave())
    last = 39 if "kind" in options else 90
    at = [x[0, 0], x[0, 20], x[30, 20], x[-1, last], x.mean(), x.std()]
    assert len(x) == frames
    torch.testing.assert_close(torch.stack(at), torch.tensor(values), atol=1e-3, rtol=0)


def test_the_positional_slip_gives_126_frames_of_16_ms():
    positional = torch.nn.Sequential(MelSpectrogram(RATE, 2048, 256, 128), AmplitudeToDB("power", 80.0))
    for clip, mel in zip(random_clips(), WaveToSpec(**MEL_256)(random_clips())):
        assert mel.shape == (126, 128)
        torch.testing.assert_close(mel, positional(clip).T, atol=0.01, rtol=1e-4)


@pytest.mark.parametrize(
    "n_fft, window, hop, n_mels, center",
    [(2048, 128, 128, 128, True), (480, 480, 160, 40, False), (640, 640, 320, 40, False), (512, 480, 160, 40, True)],
)
def test_mel_and_mfcc_are_torchaudio_s(n_fft, window, hop, n_mels, center):
    theirs = dict(n_fft=n_fft, win_length=window, hop_length=hop, n_mels=n_mels, center=center)
    ours = theirs | dict(pad_mode="reflect")
    mel, power = MelSpectrogram(RATE, **theirs), WaveToSpec(**ours)
    db, mfcc = AmplitudeToDB("power", 80.0), MFCC(RATE, 10, melkwargs=theirs)
    logs, cepstra = WaveToSpec(scale="log", **ours), WaveToSpec(kind="mfcc", n_mfcc=10, **ours)
    for clip in [check_wave(), *random_clips()]:
        expected = mel(clip)
        torch.testing.assert_close(power.power(clip[None])[0], expected.T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(power(clip), db(expected).T, atol=0.01, rtol=1e-4)
        torch.testing.assert_close(logs(clip), (expected + 1e-6).log().T, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(cepstra(clip), mfcc(clip).T, atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("n_fft, hop, frames", [(480, 160, 98), (640, 320, 49)])
def test_uncentred_frames(n_fft, hop, frames):
    spec = WaveToSpec(n_mels=20, n_fft=n_fft, hop_length=hop, center=False)
    assert spec.frames(RATE) == frames and spec.frames(torch.tensor([RATE, 5])).tolist() == [frames, 1]
    for samples in (1, n_fft - 1, n_fft, n_fft + hop, RATE):
        assert len(spec(torch.zeros(samples))) == spec.frames(samples)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: WaveToSpec(n_fft=512, win_length=600), "win_length is 600, more than the 512 samples of n_fft"),
        (lambda: WaveToSpec(pad_mode="edge"), "pad_mode is 'edge'; it must be 'constant' or 'reflect'"),
        (lambda: WaveToSpec(scale="mel"), "scale is 'mel'"),
        (lambda: WaveToSpec(**KEYWORDS)(torch.zeros(1024)), "1024 samples; pad_mode reflect needs more than 1024"),
        (lambda: Normalise(kind="batch"), "normalise is 'batch'"),
        (lambda: SpecMask(on="wave"), "mask_on is 'wave'"),
        (lambda: Augment(background_snr=[0, 5], background_volume=[0, 1]), "background_snr and .* are both set"),
        (lambda: Augment(background_volume=[0, 0.1]), "background_volume is set but the corpus has no second"),
        (lambda: Config(drop_last=1), "drop_last is 1; it must be true or false"),
    ],
)
def test_wrong_options(call, match):
    with pytest.raises(KwsError, match=match):
        call()


def test_a_card_makes_the_same_front_end_again():
    config = Config(model="mamba_mfcc_small", scale="log", center=False, n_fft=512, win_length=400, n_mels=40)
    spec = frontend_of(config)
    again = WaveToSpec(**spec.options)
    assert again.options == spec.options and (again.kind, again.scale, again.win_length) == ("mfcc", "log", 400)
    assert torch.equal(again(check_wave()), spec(check_wave()))
    old = dict(kind="mel", n_mels=64, n_mfcc=40, n_fft=512, hop_length=160, top_db=80.0)  # of a card before these keys
    assert torch.equal(WaveToSpec(**old)(check_wave()), WaveToSpec(64, 512, 160)(check_wave()))


# -- normalisation


def test_normalisations():
    x = 3 * torch.randn(5, 60, 40, generator=torch.Generator().manual_seed(0)) - 20
    torch.testing.assert_close(Normalise(-20, 3)(x), (x + 20) / 3, atol=1e-5, rtol=1e-5)
    assert torch.equal(Normalise(kind="none")(x), x)
    mine = Normalise(kind="clip")
    for clip, normal in zip(x, mine(x)):
        torch.testing.assert_close(normal, (clip - clip.mean()) / (clip.std() + 1e-6), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine(x[0]), mine(x)[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        mine(x, torch.tensor([60, 30, 60, 60, 9]))[1, :30], mine(x[1, :30]), atol=1e-5, rtol=1e-5
    )
    assert mine(torch.zeros(1, 5, 4)).abs().max() == 0
    for made in (mine, Normalise(kind="none"), Normalise(-20, 3)):
        assert torch.equal(Normalise(**made.options)(x), made(x))
    assert Normalise(-20, 3).options == {"mean": -20.0, "std": 3.0}  # as in every card so far


def test_the_corpus_mean_and_deviation_are_those_of_all_its_values():
    split, spec = split_of(random_clips(6)), WaveToSpec(**MEL_256)
    measured, values = Normalise.measure(split, spec, batch_size=4), spec(to_float(split.waves)).double()
    assert abs(measured.mean - values.mean()) < 1e-6 and abs(measured.std - values.std()) < 1e-6


# -- masks


def test_masks_are_drawn_as_torchaudio_draws_them():
    n, size, bound = 20_000, 63, 20
    ones = torch.ones(n, size, 5)
    ours = SpecMask(time=(1, bound))(ones, torch.Generator().manual_seed(0))[..., 0] == 0
    torch.manual_seed(0)
    theirs = AF.mask_along_axis_iid(ones.transpose(1, 2)[:, None], bound, 0.0, 3)[:, 0, 0] == 0
    for count in (lambda m: m.sum(1).bincount(minlength=bound), lambda m: m.sum(0)):
        a, b = count(ours).double(), count(theirs).double()
        assert ((a - b).abs() < 5 * (a + b + 1).sqrt()).all()  # of widths, and of frames that are masked
    assert ours.sum(1).max() == bound - 1 and ours.sum(1).min() == 0
    short = SpecMask(time=(1, bound))(ones[:1000], torch.Generator().manual_seed(0), torch.full((1000,), 12))
    masked = (short[..., 0] == 0).sum(0)
    assert (masked[:11] > 0).all() and (masked[12:] == 0).all()  # in the clip's own 12 frames


@pytest.mark.parametrize("kind, mask_bands", [("mel", 128), ("mfcc", 40)])
def test_what_masks_fill(kind, mask_bands):
    split, spec, normalise = split_of(random_clips()), WaveToSpec(kind=kind, **MEL_256), Normalise(-30, 20)
    plain = spec(to_float(split.waves))

    def masked(on):
        mask = SpecMask((2, mask_bands // 4), (2, 30), on)
        return Batches(split, spec, normalise, 4).batch(torch.arange(4), None, mask, torch.Generator().manual_seed(2))[
            0
        ]

    last, before = masked("normalised"), masked("features")
    hit = last == 0
    assert len({tuple(clip.all(1).tolist()) for clip in hit}) == 4  # each clip has masks of its own
    torch.testing.assert_close(last[~hit], normalise(plain)[~hit], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(before[hit], torch.full_like(before[hit], 30 / (20 + 1e-6)))
    torch.testing.assert_close(before[~hit], last[~hit])
    if kind == "mel":
        dark = masked("power")
        floors = dark.amax((1, 2), keepdim=True) - 80 / 20
        torch.testing.assert_close(dark[hit], floors.expand_as(dark)[hit], atol=1e-4, rtol=1e-4)
        assert (dark[~hit] >= last[~hit] - 1e-4).all()


# -- tempo


def test_tempo_lengths_are_the_published_ones():
    rates = torch.tensor([0.95, 1.05, 0.9, 1.1, 1.0])
    draw = {"tempo": rates}
    out, samples = Augment().apply(random_clips(5), draw)
    assert samples.tolist() == [16842, 15238, 17778, 14545, 16000] and out.shape == (5, 17778)
    spec = WaveToSpec(**MFCC_40)
    assert spec.frames(samples).tolist() == [66, 60, 70, 57, 63]
    assert torch.equal(out[4, :RATE], random_clips(5)[4])  # at rate 1 nothing moves
    assert all((row[n:] == 0).all() and row[n - 500 :].any() for row, n in zip(out, samples))
    drawn = Augment(stretch=(0.998, 1.002)).draw(500, RATE, torch.Generator().manual_seed(0))["tempo"]
    assert ((drawn == 1) | ((drawn - 1).abs() >= 1e-3)).all() and 150 < (drawn == 1).sum() < 350


@pytest.mark.parametrize("rate", [0.9, 0.97, 1.03, 1.1])
def test_tempo_joins_a_tone_without_a_seam(rate):
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(RATE) / RATE)
    size = int(played(RATE, {"tempo": torch.tensor([rate])}))
    out = tempo(tone[None], torch.tensor([rate]), size)[0][: size - 500]
    # a tone of this pitch and amplitude obeys x[n+1] + x[n-1] = 2 cos(w) x[n] everywhere
    beat = out[2:] + out[:-2] - 2 * np.cos(2 * np.pi * 440 / RATE) * out[1:-1]
    assert beat.abs().max() < 0.003 and abs(out.abs().max() - 0.3) < 0.01


@pytest.mark.parametrize("options", [MFCC_40, MEL_128, dict(center=False, scale="log")], ids=["mfcc", "mel", "log"])
@pytest.mark.parametrize("kind", ["corpus", "clip"])
def test_clips_of_different_lengths_are_as_alone_with_zeros_after(options, kind):
    samples = [16000, 12000, 16000, 15000]
    split, spec = split_of(random_clips(), samples), WaveToSpec(n_fft=1024, **{"hop_length": 256, **options})
    normalise = Normalise(-30, 20, kind) if kind == "corpus" else Normalise(kind=kind)
    augment = Augment(shift_ms=100, noise=(0.001, 0.01), stretch=(0.9, 1.1))
    draw = augment.draw(4, RATE, torch.Generator().manual_seed(3))
    fixed = SimpleNamespace(draw=lambda *_: draw, apply=augment.apply)
    for full in (False, True):
        x, _, lengths = Batches(split, spec, normalise, 4, full=full).batch(torch.arange(4), fixed)
        for i in range(4):
            row = {k: v[i : i + 1] for k, v in draw.items()}
            wave, end = augment.apply(to_float(split.waves[i : i + 1]), row, split.samples[i : i + 1])
            alone = normalise(spec(wave))[0]
            torch.testing.assert_close(x[i, : len(alone)], alone, atol=2e-3, rtol=1e-3)
            assert x[i, len(alone) :].abs().sum() == 0
            assert lengths[i] == (len(alone) if full else spec.frames(end))


# -- lengths, noise, batches


def test_full_lengths_count_the_padding():
    split, spec = split_of(random_clips(), [16000, 9000, 400, 1]), WaveToSpec(**MEL_256)
    for full, expected in ((False, [126, 71, 4, 1]), (True, [126] * 4)):
        (batch,) = Batches(split, spec, Normalise(), 4, full=full).all()
        assert batch[2].tolist() == expected
        (batch,) = Batches(split, spec, Normalise(), 4, augment=Augment(shift_ms=100), full=full).epoch(0)
        assert not full or batch[2].tolist() == expected


def test_a_model_counts_frames_as_it_was_trained_to():
    class Lengths(torch.nn.Module):
        def forward(self, x, lengths):
            return torch.zeros(len(x), 1) if lengths is None else lengths[:, None]

    card = {"labels": ["a"], "features": {}, "normalisation": {"kind": "clip"}}
    waves, samples = random_clips(2), torch.tensor([RATE, 256])
    assert TrainedModel(Lengths(), card).logits(waves, samples).flatten().tolist() == [63, 2]
    card["recipe"] = {"lengths": "full"}
    assert TrainedModel(Lengths(), card).logits(waves, samples).flatten().tolist() == [0, 0]


def test_background_is_added_at_a_share_of_full_volume():
    noise = 0.5 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(5))
    augment = Augment(background=noise, background_volume=(0.02, 0.1), background_probability=0.5)
    waves = 0.01 * random_clips(40)
    draw = augment.draw(40, RATE, torch.Generator().manual_seed(1))
    added = augment.apply(waves, draw)[0] - waves
    for i in range(40):
        start = int(draw["start"][i])
        share = draw["volume"][i] * draw["mix"][i]
        torch.testing.assert_close(added[i], share * noise[start : start + RATE], atol=1e-6, rtol=1e-4)
    assert 0.02 <= draw["volume"].min() < 0.03 and 0.09 < draw["volume"].max() <= 0.1 and 8 < draw["mix"].sum() < 32
    loud = torch.ones(1, RATE)  # clipped, as in TensorFlow's speech_commands
    assert augment.apply(loud, augment.draw(1, RATE))[0].max() <= 1


@pytest.mark.parametrize("seconds", [[20] * 6, [95, 62, 61, 60, 61, 60], [10, 12, 15], [15] * 23])
def test_whole_files_of_noise_are_held_out(seconds):
    corpus = corpus_of(["up"])
    files = [np.full(n * RATE, i, np.int16) for i, n in enumerate(seconds)]
    corpus.noise, corpus.card["noise_files"] = np.concatenate(files), [len(f) for f in files]
    heard = {s: set(np.unique(noise_of(corpus, s)).tolist()) for s in ("training", "validation", "testing")}
    assert set.union(*heard.values()) == set(range(len(seconds)))
    assert sum(map(len, heard.values())) == len(seconds)  # no file is in two splits
    if len(seconds) == 6:
        assert heard["testing"] == {0} and heard["validation"] == {4}
    assert all(noise_of(corpus, s).shape[1] == 10 * RATE for s in heard)


def test_files_of_noise_that_are_too_few_or_too_short_are_split_in_time():
    for seconds in ([60], [30, 30], [3, 30, 30]):
        corpus = corpus_of(["up"], noise_seconds=sum(seconds))
        corpus.card["noise_files"] = [n * RATE for n in seconds]
        heard = [set(noise_of(corpus, s).ravel().tolist()) for s in ("training", "validation", "testing")]
        assert [len(h) for h in heard] == [48, 6, 6] and len(set.union(*heard)) == 60


@pytest.mark.parametrize(
    "clips, size, drop_last, world, counts",
    [
        (10, 4, True, 1, [4, 4]),
        (10, 4, False, 1, [4, 4, 2]),
        (9, 4, False, 1, [4, 4]),  # one clip is too few for batch norm
        (8, 4, False, 1, [4, 4]),
        (11, 4, False, 2, [2, 2]),
        (3, 4, True, 1, [3]),
        (3, 4, False, 1, [3]),
        (1, 4, False, 1, [1]),
    ],
)
def test_the_last_batch(clips, size, drop_last, world, counts):
    split = split_of(0.1 * torch.ones(clips, RATE))
    batches = Batches(split, WaveToSpec(8, 512, 512), Normalise(), size, world=world, drop_last=drop_last)
    assert [len(targets) for _, targets, _ in batches.epoch(0)] == counts and len(batches) == len(counts)
    assert batches.clips() == sum(counts) * world
