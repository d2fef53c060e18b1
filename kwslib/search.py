"""One trial of a search for a recipe: train, and say how it validates. The test split is not read.

    python -m kwslib.search profiles/search/params.yaml mixup

trains the recipe of `trials.mixup` (a variant, and what it changes) and writes results/search/trials/mixup.json;
`table` lays the trials side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kwslib.config import Profile
from kwslib.io import KwsError, cli, machine, read_json, write_json
from kwslib.train import train


def run_trial(params, name, root="."):
    """Train trial `name` of a parameter file; returns what it writes to <results>/trials/<name>.json."""
    profile = Profile(params, root)
    if name not in profile.trials:
        raise KwsError(f"trial {name!r} is not in {params}; it has {', '.join(profile.trials)}")
    changes = dict(profile.trials[name])
    variant, seed = changes.pop("variant", profile.variants[0]), changes.pop("seed", profile.seeds[0])
    config = profile.config(variant, seed, out=profile.checkpoints / name, **changes)
    card = train(config)
    result = {"trial": name, "variant": variant, "seed": seed, "changes": changes, "recipe": card["recipe"],
              "corpus": card["corpus"], "validation": card["validation"], "training": card["training"], "machine": machine()}
    write_json(profile.results / "trials" / f"{name}.json", result)
    return result


def table(folder):
    """DataFrame of the trials in <folder>/trials, the best on validation first."""
    from pandas import DataFrame

    trials = [read_json(path, "trial") for path in sorted((Path(folder) / "trials").glob("*.json"))]
    trials.sort(key=lambda t: -t["validation"]["accuracy"])
    return DataFrame({
        "trial": t["trial"], "model": t["variant"], "seed": t["seed"],
        "changes": ", ".join(f"{k} {v}" for k, v in t["changes"].items()) or "none",
        "epochs": t["training"]["epochs"], "validation (%)": round(100 * t["validation"]["accuracy"], 2),
        "best epoch": t["validation"]["epoch"], "minutes": round(t["training"]["seconds"] / 60, 1)} for t in trials)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("params", help="parameter file with trials, such as profiles/search/params.yaml")
    parser.add_argument("trial")
    arguments = parser.parse_args()
    result = run_trial(arguments.params, arguments.trial)
    print(f"{result['trial']}: best validation accuracy {result['validation']['accuracy']:.2%}")
    return 0


if __name__ == "__main__":
    cli(main)
