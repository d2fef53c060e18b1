"""What proves that a change of the code changes no wake word: three small trainings, each heard (see paper.prove).

Text by two engines, with false alarms that join the negatives; then with recordings; and text by formant voices alone.
They do all that the rows of results/wake do, on fewer clips and in fewer steps."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from kwslib.io import KwsError

SMALL = "--clips 40 --batch 8 --every 40".split()
RUNS = {
    "text": "--engines espeak-ng flite --steps 100 --noise".split(),
    "takes": "--engines espeak-ng flite --start text --takes 3 --steps 20 --lr 5e-4".split(),
    "espeak": "--engines espeak-ng --variants 4 --steps 20 --seed 1".split(),
}


def witness(tree, speech, corpus):
    """SHA-256 of the weights and of the misses of all RUNS, with the code in the folder `tree`."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for name, options in RUNS.items():
            command = [sys.executable, "-m", "paper.spotting.wake", name, "--data", speech, "--corpus", corpus]
            command += ["--cache", Path(folder) / "cache", *SMALL, *options]
            env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            run = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
            if run.returncode:
                raise KwsError(f"the run {name} failed in {tree}: {run.stderr.strip()[-300:]}")
            with safe_open(str(Path(folder) / "cache" / name / "model.safetensors"), "pt") as f:
                for key in sorted(f.keys()):
                    digest.update(key.encode() + f.get_tensor(key).numpy().tobytes())
            result = json.loads((Path(folder) / f"results/wake/{name}.json").read_text())
            digest.update(json.dumps([result.get("clean"), result.get("kitchen_10db")]).encode())
    return digest.hexdigest()
