"""Proof that a change of the code changes no training: the first epoch of a run, before and after, gives the same weights.

    python -m paper.prove results/subset/runs/mamba_light-0.json --before v0.1 --corpus data/subset

trains the first epoch of the run's own recipe twice, once with the code of the commit `--before` (in a git worktree) and once
with the code in this folder. It compares every weight bit for bit, and the epoch's loss and accuracy with the history
that the run left. The proof is written to results/subset/proofs/mamba_light-0.json.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kwslib.io import KwsError, cli, machine, read_csv, read_json, write_json

EPOCH_KEYS = ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy")


def first_epoch(tree, recipe, corpus, out, threads):
    """Train one epoch of `recipe` with the code in the folder `tree`; the training is stopped when the epoch is saved.

    recipe: the `config` of a result file. Returns {weights: SHA-256 over the names and bytes of all weights, and the epoch's losses
    and accuracies as text}. Only the command line is used, so that old code can be asked too.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.yaml", recipe)  # JSON is YAML
    command = [sys.executable, "-m", "kwslib.train", "--config", out / "recipe.yaml", "--corpus", corpus.resolve(), "--out", out]
    command += ["--threads", str(threads), "--device", "cpu"]
    with open(out / "log.txt", "w") as log:
        run = subprocess.Popen([*map(str, command)], cwd=tree, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(tree)})
        while not (saved := out / "resume.safetensors").exists() and run.poll() is None:
            time.sleep(0.2)
        run.send_signal(signal.SIGKILL)
        run.wait()
    if not saved.exists():
        raise KwsError(f"the first epoch did not end; {out / 'log.txt'} says why")
    row = read_csv(out / "history.csv")[0]
    return {"weights": weights_hash(saved), **{key: row[key] for key in EPOCH_KEYS}}


def weights_hash(path):
    """SHA-256 over the names, dtypes and bytes of the tensors `model.*` of a resume file."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(str(path), "pt") as f:
        for key in sorted(k for k in f.keys() if k.startswith("model.")):
            tensor = f.get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
