"""What proves that a change of the code changes no detector: small runs of each kind of stage (see paper.prove).

`words`: wake words from text by two engines, with false alarms that join the negatives; then with recordings; each is
heard, too. `formants`: from text by formant voices alone, with real speech and without. `changed`: the recipe with one
change. `example`: `kwslib.wake.train` with its estimates. `detector`: the commands. `encoder`: what wake words start
from. `little`: trainings on a few recordings. `measure`: the shipped detector of the commands on a little of all that
is measured; `rivals` and `day`: the same, and their own text. They do what the stages of profiles spot, detectors,
encoder and beyond do, on fewer clips or words and in fewer steps."""

import hashlib
import json
import tempfile
from functools import cache, partial
from pathlib import Path

from safetensors import safe_open

from paper.spotting.changed import CHANGES
from paper.trees import run_in

SPOKEN = "espeak-ng", "flite"  # the engines that speak in the small runs
SMALL = "--clips 40 --batch 8".split()
RUNS = {
    "text": ["--engines", *SPOKEN, *"--steps 100 --noise".split()],
    "takes": ["--engines", *SPOKEN, *"--start text --takes 3 --steps 20 --lr 5e-4".split()],
}
FORMANTS = {
    "espeak": "--engines espeak-ng --variants 4 --steps 100 --seed 1 --noise".split(),
    "no_speech": "--engines espeak-ng --no-speech --steps 20".split(),
}


def heard(tree, folder, runs):
    """SHA-256 of the weights and misses of runs of wake words by the code in the folder `tree`; files go to `folder`.

    runs: {name: (its cache, the arguments of Python)}.
    """
    digest = hashlib.sha256()
    for name, (kept, arguments) in runs.items():
        run(tree, folder, *arguments, "--cache", kept, "--every", 40, *SMALL)
        weigh(digest, kept / name)
        result = json.loads((folder / f"results/wake/{name}.json").read_text())
        digest.update(json.dumps([result.get("clean"), result.get("kitchen_10db")]).encode())
    return digest.hexdigest()


def words(tree, speech, corpus, folder, runs=RUNS):
    """`heard` of all runs, one after the other: the second goes on from the first."""
    given = ["--data", speech, "--corpus", corpus]
    called = {name: ["-m", "paper.spotting.wake", name, *given, *options] for name, options in runs.items()}
    return heard(tree, folder, {name: (folder / "cache", arguments) for name, arguments in called.items()})


formants = partial(words, runs=FORMANTS)


def changed(tree, speech, corpus, folder):
    """`heard` of the recipe with each change, which may change what is spoken, too."""
    given = ["--data", speech, "--corpus", corpus, "--engines", *SPOKEN, "--steps", 20]
    return heard(tree, folder, {change: (folder / change, ["-c", CHANGED, change, *given]) for change in CHANGES})


CHANGED = """
import contextlib, sys
from unittest import mock
from paper.spotting import changed
from kwslib.wake import loop
def before_the_encoder():
    return mock.patch.object(loop, "MEMBERS", 1)
with getattr(changed, "one_of_mamba_light", before_the_encoder)(), changed.CHANGES[sys.argv[1]]():
    changed.wake.main()
"""


def example(tree, speech, corpus, folder):
    """SHA-256 of the weights, and of the thresholds that are estimated."""
    digest = hashlib.sha256()
    run(tree, folder, "-c", EXAMPLE, folder, corpus, *SPOKEN)
    weigh(digest, folder)
    digest.update(json.dumps(json.loads((folder / "model.json").read_text())["detector"], sort_keys=True).encode())
    return digest.hexdigest()


EXAMPLE = """
import sys
from kwslib.wake import train, voices
found = {e: v for e, v in voices.engines().items() if e in sys.argv[3:]}
train(["snowboy"], sys.argv[1], negative_paths=[sys.argv[2]], steps=20, batch=8, clips=40, found=found)
"""


def detector(tree, speech, corpus, folder):
    """SHA-256 of the weights; what they miss is the measure's."""
    digest = hashlib.sha256()
    options = ["--speech", speech, "--out", folder, "--steps", 20, *SMALL, "--corpus", corpus]
    run(tree, folder, "-m", "paper.spotting.commands", *options)
    weigh(digest, folder)
    return digest.hexdigest()


def encoder(tree, speech, corpus, folder):
    """SHA-256 of the weights, and of what they name rightly."""
    digest, results = hashlib.sha256(), folder / "results.json"
    options = ["--corpus", corpus, "--speech", speech, "--out", folder, "--results", results, "--steps", 10]
    run(tree, folder, "-c", ENCODER, *options)
    weigh(digest, folder)
    digest.update(json.dumps(json.loads(results.read_text())["validation"]).encode())
    return digest.hexdigest()


ENCODER = """
from kwslib.wake import negatives
negatives.COMMON = negatives.COMMON[:20]
from paper.spotting import encoder
encoder.main()
"""


def little(tree, speech, corpus, folder):
    """SHA-256 of what trainings on three recordings of each word reach, from each start."""
    out = folder / "little.json"
    options = ["--data", speech, "--out", out, *"--clips 3 --seeds 1 --epochs 2".split()]
    run(tree, folder, "-m", "paper.spotting.little", *options)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads(out.read_text())["rows"]]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@cache
def measured(tree, speech, corpus):
    """The result of a small measure, as text."""
    with tempfile.TemporaryDirectory() as folder:
        shipped = Path(tree) / "kwslib/pretrained/commands.safetensors"
        options = ["--corpus", corpus, "--speech", speech, "--out", folder, "--cache", Path(folder) / "cache"]
        run(tree, folder, "-c", MEASURE, shipped, *options, "--hours", 0.02, "--stream-hours", 0.1)
        result = json.loads((Path(folder) / "commands.json").read_text())
    del result["wake"]  # the card's own: how it was trained
    return json.dumps(result, sort_keys=True)


MEASURE = """
from itertools import islice
import numpy as np
from paper.spotting import false_alarms
whole, ordinary = false_alarms.load_corpus, false_alarms.Measure.waves
def few(path):
    corpus = whole(path)
    nth = np.arange(len(corpus.splits))
    dropped = np.where(corpus.splits == "testing", nth % 10 != 5, nth % 10 == 0)
    corpus.splits = np.where(dropped, "left out", corpus.splits)
    return corpus
def short(self, split):
    kinds = ordinary(self, split).items()
    return {kind: lambda make=make: [w[:320_000] for w in islice(make(), 10)] for kind, make in kinds}
false_alarms.load_corpus, false_alarms.Measure.waves = few, short
false_alarms.main()
"""


def measure(tree, speech, corpus, folder):
    """SHA-256 of the result."""
    return hashlib.sha256(measured(tree, speech, corpus).encode()).hexdigest()


def rests_on_measure(*own):
    """Of a stage that rests on the measure's parts: SHA-256 of the small measure's result, and of the stage's `own`
    files."""

    def small(tree, speech, corpus, folder):
        texts = [Path(tree, "paper/spotting", name).read_text() for name in own]
        return hashlib.sha256("".join([measured(tree, speech, corpus), *texts]).encode()).hexdigest()

    return small


rivals, day = rests_on_measure("rivals.py", "engines.py"), rests_on_measure("day.py")


def run(tree, folder, *arguments):
    """Run Python with the code in the folder `tree`, in `folder`."""
    run_in(tree, f"the small run {arguments[1].strip()}", *arguments, folder=folder, OMP_NUM_THREADS="1")


def weigh(digest, checkpoint):
    with safe_open(str(checkpoint / "model.safetensors"), "pt") as f:
        for key in sorted(f.keys()):
            digest.update(key.encode() + f.get_tensor(key).numpy().tobytes())
