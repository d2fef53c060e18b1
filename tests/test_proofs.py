"""Proofs that a change of the code changes no result, and what renews an entry of dvc.lock."""

import json
import logging
import shutil
import subprocess
import sys

import pytest
from conftest import git

from kwslib.io import KwsError, write_json
from paper import locks, prove, scan_proof, witness


@pytest.fixture(autouse=True)
def dvc_anew():
    """A lock file is read once: a test's, and not that of the test before it. Nor does DVC write where that one did."""
    locks.locked.cache_clear()
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def test_proof_accepts_the_same_weights_and_refuses_others(root, tmp_path, monkeypatch):
    from kwslib.data.corpus import pack

    pack("synthetic", tmp_path / "data/mine", words=["go", "stop"], speakers=(8, 3, 3))
    recipe = {
        "model": "mamba_mfcc_small",
        "epochs": 90,
        "batch_size": 1,
        "lr": 1e-3,
        "task": "all",
        "background_snr": None,
    }
    corpus = tmp_path / "data/mine"
    first = prove.first_epoch(root, recipe, corpus, 1)
    results = tmp_path / "results/mine"
    (results / "history").mkdir(parents=True)
    write_json(results / "runs/m-0.json", {"config": recipe})
    write_json(results / "timing/m-0.json", {"machine": {"threads": 1}})
    columns = list(prove.EPOCH)
    (results / "history/m-0.csv").write_text(",".join(columns) + "\n" + ",".join(first[c] for c in columns) + "\n")
    trees = {"before": root, "after": root}
    proof = prove.prove_training("mine", "train", "m-0", trees, tmp_path)
    assert proof["before"] == proof["after"] == first

    write_json(results / "runs/m-0.json", {"config": recipe | {"lr": 2e-3}})
    shutil.rmtree(tmp_path / "tmp")
    with pytest.raises(KwsError, match="mine m-0: the first epoch differs"):
        prove.prove_training("mine", "train", "m-0", trees, tmp_path)


ONE = '"""Doubles."""\nx = 2  # two\nif x > 9:\n    raise ValueError(f"too large: {x}")\nprint(2 * x)\n'
SAME = '"""Prints twice a number."""\n\nx = 2\nif x > 9:\n    raise ValueError(f"it exceeds nine: {x}")\nprint(2 * x)\n'


@pytest.mark.parametrize("other", [ONE.replace("= 2", "= 3"), ONE.replace("ValueError", "OSError"), ONE + '"""x"""'])
def test_code_is_the_same_in_other_words_alone(other):
    assert locks.code_of(ONE) == locks.code_of(SAME) != locks.code_of(other)


def test_notebooks_and_yaml_are_the_same_in_other_words(tmp_path):
    """Their Markdown and their comments are words; a cell of code and a value are not."""

    def written(folder, words, code, value):
        cells = [{"cell_type": "markdown", "source": [words]}, {"cell_type": "code", "source": [code], "metadata": {}}]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.ipynb").write_text(json.dumps({"cells": cells}))
        (tmp_path / folder / "one.yaml").write_text(f"# {words}\nlr: {value}\n")
        return tmp_path / folder

    first, words = written("first", "a", "x = 1", "1e-3"), written("words", "b", "x = 1", "0.001")
    assert locks.same_code(first, words)
    assert not locks.same_code(first, written("code", "a", "x = 2", "1e-3"))
    assert not locks.same_code(first, written("value", "a", "x = 1", "2e-3"))


def test_words_renew_an_entry_and_code_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/one.py").write_text(ONE)
    stage = "    cmd: python code/one.py > out\n    deps: [code]\n    outs: [{out: {cache: false}}]\n"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  double:\n{stage}")
    for command in (["init", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "code/one.py").write_text(SAME)
    assert prove.prove("HEAD") == [] and "double: the same code in other words" in capsys.readouterr().out
    locks.locked.cache_clear()
    assert prove.prove("HEAD", ["double"]) == [], "what is not out of date is the same"
    (tmp_path / "code/one.py").write_text(ONE.replace("2", "3"))
    assert "double: no proof is known" in prove.prove("HEAD")[0]


def test_where_the_scan_alone_has_changed_its_bits_are_the_proof(tmp_path, monkeypatch, capsys):
    """A benchmark's is that of times, too; where other code has changed, it is none."""
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    for name in ("kwslib/scan/cpu.py", "kwslib/scan/triton.py", "code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(ONE)
    stage = "    cmd: echo 1 > {0}\n    deps: [kwslib/scan, code.py]\n    outs: [{{{0}: {{cache: false}}}}]\n"
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n" + "".join(f"  {n}:\n{stage.format(n)}" for n in ("fit", "benchmark"))
    )
    for command in (["init", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "kwslib/scan/cpu.py").write_text(ONE.replace("2", "3"))
    bits = {True: "a", False: "b"}  # by whether the folder is the root
    monkeypatch.setattr(scan_proof, "scan_bits", lambda tree: bits[tree == tmp_path])
    assert "the bits of the scan differ" in " ".join(prove.prove("HEAD", ["fit"]))
    bits[False] = "a"
    for other in ("code.py", "kwslib/scan/triton.py"):
        (tmp_path / other).write_text(ONE.replace("2", "3"))
        assert "no proof is known" in prove.prove("HEAD", ["fit"])[0]
        (tmp_path / other).write_text(SAME)
    ms = {True: "[2.0]", False: "[1.0]"}
    monkeypatch.setattr(scan_proof, "run_in", lambda tree, *given: ms[tree == tmp_path])
    assert "benchmark: the times of the scan differ ([2.0])" in prove.prove("HEAD", ["benchmark"])[0]
    ms[False] = "[1.9]"
    assert prove.prove("HEAD", ["fit", "benchmark"]) == [] and "fit: same" in capsys.readouterr().out
    assert "time" in (tmp_path / "results/quick/proofs/benchmark.json").read_text()
    proof = json.loads((tmp_path / "results/quick/proofs/fit.json").read_text())
    assert proof["what"] == "bits of the scan" and proof["before"] == proof["after"] == "a"


def test_the_bits_of_the_scan_are_those_of_its_results(root, tmp_path, monkeypatch):
    few = scan_proof.BITS.replace("(1, 7, 64), (1, 31, 47, 63, 94), (128, 192, 256, 384)", "(2,), (3,), (64,)")
    assert few != scan_proof.BITS
    monkeypatch.setattr(scan_proof, "BITS", few)
    monkeypatch.setattr(scan_proof, "scan_bits", scan_proof.scan_bits.__wrapped__)  # each call computes
    (tmp_path / "kwslib").mkdir()
    (tmp_path / "kwslib/scan.py").write_text(
        "import torch\n"
        "def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, initial_state=None, **how):\n"
        "    given = [t for t in (u, delta, A, B, C, D, z, delta_bias, initial_state) if t is not None]\n"
        "    return sum(t.sum() for t in given) * torch.ones(2), u.detach()\n"
    )
    assert scan_proof.scan_bits(root) == scan_proof.scan_bits(root) != scan_proof.scan_bits(tmp_path)
    (tmp_path / "broken/kwslib").mkdir(parents=True)
    (tmp_path / "broken/kwslib/scan.py").write_text("raise OSError('broken')")
    with pytest.raises(KwsError, match="the scan failed in .*broken"):
        scan_proof.scan_bits(tmp_path / "broken")


def test_the_hash_of_weights_sees_one_bit(tmp_path):
    import torch
    from safetensors.torch import save_file

    weights = {"model.a": torch.zeros(3), "other": torch.zeros(2)}
    hashes = []
    for name, change in (
        ("same", {}),
        ("again", {"other": torch.ones(2)}),
        ("bit", {"model.a": torch.tensor([0, 0, 1e-30])}),
    ):
        save_file(weights | change, tmp_path / name)
        hashes.append(prove.weights_hash(tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]


def test_two_measures_of_one_name_have_proofs_of_their_own():
    """The scan's bits say nothing of a detector."""
    assert prove.proof_of("scan", "measure") is prove.prove_times
    assert prove.proof_of("spot", "measure") is prove.proof_of("spot", "detector") is prove.prove_detector
    assert prove.proof_of("quick", "measure") is prove.proof_of("spot", "table") is None


def test_every_kind_of_detector_has_a_small_run():
    kinds = {kind for kind, proof in prove.PROOFS.items() if proof is prove.prove_detector} | {"measure"}
    assert all(callable(getattr(witness, kind)) for kind in kinds - {"takes"})


def test_wake_words_are_proved_by_runs_that_speak_as_they_do(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(prove, "small_runs", lambda of, tree, root: asked.append(of) or "hash")
    for name, engines in (("espeak", ["espeak-ng"]), ("text", ["espeak-ng", "flite"]), ("all", ["espeak-ng", "piper"])):
        write_json(tmp_path / f"results/wake/{name}.json", {"engines": engines})
    for kind, name in (("words", "espeak"), ("words", "text"), ("takes", "takes3"), ("changed", "no_warp")):
        prove.prove_detector("spot", kind, name, {"before": tmp_path, "after": tmp_path}, tmp_path)
    assert asked[::2] == asked[1::2] == ["formants", "words", "words", "changed"]
    with pytest.raises(KwsError, match="piper"):
        prove.prove_detector("spot", "words", "all", {"before": tmp_path, "after": tmp_path}, tmp_path)


@pytest.mark.parametrize("kind", prove.READERS)
def test_what_a_proof_runs_is_there(root, kind):
    assert root.joinpath(*prove.READERS[kind][0].split(".")).with_suffix(".py").is_file()


def test_a_reader_that_fails_says_where_and_why(tmp_path):
    with pytest.raises(KwsError, match=f"robustness of .* failed in {tmp_path}: .*No module named"):
        prove.reading("robustness", tmp_path, tmp_path)
