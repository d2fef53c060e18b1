"""What the Opus encoding of the profile's clips costs, estimated by encoding them once more.

    python -m paper.opus_cost ../shared/data/speech_commands_subset.zip --out results/opus.json

Profile subset's recordings are Speech Commands' clips as Ogg Opus at about 16 kbit/s. The originals are not at hand, so
the decoded clips of the validation split are encoded again with the settings that their files name, and the shipped
models hear both. A second generation is not the first: the first pass has already removed what the codec does not
keep, and the models were trained on once-encoded clips; so this is an estimate of the cost, not the cost. The test
split is not read. Needs opusenc (Debian: opus-tools)."""

import argparse
import re
import shutil
import subprocess
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch

from kwslib import load, pack
from kwslib.data.audio import to_float
from kwslib.data.folder import which_set
from kwslib.data.tasks import select
from kwslib.io import SAMPLE_RATE, KwsError, cli, cores, write_json

MODELS = ("mamba_light", "mamba_mel_small")
OPTIONS = tuple(
    "--bitrate 16 --framesize 20 --comp 10 --discard-comments --padding 0".split()
)  # as the comment ENCODER_OPTIONS of the clips says


def write_twice(archive, folder):
    """The validation clips of the archive, in `folder`/once as they are and in `folder`/twice encoded again.
    -> (how many, bytes of the first, bytes of the second)"""
    with zipfile.ZipFile(archive) as z:
        names = [
            n for n in z.namelist() if which_set(Path(n).name.split("_nohash_")[0]) == "validation" and "_nohash_" in n
        ]
        clips = {"/".join(Path(n).parts[-2:]): z.read(n) for n in names}
    stated = re.search(rb"ENCODER_OPTIONS=([ -~]*)", next(iter(clips.values())))
    if not stated or not stated[1].decode().startswith(" ".join(OPTIONS)):
        raise KwsError(f"the clips of {archive} are not encoded with {' '.join(OPTIONS)}; change OPTIONS to theirs")

    def encode(item):
        once, twice = (folder / generation / item[0] for generation in ("once", "twice"))
        once.parent.mkdir(parents=True, exist_ok=True)
        twice.parent.mkdir(parents=True, exist_ok=True)
        once.write_bytes(item[1])
        wave, rate = soundfile.read(once, dtype="int16")
        wav = twice.with_suffix(".wav")
        soundfile.write(wav, wave, rate)
        # One serial number for all, so that the same clips give the same bytes.
        subprocess.run(["opusenc", "--quiet", "--serial", "1", *OPTIONS, wav, twice], check=True)
        wav.unlink()
        return len(item[1]), twice.stat().st_size

    with ThreadPoolExecutor(cores()) as pool:
        sizes = [*pool.map(encode, clips.items())]
    return len(sizes), *map(sum, zip(*sizes))


def compare(spotter, once, twice):
    """Two Splits of the same clips -> accuracies, how many answers change, and how far the logits move."""
    if once.labels != list(spotter.labels) or once.paths.tolist() != twice.paths.tolist():
        raise KwsError("the clips once and twice encoded are not the same; give an archive whose clips are all whole")
    logits = []
    for s in (once, twice):
        pieces = zip(s.waves.split(256), s.samples.split(256))
        logits.append(torch.cat([spotter.logits(to_float(waves), samples) for waves, samples in pieces]))
    right = [(x.argmax(1) == once.targets).numpy() for x in logits]
    moved = (logits[1] - logits[0]).abs()
    margin = logits[0].topk(2).values
    return {
        "clips": len(once.targets),
        "accuracy_once": right[0].mean(),
        "accuracy_twice": right[1].mean(),
        "answers_changed": int((logits[0].argmax(1) != logits[1].argmax(1)).sum()),
        "right_only_once": int((right[0] & ~right[1]).sum()),
        "right_only_twice": int((~right[0] & right[1]).sum()),
        "logits_moved_mean": moved.mean().item(),
        "logits_moved_largest": moved.max().item(),
        "margin_median": (margin[:, 0] - margin[:, 1]).median().item(),  # what a logit must move by to matter
    }


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m paper.opus_cost", description=__doc__.splitlines()[0])
    parser.add_argument("archive", help="the zip of Opus clips")
    parser.add_argument("--out", default="results/opus.json", help="default: results/opus.json")
    arguments = parser.parse_args(argv)
    if not shutil.which("opusenc"):
        raise KwsError("opusenc is not installed; on Debian: apt-get install opus-tools")
    version = subprocess.run(["opusenc", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    with tempfile.TemporaryDirectory() as scratch:
        count, *sizes = write_twice(arguments.archive, Path(scratch))
        corpora = [pack(Path(scratch, g), Path(scratch, f"packed-{g}")) for g in ("once", "twice")]
        waves = [c.waves.astype(np.float64) for c in corpora]
        noise = 10 * np.log10((waves[0] ** 2).sum(1).clip(1) / ((waves[1] - waves[0]) ** 2).sum(1).clip(1))
        seconds = sum(c.samples.sum() for c in corpora[:1]) / SAMPLE_RATE
        found = {}
        for model in MODELS:
            spotter = load(model)
            found[model] = compare(spotter, *(select(c, list(spotter.labels), "validation") for c in corpora))
    result = {
        "what": "clips already encoded once, encoded again: an estimate, since a second generation is not the first",
        "split": "validation",
        "encoder": version,
        "options": " ".join(OPTIONS),
        "clips": count,
        "kbit_per_second": {g: size * 8 / 1000 / seconds for g, size in zip(("once", "twice"), sizes)},
        "snr_of_second_pass_db": dict(zip(("p5", "median", "p95"), np.percentile(noise, [5, 50, 95]).tolist())),
        "models": found,
    }
    write_json(arguments.out, rounded(result))
    for model, f in found.items():
        print(f"{model}: {f['accuracy_once']:.2%} once, {f['accuracy_twice']:.2%} twice, {f['clips']} clips")


def rounded(value):
    """Every float to six significant digits."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    cli(main)
