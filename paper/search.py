"""One trial of a search for a recipe: train, and say how it validates. The test split is not read.

    python -m paper.search profiles/search/params.yaml mixup
    python -m paper.search profiles/search/params.yaml --table results/search

The first trains the recipe of `trials.mixup` (what it changes, and of which variant and seed, where these are not the
profile's first) and writes results/search/trials/mixup.json; the second lays the trials side by side in trials.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kwslib.io import KwsError, cli, read_json, replacing, write_json
from kwslib.training import train
from paper.profile import Profile


def run_trial(params, name, root="."):
    """Train trial `name` of a parameter file; returns what it writes to <results>/trials/<name>.json."""
    profile = Profile(params, root)
    trials = profile.trials | profile.taught
    if name not in trials:
        raise KwsError(f"trial {name!r} is not in {params}; it has {', '.join(trials)}")
    changes = dict(trials[name])
    variant, seed = changes.pop("variant", profile.variants[0]), changes.pop("seed", profile.seeds[0])
    config = profile.config(variant, seed, out=profile.checkpoints / name, **changes)
    card = train(config)
    result = {
        "trial": name,
        "variant": variant,
        "seed": seed,
        "changes": changes,
        "recipe": card["recipe"],
        "corpus": card["corpus"],
        "validation": card["validation"],
        "training": card["training"],
    }
    timing = read_json(Path(config.out) / "timing.json", "timing")
    write_json(profile.results / "timing" / f"{name}.json", timing)
    write_json(profile.results / "trials" / f"{name}.json", result)
    return result


def side_by_side(folder, kind, missing, rows_and_title):
    """Markdown: the files of <folder>/<kind>/ as a table, under a title that names the corpus.

    rows_and_title: (list of the files' contents) -> (rows, title). missing: what to say where there is none.
    """
    from pandas import DataFrame

    from paper.writing import markdown  # it draws, too: a bare machine has no matplotlib

    found = [read_json(path, "result file") for path in sorted((Path(folder) / kind).glob("*.json"))]
    if not found:
        raise KwsError(f"{folder}/{kind} holds no {missing}")
    rows, title = rows_and_title(found)
    corpus = found[0]["corpus"]
    return f"{title} Corpus: {corpus['name']}. {corpus['attribution']}.\n\n{markdown(DataFrame(rows))}\n"


def trials_table(folder):
    """Markdown: the trials in <folder>/trials, the best on validation first."""

    def rows_and_title(trials):
        rows = [
            {
                "trial": t["trial"],
                "model": t["variant"],
                "seed": str(t["seed"]),
                "changes": ", ".join(f"{k} {v}" for k, v in t["changes"].items()) or "none",
                "epochs": str(t["training"]["epochs"]),
                "validation (%)": f"{100 * t['validation']['accuracy']:.2f}",
                "best epoch": str(t["validation"]["epoch"]),
            }
            for t in sorted(trials, key=lambda t: -t["validation"]["accuracy"])
        ]
        n = trials[0]["validation"]["n"]
        return rows, f"Best validation accuracy of each trial, n = {n:,} clips; the test split was not read."

    return side_by_side(folder, "trials", "trial; run one first", rows_and_title)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("params", help="parameter file with trials, such as profiles/search/params.yaml")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("trial", nargs="?")
    what.add_argument("--table", metavar="FOLDER", help="write FOLDER/trials.md from FOLDER/trials/*.json")
    arguments = parser.parse_args()
    if arguments.table:
        with replacing(Path(arguments.table) / "trials.md") as scratch:
            scratch.write_text(trials_table(arguments.table), encoding="utf-8")
        return 0
    result = run_trial(arguments.params, arguments.trial)
    print(f"{result['trial']}: best validation accuracy {result['validation']['accuracy']:.2%}")
    return 0


if __name__ == "__main__":
    cli(main)
