"""Train and test several models and seeds of a profile, one after the other, in one command: for a bare machine.

    python -m paper.grid profiles/subset/params.yaml --models mamba_light,bc_resnet_1 --seeds 0,1,2 --out carried

needs only what kwslib needs: no network, notebooks or DVC. It writes runs/, metrics/, history/ and timing/, as in
results/<profile>, and the checkpoints to `carried`: all of it is small. Finished runs are not repeated; interrupted
ones are resumed. With --engine ray the runs are spread over the nodes of a Ray cluster (docs/scale.md).

    python -m paper.grid profiles/gpu/params.yaml --table results/gpu

sets finished runs side by side in <folder>/table.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from kwslib.data.corpus import pack
from kwslib.evaluation import evaluate
from kwslib.io import KwsError, cli, replacing
from kwslib.machine import pick_device
from kwslib.models import MODELS
from kwslib.training import train
from paper import ray_engine
from paper.profile import Profile
from paper.search import side_by_side


def run_grid(params, out, models=None, seeds=None, corpus=None, root=".", engine=None, **overrides):
    """Every model with every seed; returns [(model, seed, None or the text of its error)].

    params: a profile's file; models, seeds: its own where None. corpus: a packed corpus's folder in place of the
    profile's own source, which is packed under `out`. engine: None, one after the other here, or the options of
    `ray_engine.run_all`. overrides: keys of every recipe. A run that fails does not stop the others.
    """
    profile, out = Profile(params, root), Path(out)
    models, seeds = models or profile.variants, profile.seeds if seeds is None else seeds
    if corpus is None:
        corpus = out / "data"
        pack(profile.corpus_path(), corpus, **profile.corpus["options"])
    found, jobs = {}, {}
    for model, seed in ((m, s) for s in seeds for m in models):  # all models once before any twice: time may run out
        name = f"{model}-{seed}"
        try:
            found[name] = None
            if not (out / "runs" / f"{name}.json").exists():
                where = {"corpus": os.path.abspath(corpus), "out": out / "checkpoints" / name}
                jobs[name] = profile.config(model, seed, **where, **overrides)
        except KwsError as e:
            print(f"{name}: {e}", file=sys.stderr, flush=True)
            found[name] = str(e)
    if engine is None:
        found |= {name: run_one(config, name, out, profile.profile) for name, config in jobs.items()}
    elif jobs:
        found |= ray_engine.run_all(jobs, out, profile.profile, **engine)
    return [(m, s, found[f"{m}-{s}"]) for s in seeds for m in models]


def run_one(config, name, out, profile):
    """Train and test one run -> None, or the text of its error."""
    started = time.perf_counter()
    try:
        train(config, progress=False)
        found = evaluate(config.out, config.corpus, out, profile, pick_device(config.device))["test"]["accuracy"]
        print(f"{name}: test {found:.2%}, {time.perf_counter() - started:.0f} s", flush=True)
    except KwsError as e:
        print(f"{name}: {e}", file=sys.stderr, flush=True)
        return str(e)


def table(folder):
    """Markdown: the runs in <folder>/runs, one row a model, the best on the test split first."""

    def rows_and_title(runs):
        models = {}
        for run in runs:
            models.setdefault(run["model"], []).append(run)

        def percent(part, of):
            return ", ".join(f"{100 * run[part]['accuracy']:.2f}" for run in of)

        rows = [
            {
                "model": MODELS[of[0]["model"]].label,
                "seeds": ", ".join(str(run["seed"]) for run in of),
                "test (%)": percent("test", of),
                "validation (%)": percent("validation", of),
            }
            for of in sorted(models.values(), key=lambda of: -sum(run["test"]["accuracy"] for run in of) / len(of))
        ]
        first = runs[0]
        return rows, (
            f"Test accuracy of each seed after {first['config']['epochs']} epochs, n = {first['test']['n']:,} clips, "
            f"{len(first['labels'])} words; the weights are the best on validation, and the test split was read once."
        )

    return side_by_side(folder, "runs", "result; run the grid first", rows_and_title)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("params", help="the profile's parameter file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", help="folder for results and checkpoints")
    what.add_argument("--table", metavar="FOLDER", help="write FOLDER/table.md from FOLDER/runs; nothing is trained")
    parser.add_argument("--models", help="names with commas between (default: the profile's)")
    parser.add_argument("--seeds", help="numbers with commas between (default: the profile's)")
    parser.add_argument("--corpus", help="folder of a packed corpus (default: pack the profile's source under --out)")
    parser.add_argument("--epochs", type=int, help="of every model, in place of the recipes'")
    parser.add_argument("--threads", type=int, help="CPU threads of a run")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where the runs are (default: here)"
    )
    parser.add_argument("--address", help="of the Ray cluster, or auto (default: a cluster of this machine alone)")
    parser.add_argument("--cpus", type=int, default=1, help="of each run, with Ray")
    parser.add_argument("--gpus", type=float, default=0, help="of each run, with Ray; 0.5: two runs share one")
    a = parser.parse_args()
    if a.table:
        with replacing(Path(a.table) / "table.md") as scratch:
            scratch.write_text(table(a.table), encoding="utf-8")
        return 0
    overrides = {k: v for k, v in (("epochs", a.epochs), ("threads", a.threads)) if v is not None}
    found = run_grid(
        a.params,
        a.out,
        a.models and a.models.split(","),
        a.seeds and [int(s) for s in a.seeds.split(",")],
        a.corpus,
        engine={"address": a.address, "cpus": a.cpus, "gpus": a.gpus} if a.engine == "ray" else None,
        **overrides,
    )
    return 1 if any(error for *_, error in found) else 0


if __name__ == "__main__":
    cli(main)
