"""Train and test several models and seeds of a profile, one after the other, in one command: for a bare machine.

    python -m paper.grid profiles/subset/params.yaml --models mamba_light,bc_resnet_1 --seeds 0,1,2 --out carried

needs only what kwslib needs: no network, notebooks or DVC. It writes runs/, metrics/, history/ and timing/, as in
results/<profile>, and the checkpoints to `carried`: all of it is small. Finished runs are not repeated; interrupted
ones are resumed.

    python -m paper.grid profiles/gpu/params.yaml --table results/gpu

sets finished runs side by side in <folder>/table.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kwslib.data.corpus import pack
from kwslib.evaluation import evaluate
from kwslib.io import KwsError, cli, replacing
from kwslib.machine import pick_device
from kwslib.models import MODELS
from kwslib.training import train
from paper.profile import Profile
from paper.search import side_by_side


def run_grid(params, out, models=None, seeds=None, corpus=None, root=".", **overrides):
    """Every model with every seed; returns [(model, seed, None or the text of its error)].

    params: a profile's file; models, seeds: its own where None. corpus: a packed corpus's folder in place of the
    profile's own source, which is packed under `out`. overrides: keys of every recipe. A run that fails does not
    stop the others.
    """
    profile, out = Profile(params, root), Path(out)
    models, seeds = models or profile.variants, profile.seeds if seeds is None else seeds
    if corpus is None:
        corpus = out / "data"
        pack(profile.corpus_path(), corpus, **profile.corpus["options"])
    found = []
    for seed in seeds:  # all models once before any twice: time may run out
        for model in models:
            started, checkpoint = time.perf_counter(), out / "checkpoints" / f"{model}-{seed}"
            try:
                if not (out / "runs" / f"{model}-{seed}.json").exists():
                    config = profile.config(model, seed, corpus=corpus, out=checkpoint, **overrides)
                    train(config, progress=False)
                    device = pick_device(config.device)
                    accuracy = evaluate(checkpoint, corpus, out, profile.profile, device)["test"]["accuracy"]
                    print(f"{model}-{seed}: test {accuracy:.2%}, {time.perf_counter() - started:.0f} s", flush=True)
                found.append((model, seed, None))
            except KwsError as e:
                print(f"{model}-{seed}: {e}", file=sys.stderr, flush=True)
                found.append((model, seed, str(e)))
    return found


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
        **overrides,
    )
    return 1 if any(error for *_, error in found) else 0


if __name__ == "__main__":
    cli(main)
