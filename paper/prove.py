"""Proof that a change of the code changes no result, for stages that take too long to run again.

    python -m paper.prove --before v0.1                               all stages that are out of date
    python -m paper.prove --before v0.1 profiles/subset/dvc.yaml:train@mamba_light-0

A training is proved by its first epoch: the run's own recipe is trained for one epoch with the code of the commit
`--before` (in a git worktree) and with the code in this folder; all weights must be equal bit for bit, and the epoch's
losses and accuracies must be those of the history that the run left, unless that run was on a GPU. What only reads a
checkpoint (robustness, streaming) is proved by running it on a shipped model with both codes: the results must be
equal. Detectors, and what hears them, are proved by small runs (paper.witness). Where nothing has changed but the scan
for processors, its bits prove every stage; of a benchmark, its times must agree as well (paper.scan_proof). Each proof
is kept in results/<profile>/proofs, and only then is the stage's entry in dvc.lock renewed. Where only comments,
docstrings, the texts of errors or the quotes of a command have changed, the syntax trees are the proof, and nothing is
run (paper.locks). Every other stage takes minutes: run it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

from kwslib.io import KwsError, cli, read_csv, read_json, write_json
from kwslib.training.config import read_yaml
from kwslib.wake.voices import only_formants
from paper import witness
from paper.locks import only_words_changed, renew, stale
from paper.scan_proof import KERNELS, prove_by_scan, prove_times
from paper.trees import only, run_in

EPOCH = ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy")
WITNESS = "kwslib/pretrained/mamba_light.safetensors"  # a checkpoint that every clone has
PER_MACHINE = ("machine", "seconds")


def first_epoch(tree, recipe, corpus, threads):
    """Train one epoch of `recipe` with the code in the folder `tree`; the training is stopped once the epoch is saved.

    recipe: the `config` of a result file. corpus: folder of the packed corpus. Returns {weights: SHA-256 over the names
    and bytes of all weights, and the epoch's losses and accuracies as text}. Old code is asked by its command line
    alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_json(out / "recipe.yaml", recipe)  # JSON is YAML
        arguments = ["--config", out / "recipe.yaml", "--corpus", corpus, "--out", out, "--threads", threads]
        with open(out / "log", "w") as log:
            command = [sys.executable, "-m", "kwslib.train", *map(str, arguments)]
            run = subprocess.Popen(command, cwd=tree, stdout=log, stderr=log, env=only(tree))
            while not (out / "resume.safetensors").exists() and run.poll() is None:
                time.sleep(0.02)
            run.kill()
            run.wait()
        if not (out / "resume.safetensors").exists():
            raise KwsError(f"the first epoch did not end in {tree}: {(out / 'log').read_text().strip()[-300:]}")
        row, *later = read_csv(out / "history.csv")
        if later:
            raise KwsError(f"an epoch in {tree} is too short to stop after the first; run this training again instead")
        return {"weights": weights_hash(out / "resume.safetensors"), **{key: row[key] for key in EPOCH}}


def weights_hash(path):
    """SHA-256 over the names, dtypes, shapes and bytes of the tensors `model.*` of a resume file."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(str(path), "pt") as f:
        for key in sorted(k for k in f.keys() if k.startswith("model.")):
            tensor = f.get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def training_of(profile, kind, name, root):
    """(recipe, corpus folder, threads, first row of the history or None) of a training stage's committed result."""
    results = root / "results" / profile
    timing = read_json(results / "timing" / f"{name}.json", "timing")
    if kind in ("train", "again"):
        recipe = read_json(results / "runs" / f"{name}.json", "result file")["config"]
        row = read_csv(results / "history" / f"{name}.csv")[0]
        row = None if timing["machine"].get("gpu") else {key: row[key] for key in EPOCH}  # a GPU's bits are its own
    else:
        recipe, row = read_json(results / "trials" / f"{name}.json", "trial")["recipe"], None
    return recipe, root / "data" / profile, timing["machine"]["threads"], row


def prove_training(profile, kind, name, trees, root):
    """The proof of one training stage: {what, before, after, recorded}. Raises KwsError where they differ."""
    recipe, corpus, threads, recorded = training_of(profile, kind, name, root)
    kept = root / "tmp" / "prove" / trees["before"].name / f"{profile}-{name}.json"  # the old code need not run twice
    if not kept.exists():
        write_json(kept, first_epoch(trees["before"], old_keys(recipe), corpus, threads))
    found = {"what": "first epoch", "threads": threads, "before": read_json(kept, "proof")}
    found |= {"after": first_epoch(trees["after"], recipe, corpus, threads), "recorded": recorded}
    same = found["before"] == found["after"] and (recorded is None or recorded.items() <= found["after"].items())
    if not same:
        raise KwsError(f"{profile} {name}: the first epoch differs ({found}); train it again")
    return found


def old_keys(recipe):
    """The recipe without the keys that are empty: code from before such a key existed takes it."""
    return {key: value for key, value in recipe.items() if value != {}}


def prove_reading(profile, kind, name, trees, root):
    """The proof of a stage that reads a checkpoint: the hash of what it finds for the shipped model, equal in both."""
    found = {"what": f"{kind} of {WITNESS}"} | {when: finding(kind, tree, root) for when, tree in trees.items()}
    if found["before"] != found["after"]:
        raise KwsError(f"{profile} {name}: the results differ; run the stage again")
    return found


READERS = {"robustness": ("paper.robustness",), "streaming": ("paper.spotting.streaming", "--hours", 0.5)}
WITNESS_LOCKS = defaultdict(Lock)  # of each kind: two threads would both compute it


def finding(kind, tree, root):
    """`reading`, run once although several threads ask for it."""
    with WITNESS_LOCKS[kind]:
        return reading(kind, tree, root)


@cache
def reading(kind, tree, root):
    """SHA-256 of what a reader of a tree finds for the shipped model, without what depends on the machine."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        options = [*READERS[kind], root / WITNESS, "--corpus", root / "data/beyond", "--out", out]
        run_in(tree, f"{kind} of {WITNESS}", "-m", *options)
        result = read_json(out, "result")
    result = {key: value for key, value in result.items() if key not in PER_MACHINE}
    return hashlib.sha256(repr(sorted(result.items())).encode()).hexdigest()


@cache
def small_runs(of, tree, root):
    """The hash of small runs of a kind, once: see paper.witness."""
    speech = read_yaml(root / "profiles/spot/dvc.yaml", "pipeline", "clone it again")["vars"][1]["speech"]
    with tempfile.TemporaryDirectory() as folder:
        return getattr(witness, of)(tree, (root / speech).resolve(), root / "data/spot", Path(folder))


def prove_detector(profile, kind, name, trees, root):
    """The proof of a stage that trains or measures detectors: the hash of small runs, equal in both."""
    of = "words" if kind == "takes" else kind
    if kind == "words":
        engines = read_json(root / f"results/wake/{name}.json")["engines"]
        of = "formants" if only_formants(engines) else kind
        if odd := set(engines) - set(witness.SPOKEN):
            raise KwsError(f"{profile} {name}: no small run speaks by {min(odd)}; run the stage again")
    with WITNESS_LOCKS[of]:
        found = {"what": f"small runs of {of}"} | {when: small_runs(of, tree, root) for when, tree in trees.items()}
    if found["before"] != found["after"]:
        raise KwsError(f"{profile} {name}: the small runs differ; run the stage again")
    return found


PROOFS = {"train": prove_training, "again": prove_training, "trial": prove_training, "taught": prove_training,
          **dict.fromkeys("day detector encoder example little rivals words takes changed".split(), prove_detector),
          **dict.fromkeys(READERS, prove_reading)}  # fmt: skip


def proof_of(profile, kind, scan_alone=False):
    """The function that proves a kind of stage, None where there is none. scan_alone: of the stage's code nothing but
    the scan for processors has changed. The scan's measure and the detector's have one name.
    """
    if (profile, kind) == ("scan", "measure") or (scan_alone and kind == "benchmark"):
        return prove_times
    if scan_alone:
        return prove_by_scan
    return prove_detector if (profile, kind) == ("spot", "measure") else PROOFS.get(kind)


def prove(before, addresses=(), root=".", jobs=2):
    """Prove the stages `addresses` (default: all that are out of date), renew their entries; returns the sentences of
    what failed.
    """
    from dvc.repo import Repo

    root, repo, failed = Path(root).resolve(), Repo(str(root), _wait_for_lock=True), []
    commit = subprocess.run(["git", "rev-parse", before], cwd=root, capture_output=True, text=True)
    if commit.returncode:
        raise KwsError(f"commit {before!r} is not in this repository; name one whose code made the results")
    commit = commit.stdout.strip()
    tree = root / "tmp" / "prove" / "trees" / commit
    if not tree.is_dir():
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--force", tree, commit], cwd=root, check=True, capture_output=True
        )
    trees = {"before": tree, "after": root}

    def one(address):
        path, _, stage = address.rpartition(":")
        kind, _, name = stage.partition("@")
        profile = Path(path).parent.name or "quick"
        profile = {"beyond": "subset", "encoder": "spot", "wake_words": "spot"}.get(profile, profile)
        prover = proof_of(profile, kind, address in by_scan)
        if not prover:
            return f"{address}: no proof is known for this kind of stage; run it: dvc repro --single-item {address}"
        try:
            proof = prover(profile, kind, name, trees, root)
        except KwsError as e:
            return str(e)
        proof_file = "-".join(filter(None, (kind, name)))
        write_json(root / f"results/{profile}/proofs/{proof_file}.json", {"commit_before": commit, **proof})
        print(f"{address}: same", flush=True)
        return None

    addresses = list(addresses) or stale(repo)
    for address in [a for a in addresses if only_words_changed(repo, a, tree)]:
        renew(repo, address)
        addresses.remove(address)
        print(f"{address}: the same code in other words", flush=True)
    by_scan = [a for a in addresses if only_words_changed(repo, a, tree, KERNELS)]
    with ThreadPoolExecutor(jobs) as pool:
        for address, problem in zip(addresses, pool.map(one, addresses)):
            if problem:
                failed.append(problem)
            else:
                renew(repo, address)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="*", help="addresses of stages (default: all that are out of date)")
    parser.add_argument("--before", help="commit whose code made the results")
    parser.add_argument("--list", action="store_true", help="only list what is out of date; exit 1 if anything is")
    parser.add_argument("--jobs", type=int, default=2, help="proofs at a time (default 2)")
    a = parser.parse_args()
    if a.list:
        from dvc.repo import Repo

        found = stale(Repo(".", _wait_for_lock=True))
        print("\n".join(found) or "nothing is out of date")
        return 1 if found else 0
    if not a.before:
        raise KwsError("no commit is given; name the one whose code made the results, as in: make prove BEFORE=HEAD~3")
    failed = prove(a.before, a.stages, jobs=a.jobs)
    for problem in failed:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    cli(main)
