"""The campaign of faults: it sees a defect where there is one, and a slice of it finds none."""

import json
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from kwslib.io import KwsError
from paper.torture import __main__ as torture
from paper.torture.inputs import Defect, damaged, seeded, sound_answer


def raising(error):
    def family(rng):
        raise error

    return family


@pytest.mark.parametrize(
    "family, found",
    [
        (lambda rng: None, "answered"),
        (raising(KwsError("a.wav is empty; give another")), "refused"),
        (raising(KwsError("two\nlines")), "refused"),
        (raising(KwsError("")), "no sentence"),
        (raising(ZeroDivisionError("1 / 0")), "ZeroDivisionError: 1 / 0"),
        (raising(MemoryError()), "MemoryError"),
        (lambda rng: sound_answer([("a", math.nan)], ["a"]), "predict answers"),
        (lambda rng: sound_answer([("a", 0.5), ("b", 0.4)], ["a", "b"]), "predict answers"),
        (lambda rng: sound_answer([("a", 1.0)], ["a", "b"]), "predict answers"),
    ],
)
def test_an_attempt_tells_defects_from_refusals(family, found):
    assert torture.attempt(family, "Audio", 0)[0].startswith(found)


@pytest.mark.parametrize("fault", ["hang", "crash", "memory"])
def test_a_process_that_hangs_dies_or_grows_is_a_defect_and_the_rest_is_tried(monkeypatch, tmp_path, fault):
    """The work is replaced by one that fails at its third input, as a family with such a defect would."""
    faults = {"hang": "time.sleep(99)", "crash": "os._exit(-11)", "memory": "print('[2, \"took 900 MB\"]'); sys.exit()"}
    (tmp_path / "work.py").write_text(
        "import os, sys, time, json\n"
        "for i in range(int(sys.argv[5]), int(sys.argv[6])):\n"
        f"    if i == 2: {faults[fault]}\n"
        "    print(json.dumps([i, 'refused']), flush=True)\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(torture, "PATIENCE", 10 if fault == "hang" else 60)
    monkeypatch.setattr(subprocess, "Popen", lambda c, **k: start([sys.executable, tmp_path / "work.py", *c[1:]], **k))
    found = dict(torture.family_of_inputs("Audio", 5))
    wrong = {"hang": "hangs", "crash": "the process ended with", "memory": "took 900 MB"}
    assert list(found) == [0, 1, 2, 3, 4] and found.pop(2).startswith(wrong[fault]) and not any(found.values())


def test_inputs_are_functions_of_their_number():
    data = bytes(range(200))
    assert damaged(seeded(1, 5), data) == damaged(seeded(1, 5), data) != damaged(seeded(1, 6), data)
    assert issubclass(Defect, Exception)


def test_a_slice_of_the_campaign_finds_no_defect(tmp_path):
    """Two minutes of `make torture`."""
    command = [sys.executable, "-m", "paper.torture", "--share", "0.01", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    rows = json.loads((tmp_path / "torture.json").read_text())["rows"]
    assert done.returncode == 0 and not [row["defects"] for row in rows.values() if row["defects"]], done.stderr
    assert sum(row["tried"] for row in rows.values()) > 200 and len(rows) == 12
    assert (tmp_path / "torture.md").read_text().splitlines()[-1].startswith("| all | ")


def test_a_server_that_has_nothing_to_send(tmp_path, monkeypatch):
    """416 tells of a file that is whole only where there is one."""
    from paper.torture import runs as torture_runs

    monkeypatch.setattr(torture_runs, "FAULTS", ["416", "wrong start", "other"])
    found = dict(torture_runs.faulty_servers(tmp_path))
    assert len(found) == 9 and not any(found.values())
