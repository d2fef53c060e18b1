"""Little data: three new words from a few recordings each, from scratch and from a shipped model's weights.

    python -m paper.spotting.little --data ../shared/data/wake_words.zip --out results/little.json      (half an hour)

Of the recordings of each word a few train, a fifth of these on validation; all others are the test, which is read once
a run. One person may be in both: nobody named them. Also written: results/little.md."""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

import kwslib
from kwslib.io import SAMPLE_RATE, cli, write_json
from kwslib.machine import machine
from kwslib.training import train
from paper.spotting.wake import recordings
from paper.writing import captioned, write_text

# what each way of starting changes in the recipe of Mamba-Light
STARTS = {
    "from scratch": {},
    "shipped weights": {"init": "mamba_light"},
    "shipped weights at a tenth of the rate": {"init": "mamba_light", "init_lr": 0.1},
    "shipped weights frozen": {"init": "mamba_light", "init_lr": 0.0},
}
RECIPE = {"batch_size": 16, "background_snr": None, "threads": 1}


def write_clips(folder, takes, count, seed):
    """`count` takes of each word into folder/train and folder/validation; returns the others: {word: int16 waves}."""
    others = {}
    for word, waves in takes.items():
        order = np.random.default_rng(seed).permutation(len(waves))
        for place, i in enumerate(order[:count]):
            path = folder / ("validation" if place % 5 == 4 else "train") / word
            path.mkdir(parents=True, exist_ok=True)
            soundfile.write(path / f"{i}.wav", waves[i], SAMPLE_RATE)
        others[word] = [waves[i] for i in order[count:]]
    return others


def run(takes, start, count, seed, epochs, folder):
    """One training, tested on the recordings that it did not get: {accuracy, n, seconds and what it was}."""
    others = write_clips(folder / "clips", takes, count, seed)
    corpus = kwslib.pack(folder / "clips", folder / "corpus")
    changes = RECIPE | STARTS[start] | {"epochs": epochs, "seed": seed, "corpus": corpus.root, "out": folder / "run"}
    started = time.time()
    train(kwslib.load_config("mamba_light", **changes))
    seconds, spotter = time.time() - started, kwslib.load(folder / "run")
    right = [spotter.predict(wave, SAMPLE_RATE)[0][0] == word for word, waves in others.items() for wave in waves]
    row = {"start": start, "clips": count, "seed": seed, "epochs": epochs, "n": len(right)}
    return row | {"accuracy": float(np.mean(right)), "seconds": round(seconds, 1)}


def table(rows):
    """Mean accuracy over the seeds, and the least and the most, by the start and the number of recordings."""
    df = pd.DataFrame(rows)
    found = df.groupby(["start", "clips"], sort=False)["accuracy"].agg(["mean", "min", "max"]) * 100
    text = found.apply(lambda r: f"{r['mean']:.1f} [{r['min']:.1f}–{r['max']:.1f}]", axis=1).unstack()
    text = text.reindex([start for start in STARTS if start in text.index])
    text.columns = [f"{count} recordings a word" for count in text.columns]
    return text.rename_axis("Start").reset_index()


def caption(result):
    rows = result["rows"]
    return (
        f"Right answers (%) among three words, on the {min(r['n'] for r in rows):,} or more recordings that did not "
        f"train: the mean of {len({r['seed'] for r in rows})} seeds, which also draw the recordings, and their least "
        f"and most. Mamba-Light, {rows[0]['epochs']} epochs, batches of {RECIPE['batch_size']}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="wake_words.zip")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--clips", type=int, nargs="+", default=[5, 10, 30], help="recordings of each word")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    a = parser.parse_args()
    takes, result = recordings(a.data), {"machine": machine(), "rows": []}
    takes.pop(None)
    for count, start, seed in product(a.clips, STARTS, range(a.seeds)):
        with tempfile.TemporaryDirectory() as folder:
            result["rows"].append(row := run(takes, start, count, seed, a.epochs, Path(folder)))
        print(f"{start}, {count} recordings, seed {seed}: {row['accuracy']:.1%} of {row['n']}", flush=True)
        write_json(a.out, result)
    write_text(Path(a.out).with_suffix(".md"), captioned(table(result["rows"]), caption(result)))


if __name__ == "__main__":
    cli(main)
