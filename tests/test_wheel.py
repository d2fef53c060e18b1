"""The wheel, installed without extras in a fresh environment, works from an empty folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

USE = """
import kwslib, numpy, torch
from pathlib import Path
assert "site-packages" in kwslib.__file__, kwslib.__file__
spotter = kwslib.load("mamba_light")
(label, probability), *_ = spotter.predict(numpy.zeros(16000, numpy.float32), sample_rate=16000)
assert label in spotter.labels and 0 < probability <= 1
assert {entry.name: set(entry.words) for entry in kwslib.pretrained()}["mamba_light"] == set(spotter.labels)

rng = numpy.random.default_rng(0)
import soundfile
for word in ("go", "stop"):
    for n in range(40):
        path = Path("recordings", word, f"{n:08x}_nohash_0.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 16000), 16000)

if __name__ == "__main__":
    corpus = kwslib.pack("recordings", "corpus")
    held = corpus.card["clips"]["training"]
    two_steps = dict(corpus="corpus", out="run", epochs=1, batch_size=held // 2, background_snr=None)
    config = kwslib.load_config("mamba_light", **two_steps)
    kwslib.train(config)
    assert set(kwslib.load("run").labels) == {"go", "stop"}
    print("all of it worked")
"""


@pytest.fixture(scope="module")
def environment(root):
    """A fresh environment with the wheel and what it needs, at the versions of the lock; beside .venv, whose files it
    shares.
    """
    uv = shutil.which("uv", path=os.path.dirname(sys.executable))
    if not uv:
        pytest.skip("uv is not in this environment: make env puts it there")
    folder = root / "tmp" / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("UV_CACHE_DIR", str(folder / "cache"))
    source = folder / "source"  # built from a copy, so that the checkout gets no build folder
    shutil.copytree(root / "kwslib", source / "kwslib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    call(uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, source)
    python = folder / "env/bin/python"
    call(uv, "venv", "--quiet", "--python", sys.executable, folder / "env")
    (wheel,) = folder.glob("*.whl")
    plain = [
        line for line in (root / "requirements.txt").read_text().splitlines() if not line.lstrip().startswith("--hash")
    ]
    (folder / "constraints.txt").write_text("\n".join(line.rstrip(" \\") for line in plain))
    call(uv, "pip", "install", "--quiet", "--python", python, "--constraints", folder / "constraints.txt", wheel)
    yield python
    shutil.rmtree(folder, ignore_errors=True)


def call(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def alone():
    """An environment without this checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"OMP_NUM_THREADS": "1"}


def test_wheel_predicts_and_trains_from_an_empty_folder(environment, tmp_path):
    (tmp_path / "use.py").write_text(USE)
    assert "all of it worked" in call(environment, "use.py", cwd=tmp_path, env=alone())


def test_the_wheel_brings_kws_and_no_paper(environment, tmp_path):
    kws = Path(environment).with_name("kws")
    for command in ("pack", "train", "test", "predict", "bench"):
        assert "usage" in call(kws, command, "--help", cwd=tmp_path, env=alone()).lower()
    look = "from importlib.util import find_spec; print(*map(find_spec, ('paper', 'pandas', 'dvc')))"
    found = call(environment, "-c", look, cwd=tmp_path, env=alone())
    assert found.split() == ["None", "None", "None"]
