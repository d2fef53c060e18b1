"""The snippets of README and docs run as they stand; the pages are what their templates give."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from paper import pages

DOCS = [
    "README.md",
    *(f"docs/{page}.md" for page in "own_words wake_words listening scan scale results".split()),
    *(f"docs/{page}.md" for page in "reproduce published extending deploy".split()),
]


@pytest.fixture
def place(root, tmp_path):
    """An empty folder with a recording in it."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).normal(0, 0.05, 24_000)
    soundfile.write(tmp_path / "my recording.wav", noise, 16_000)
    return tmp_path


def run(command, folder, root):
    """Run in `folder` as an installed kwslib would, with `kws` on the path; returns what was printed."""
    scripts = os.path.dirname(sys.executable)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def blocks(text, language):
    """The fenced code blocks of a page in one language, in order: what the tests run."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/own_words.md", "docs/listening.md", "docs/scan.md"])
def test_python_runs_as_it_stands(root, place, page):
    text = (root / page).read_text()
    if find_spec("transformers") is None:  # an extra
        text = text.split("## Mamba on any CPU")[0]
    code = "\n".join(blocks(text, "python"))
    assert code
    (place / "snippet.py").write_text(code)
    printed = run([sys.executable, "snippet.py"], place, root)
    assert "print(" not in code or printed.strip()


@pytest.mark.parametrize(
    "page, tells, leaves",
    [
        ("README.md", "my recording.wav", "results/words/runs"),
        ("docs/own_words.md", "2 clips, 1 speakers", "data/table.png"),
    ],
)
def test_shell_runs_as_it_stands(root, place, page, tells, leaves):
    commands = blocks((root / page).read_text(), "sh")
    assert commands
    printed = run(["bash", "-ec", "\n".join(commands)], place, root)
    assert tells in printed and (place / leaves).exists()


def test_a_model_is_one_file_and_one_recipe(root, place):
    """The two blocks of docs/extending.md, put where that page says, train by name."""
    page = (root / "docs/extending.md").read_text()
    shutil.copytree(root / "kwslib", place / "kwslib", ignore=shutil.ignore_patterns("pretrained", "__pycache__"))
    (place / "kwslib/models/my_model.py").write_text(*blocks(page, "python"))
    (place / "kwslib/recipes/my_model.yaml").write_text(*blocks(page, "yaml"))
    run(
        [sys.executable, "-m", "kwslib.corpus", "synthetic", "data", "--words", "go,stop", "--speakers", "6", "2", "2"],
        place,
        place,
    )
    train = [
        sys.executable,
        "-m",
        "kwslib.train",
        "--config",
        "my_model",
        "--corpus",
        "data",
        "--out",
        "run",
        "--epochs",
        "1",
    ]
    run(train, place, place)
    model = "kwslib.count_parameters(kwslib.build('my_model', 2, width=48)), kwslib.MODELS['my_model'].label"
    count = f"import kwslib; print({model})"
    assert run([sys.executable, "-c", count], place, place).strip() == f"{128 * 48 + 48 + 48 * 2 + 2} My model"


def test_models_that_were_not_run_stay_off_the_page(root):
    page = (root / "docs/results.md").read_text(encoding="utf-8")
    for profile in ("commands", "quick"):
        rows = (root / f"results/{profile}/tables/comparison.md").read_text(encoding="utf-8").split("\n| --- ")[1]
        rows = rows.split("\n")[1:]
        assert {("| not run |" in row, row in page) for row in rows if row} == {(True, False), (False, True)}


def test_generated_pages_are_their_templates(root):
    for page, text in pages.render(root).items():
        assert (root / page).read_text(encoding="utf-8") == text, f"{page} is out of date; run `make pages`"


def test_the_page_on_own_words_shows_what_was_measured(root):
    """Few recordings: the cells of results/little.md, row by row."""
    measured, page = ((root / p).read_text().splitlines() for p in ("results/little.md", "docs/own_words.md"))
    cells = [line.split("|")[2:] for line in measured if re.match(r"\| (from|shipped)", line)]
    assert len(cells) == 4 and cells == [line.split("|")[2:] for line in page if re.match(r"\| (from|the same)", line)]


def test_readme_is_short(root):
    assert len((root / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", DOCS)
def test_links_lead_somewhere(root, page):
    path = root / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.split("#")[0]).exists(), f"{page} links to {target}"


def test_examples_run(root, place):
    assert "step by step equals all at once: True" in run([sys.executable, root / "examples/scan_only.py"], place, root)
    run([sys.executable, root / "examples/spotter_in_an_application.py", "my recording.wav"], place, root)
    run(["kws", "pack", "synthetic", "words", "--words", "go,stop", "--speakers", "6", "3", "3"], place, root)
    write = (
        "import csv, numpy, pathlib, soundfile\n"
        "waves = numpy.load('words/waves.npy')\n"
        "for wave, row in zip(waves, csv.DictReader(open('words/index.csv'))):\n"
        "    path = pathlib.Path('recordings', row['path']).with_suffix('.wav')\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    soundfile.write(path, wave, 16000)\n"
    )
    run([sys.executable, "-c", write], place, root)
    printed = run([sys.executable, root / "examples/train_own_words.py", "recordings", "mine", "1"], place, root)
    assert "best on validation:" in printed and (place / "mine/model.safetensors").is_file()
