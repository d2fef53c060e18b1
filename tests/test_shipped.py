"""The models that come with the repository: they load, say what they are, and know real words."""

import io
import re
import zipfile

import pytest
import soundfile

import kwslib
from kwslib.io import read_json
from kwslib.training.resume import same_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shipped(root):
    """The classifiers; the detector is in test_spot.py."""
    found = sorted((root / "kwslib/pretrained").glob("*.safetensors"))
    found = [path for path in found if "detector" not in kwslib.load(path).card]
    assert found
    return found


def test_a_shipped_model_is_the_run_that_its_card_tells_of(shipped, root):
    for path in shipped:
        card, text = kwslib.load(path).card, path.with_suffix(".md").read_text()
        run = read_json(root / "results" / "subset" / "runs" / f"{card['model']}-{card['recipe']['seed']}.json", "run")
        assert same_run(card, {"recipe": run["config"], "corpus": run["corpus"]})
        assert card["labels"] == run["labels"] and card["validation"] == run["validation"]
        assert f"{100 * run['test']['accuracy']:.2f} %" in text
        assert path.stat().st_size < 2 * 1.1 * run["parameters"] + 50_000  # half precision
    assert sum(path.stat().st_size for path in shipped) < 32_000_000


def test_every_row_ships_but_the_weakest(shipped, root):
    """README says so."""
    accuracy = {}
    for path in (root / "results/subset/runs").glob("*.json"):
        run = read_json(path, "run")
        accuracy[run["model"]] = max(accuracy.get(run["model"], 0), run["test"]["accuracy"])
    missing = accuracy.keys() - {path.stem for path in shipped}
    assert missing == {min(accuracy, key=accuracy.get)} == {"keyword_cnn"}


def test_what_was_measured_of_shipped_models_is_of_these(root):
    """A file older than the weights shows another accuracy than their card's."""
    opus = read_json(root / "results/opus.json", "result file")["models"]
    measured = [(name, found["accuracy_once"], 1e-4) for name, found in opus.items()]
    clip = read_json(root / "results/export.json", "result file")["clip"]
    # a file of one second knows no length: two clips of 2,244 may have another answer
    measured += [(name, found["int8"]["int8"]["accuracy_float"], 1e-3) for name, found in clip.items()]
    for name, accuracy, most in measured:
        assert abs(accuracy - kept(root, name)) < most, name


def kept(root, name):
    """The accuracy on validation that a shipped model's card states, of its half-precision weights."""
    text = (root / f"kwslib/pretrained/{name}.md").read_text()
    return float(re.search(r"accuracy on validation is ([\d.]+) %", text)[1]) / 100


def test_shipped_models_are_listed(shipped, root):
    detectors = {"commands", "wake_words"}  # see test_spot.py
    listed = {model.name: model for model in kwslib.pretrained() if model.name not in detectors}
    assert list(listed) == [path.stem for path in shipped]
    for name, model in listed.items():
        spotter = kwslib.load(name)
        run = read_json(root / f"results/subset/runs/{name}-{spotter.card['recipe']['seed']}.json", "run")
        assert model.words == spotter.labels and (model.licence, model.data_licence) == ("MIT", "CC BY 4.0")
        assert (model.accuracy, model.interval, model.n) == tuple(run["test"][k] for k in ("accuracy", "interval", "n"))


def test_a_shipped_model_knows_real_words(shipped, real_clips):
    spotters, right, total = [kwslib.load(path) for path in shipped], 0, 0
    with zipfile.ZipFile(real_clips) as clips:
        for word in ("yes", "stop", "left"):
            for name in sorted(n for n in clips.namelist() if f"/{word}/" in n and n.endswith(".opus"))[:12]:
                wave, rate = soundfile.read(io.BytesIO(clips.read(name)), dtype="float32")
                for spotter in spotters:
                    right, total = right + (spotter.predict(wave, rate)[0][0] == word), total + 1
    assert right / total > 0.85
