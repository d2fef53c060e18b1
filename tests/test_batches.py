"""Batches and the paper's interface: the same numbers clip by clip and in batches, from every kind of data."""
# ruff: noqa: F811 (fixtures, which are imported, are names of arguments)

import numpy as np
import pytest
import torch
from test_features import EVERYTHING, RATE, SMALL, row_of, split, tone, waves  # noqa: F401 (some are fixtures)
from test_tasks import corpus_of
from torch.utils.data import DataLoader

import kwslib
from kwslib.data.augment import Augment, SpecMask
from kwslib.data.batches import Batches, SpeechCommands, collate_image, collate_seq
from kwslib.data.corpus import pack
from kwslib.data.features import Normalise, WaveToSpec, to_float
from kwslib.data.tasks import select
from kwslib.io import KwsError

pytestmark = pytest.mark.usefixtures("one_thread")


def loaded(dataset, collate=collate_seq):
    (batch,) = DataLoader(dataset, batch_size=len(dataset), collate_fn=collate)
    return batch


@pytest.mark.parametrize("kind", ["mel", "mfcc"])
def test_clip_by_clip_is_as_in_batches(split, kind):
    spec, normalise = WaveToSpec(kind=kind, **SMALL), Normalise(-20, 15)
    (theirs,) = Batches(split, spec, normalise, 64).all()
    ours = loaded(SpeechCommands(split, None, torch.nn.Sequential(spec, normalise)))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-3, rtol=1e-4)
    assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])
    assert ours[1].dtype == ours[2].dtype == torch.int64
    assert ours[2].tolist() == [51, 38, 29, 50]


def test_clip_by_clip_is_as_in_batches_when_augmented(split):
    spec, augment, n = WaveToSpec(**SMALL), Augment(**EVERYTHING), len(split.targets)
    draw = augment.draw(n, RATE, torch.Generator().manual_seed(9))

    class Given(Augment):
        """Draws what it is given: the first row, then the second, …"""

        rows = iter(range(n))

        def draw(self, *_):
            return row_of(draw, next(self.rows))

    class Whole(Augment):
        def draw(self, *_):
            return draw

    ours = loaded(SpeechCommands(split, Given(**EVERYTHING), spec))
    theirs = Batches(split, spec, Normalise(), 64).batch(torch.arange(n), Whole(**EVERYTHING))
    torch.testing.assert_close(ours[0], theirs[0], atol=5e-3, rtol=1e-4)
    assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])


def test_waves_of_different_lengths_are_padded():
    data = [(tone(440, 16000).numpy(), 1), (tone(700, 5000).numpy(), 0)]
    inputs, targets, lengths = loaded(SpeechCommands(data, None, WaveToSpec()))
    assert inputs.shape == (2, 63, 128) and targets.tolist() == [1, 0] and lengths.tolist() == [63, 20]
    assert (inputs[1, 20:] == 0).all() and (inputs[1, :20] != 0).any()


def test_collate_image(split):
    dataset = SpeechCommands(split, None, WaveToSpec())
    images, sequences = loaded(dataset, collate_image), loaded(dataset)
    assert images[0].shape == (4, 1, 128, 63)
    assert torch.equal(images[0][:, 0].transpose(1, 2), sequences[0]) and torch.equal(images[1], sequences[1])


def test_an_epoch_is_a_function_of_seed_and_epoch(split):
    def epoch(number, seed=0):
        batches = Batches(
            split,
            WaveToSpec(**SMALL),
            Normalise(),
            2,
            augment=Augment(**EVERYTHING),
            mask=SpecMask((1, 4), (1, 4)),
            seed=seed,
        )
        return [torch.cat([p.flatten() for p in parts]) for parts in zip(*batches.epoch(number))]

    first, again = epoch(0), epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert sorted(first[1].tolist()) == sorted(split.targets.tolist())
    assert not torch.equal(first[0], epoch(1)[0]) and not torch.equal(first[0], epoch(0, seed=1)[0])


def test_processes_share_every_batch(split):
    parts = [Batches(split, WaveToSpec(**SMALL), Normalise(), 4, rank=r, world=2) for r in (0, 1)]
    whole = Batches(split, WaveToSpec(**SMALL), Normalise(), 4)
    (a,), (b,), (both,) = (list(x.epoch(3)) for x in (*parts, whole))
    assert len(a[1]) == len(b[1]) == 2
    torch.testing.assert_close(torch.stack([a[0], b[0]], 1).flatten(0, 1), both[0], atol=1e-3, rtol=1e-4)


# -- what the paper's interface takes


def row(samples=RATE, rate=RATE, label=1, hz=440):
    """A row of a Hugging Face data set."""
    wave = 0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / rate)
    return {"file": "a.wav", "audio": {"path": "a.wav", "array": wave, "sampling_rate": rate}, "label": label}


class Rows:
    """A data set: neither a list nor a Sequence, but with a length and items."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


@pytest.mark.parametrize("kind", [list, tuple, Rows])
def test_rows_of_a_hugging_face_data_set(kind):
    rows = [row(label=3), row(5000, label=np.int64(0)), row(48000, 48000, label=torch.tensor(2)), row(95 * RATE)]
    dataset = kwslib.SpeechCommands(kind(rows), None, WaveToSpec(**SMALL))
    inputs, targets, lengths = loaded(dataset)
    assert inputs.shape == (4, 51, 40)  # each is one second, as in the paper
    assert targets.tolist() == [3, 0, 2, 1] and lengths.tolist() == [51, 16, 51, 51] and dataset.labels is None
    (whole, short, resampled, first) = inputs
    assert torch.equal(whole, first) and torch.equal(
        whole, WaveToSpec(**SMALL)(torch.tensor(row()["audio"]["array"]).float())
    )
    torch.testing.assert_close(resampled[2:-2], whole[2:-2], atol=20, rtol=0)
    assert resampled.argmax(1).tolist()[2:-2] == whole.argmax(1).tolist()[2:-2]
    assert (short[20:] < short[:14].max() - 40).all()
    augmented, _, _ = loaded(SpeechCommands(kind(rows), Augment(shift_ms=100), WaveToSpec(**SMALL)))
    assert augmented.shape == inputs.shape and not torch.equal(augmented, inputs)


def test_rows_as_tensors_and_integers():
    wave = (0.3 * np.sin(np.arange(RATE) / 5) * 32768).astype(np.int16)
    audio = {"array": torch.from_numpy(wave), "sampling_rate": torch.tensor(RATE)}
    integers = SpeechCommands([{"audio": audio, "label": 0}], None, WaveToSpec())[0][0]
    floats = SpeechCommands([(wave / 32768, 0)], None, WaveToSpec())[0][0]
    assert torch.equal(integers, floats)


def test_a_corpus_is_a_split_of_it():
    corpus, spec = corpus_of(["up", "down", "go"]), WaveToSpec(**SMALL)
    for options, chosen in (({}, ("all", "training")), ({"split": "testing", "task": ["up", "go"]}, None)):
        theirs = select(corpus, *(chosen or (["up", "go"], "testing")))
        dataset = SpeechCommands(corpus, None, spec, **options)
        assert dataset.labels == theirs.labels and len(dataset) == len(theirs.targets)
        features, target, length = dataset[-1]
        assert torch.equal(features, spec(to_float(theirs.waves[-1])))
        assert target == theirs.targets[-1] and length == 47


def test_a_path_is_a_corpus(tmp_path):
    pack("synthetic", tmp_path / "o", words=["no", "yes"], speakers=(2, 1, 1), workers=1)
    for path in (tmp_path / "o", str(tmp_path / "o")):
        dataset = SpeechCommands(path, None, WaveToSpec(**SMALL))
        assert dataset.labels == ["no", "yes"] and sorted(loaded(dataset)[1].tolist()) == [0, 0, 1, 1]


BAD = {
    "no label": {"audio": row()["audio"]},
    "not decoded": {"audio": {"path": "a.wav", "bytes": b""}, "label": 0},
    "a word for a label": row(label="yes"),
    "three parts": (np.zeros(RATE), RATE, "yes"),
    "a path": "a.wav",
}


@pytest.mark.parametrize(
    "data, match",
    [
        *(
            ([item], r"data\[0\] is not a clip with its class; SpeechCommands takes a packed corpus")
            for item in BAD.values()
        ),
        ([row(label=-1)], r"data\[0\] has label -1"),
        ([row(rate=11)], r"data\[0\] cannot be used: sample_rate is 11"),
        ([(np.full(RATE, 1000.0), 0)], r"data\[0\] cannot be used: .* far outside \[-1, 1\]"),
        ([(np.zeros(0), 0)], r"data\[0\] cannot be used: .* no samples"),
        ({"train": [row()], "test": [row()]}, "data is a dict of train, test; give one split"),
        ((row() for _ in range(2)), "data is of type generator; SpeechCommands takes a packed corpus"),
        (None, "data is of type NoneType"),
        (3, "data is of type int"),
        ([], "data is empty"),
        (torch.zeros(4, RATE), r"data\[0\] is not a clip"),
        ("nowhere/at/all", "corpus nowhere/at/all does not exist"),
    ],
)
def test_other_data_gets_one_sentence(data, match):
    with pytest.raises(KwsError, match=match) as e:
        SpeechCommands(data, None, WaveToSpec())
    assert "\n" not in str(e.value)


def test_swapped_arguments():
    with pytest.raises(KwsError, match="augment is of type WaveToSpec, frontend of type Augment"):
        SpeechCommands([row()], WaveToSpec(), Augment())
