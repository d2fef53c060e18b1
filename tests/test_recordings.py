"""What predict takes: files and samples of many kinds, lists of paths, hours; the rest ends in one sentence."""
# ruff: noqa: F811 (fixtures, which are imported, are names of arguments)

import tracemalloc

import numpy as np
import pytest
import torch
from test_predict import checkpoint, chirp, sf, spotter, values  # noqa: F401 (some are fixtures)

from kwslib.data.audio import to_mono
from kwslib.io import KwsError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "wave, rate, match",
    [
        (np.zeros(16000, np.float32), None, "needs the rate"),
        (np.zeros(16000, np.float32), 0, "sample_rate is 0"),
        (np.zeros(0, np.float32), 16000, "no samples"),
        (np.zeros((2, 0), np.float32), 16000, "no samples"),
        (np.full(16000, np.nan, np.float32), 16000, "NaN"),
        (np.full(16000, np.inf, np.float32), 44100, "infinite"),
        (np.linspace(-3e4, 3e4, 16000), 16000, "a sample of 30000, far outside .* divide by full scale, or give int16"),
        (np.full((2, 16000), 255.0, np.float32), 16000, "a sample of 255, far outside"),
        (torch.full((16000,), -3e4), 16000, "far outside"),
        (np.zeros(16000, np.int64), 16000, "int64 values; give floats"),
        (np.zeros(16000, bool), 16000, "bool values"),
        (np.zeros((32, 16000)), 16000, r"shape \(32, 16000\); give one recording"),
        (np.array(0.5), 16000, r"shape \(\)"),
        ([], 16000, "no samples"),
        ([np.zeros(16000), np.zeros(16000)], 16000, "a list of other things than numbers"),
        ([np.zeros(16000), np.zeros(9000)], 16000, "a list of other things than numbers"),
        (None, 16000, r"shape \(\)"),
        ({"array": np.zeros(16000), "sampling_rate": 16000}, None, r"shape \(\)"),
        (np.zeros(16000), "16000", "sample_rate is '16000'; give a whole number of Hz"),
        (np.zeros(16000), 16000.5, "sample_rate is 16000.5"),
        (np.zeros(16000), float("nan"), "sample_rate is nan"),
        (np.zeros(16000), 44101, "sample_rate is 44101; .* that 5 or 8 divides"),
        (np.zeros(16000), -16000, "sample_rate is -16000"),
        (np.zeros(16000), True, "sample_rate is True"),
    ],
)
def test_bad_samples(spotter, wave, rate, match):
    with pytest.raises(KwsError, match=match) as e:
        spotter.predict(wave, rate)
    assert "\n" not in str(e.value)


def test_a_list_of_paths_gets_a_list_of_answers(spotter, tmp_path):
    paths = [tmp_path / "a.wav", str(tmp_path / "b.wav")]
    for path, (start, end) in zip(paths, ((300, 2500), (3000, 400))):
        sf.write(path, chirp(start=start, end=end), 16000)
    assert spotter.predict(paths) == spotter.predict(tuple(paths)) == [spotter.predict(p) for p in paths]
    assert spotter.predict(paths)[0] != spotter.predict(paths)[1]
    with pytest.raises(KwsError, match="c.wav does not exist"):
        spotter.predict([*paths, tmp_path / "c.wav"])


def test_samples_and_rates_of_many_types_agree(spotter):
    wave, answer = chirp(), spotter.predict(chirp(), 16000)
    for same in (wave.astype(np.float64), torch.from_numpy(wave), wave[None], wave.tolist()):
        for rate in (16000, 16000.0, np.int64(16000), torch.tensor(16000)):
            assert spotter.predict(same, rate) == answer
    whole = np.round(wave * 32768)
    for scale, kind in ((1, np.int16), (65536, np.int32)):
        np.testing.assert_allclose(
            values(spotter.predict((whole * scale).astype(kind), 16000)), values(answer), atol=0.01
        )
    assert to_mono(np.array([0, 128, 192], np.uint8)).tolist() == [-1, 0, 0.5]


def test_a_file_of_floats_far_outside_is_refused(spotter, tmp_path):
    sf.write(tmp_path / "far.wav", 32768 * chirp(), 16000, subtype="FLOAT")
    with pytest.raises(KwsError, match="far.wav cannot be read as audio .has a sample of 13.*, far outside"):
        spotter.predict(tmp_path / "far.wav")


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_long_file_needs_the_memory_of_a_few_minutes(spotter, tmp_path, monkeypatch, rate):
    def quick(w, samples):
        return 10 * torch.stack([w.square().mean(1), w.abs().mean(1), w[:, :8000].abs().mean(1), w.amax(1)], 1)

    monkeypatch.setattr(spotter, "logits", quick)
    peaks = []
    for minutes in (4, 8):
        wave = np.zeros(rate * 60 * minutes, np.float32)
        at = rate * 60 * 3 - rate // 2  # across the border of two blocks
        wave[at : at + rate] = chirp(rate=rate)
        sf.write(tmp_path / "long.wav", wave, rate, subtype="FLOAT")
        tracemalloc.start()
        answer = spotter.predict(tmp_path / "long.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert answer == spotter.predict(wave, rate) and answer[0][1] > 0.5
    assert peaks[1] < 1.05 * peaks[0] < wave.nbytes
