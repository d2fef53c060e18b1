"""What proves that a change of the code changes no detector: small trainings of each kind (see paper.prove).

Wake words from text by two engines, with false alarms that join the negatives; then with recordings; and from text by
formant voices alone: each is heard, too. And the commands. They do what the stages of profile spot do that train, on
fewer clips and in fewer steps."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from kwslib.io import KwsError

SMALL = "--clips 40 --batch 8".split()
RUNS = {
    "text": "--engines espeak-ng flite --steps 100 --noise".split(),
    "takes": "--engines espeak-ng flite --start text --takes 3 --steps 20 --lr 5e-4".split(),
    "espeak": "--engines espeak-ng --variants 4 --steps 20 --seed 1".split(),
}


def wake(tree, speech, corpus):
    """SHA-256 of all RUNS' weights and misses, with the code in the folder `tree`."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for name, options in RUNS.items():
            run(tree, folder, "wake", name, "--data", speech, "--cache", cache, "--every", 40, *options, corpus=corpus)
            weigh(digest, cache / name)
            result = json.loads((Path(folder) / f"results/wake/{name}.json").read_text())
            digest.update(json.dumps([result.get("clean"), result.get("kitchen_10db")]).encode())
    return digest.hexdigest()


def commands(tree, speech, corpus):
    """The same of a detector of the commands, but for its misses."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        run(tree, folder, "commands", "--speech", speech, "--out", Path(folder) / "out", "--steps", 20, corpus=corpus)
        weigh(digest, Path(folder) / "out")
    return digest.hexdigest()


def run(tree, folder, module, *arguments, corpus):
    command = [sys.executable, "-m", f"paper.spotting.{module}", *arguments, "--corpus", corpus, *SMALL]
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise KwsError(f"paper.spotting.{module} failed in {tree}: {done.stderr.strip()[-300:]}")


def weigh(digest, checkpoint):
    with safe_open(str(checkpoint / "model.safetensors"), "pt") as f:
        for key in sorted(f.keys()):
            digest.update(key.encode() + f.get_tensor(key).numpy().tobytes())
