"""The models that come with the repository: they load, say what they are, and know real words."""

import io
import zipfile

import pytest
import soundfile

import kwslib
from kwslib.io import read_json

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shipped(root):
    found = sorted((root / "kwslib/pretrained").glob("*.safetensors"))
    assert found
    return found


def test_a_shipped_model_is_the_run_that_its_card_tells_of(shipped, root):
    for path in shipped:
        card, text = kwslib.load(path).card, path.with_suffix(".md").read_text()
        run = read_json(root / "results" / "subset" / "runs" / f"{card['model']}-{card['recipe']['seed']}.json", "run")
        assert (
            card["recipe"] == run["config"]
            and card["labels"] == run["labels"]
            and card["validation"] == run["validation"]
        )
        assert (
            card["corpus"]["checksum"] == run["corpus"]["checksum"] and f"{100 * run['test']['accuracy']:.2f} %" in text
        )
        assert path.stat().st_size < 2_000_000


def test_a_shipped_model_knows_real_words(shipped, real_clips):
    spotters, right, total = [kwslib.load(path) for path in shipped], 0, 0
    with zipfile.ZipFile(real_clips) as clips:
        for word in ("yes", "stop", "left"):
            for name in sorted(n for n in clips.namelist() if f"/{word}/" in n and n.endswith(".opus"))[:12]:
                wave, rate = soundfile.read(io.BytesIO(clips.read(name)), dtype="float32")
                for spotter in spotters:
                    right, total = right + (spotter.predict(wave, rate)[0][0] == word), total + 1
    assert right / total > 0.85
