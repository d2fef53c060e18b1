"""What a results folder holds: runs, their timings, the benchmark; and what captions say about them.

Measured numbers come from results/<profile>/ only, claimed and published ones from claims.yaml only. A model's name
comes from the registry.
"""

from __future__ import annotations

from pathlib import Path

from kwslib.io import KwsError, read_csv, read_json
from kwslib.models.registry import MODELS
from kwslib.training.config import read_yaml
from paper.statistics import effective_clips

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
NEEDED = {"model", "seed", "corpus", "labels", "parameters", "macs", "validation", "test", "training"}


def load_claims(path=CLAIMS):
    """The claimed and published numbers: the content of claims.yaml."""
    return read_yaml(path, "claims", "the paper's are paper/claims.yaml")


def load_runs(results_dir):
    """The runs of a results folder: a list of dicts sorted by model and seed, empty where none has ended.

    Each is the JSON of runs/<model>-<seed>.json; "history", a list of dicts of floats, one per epoch; and "timing",
    what timing/<model>-<seed>.json says: seconds, clips_per_second and machine (empty without that file).
    Raises KwsError where a file lacks a key, or where runs differ in corpus or words.
    """
    folder, runs = Path(results_dir), []
    if not folder.is_dir():
        raise KwsError(f"results folder {folder} does not exist; run the experiments first")
    for path in (folder / "runs").glob("*.json"):
        run = read_json(path, "result file")
        if missing := sorted(NEEDED - run.keys()):
            raise KwsError(f"result file {path} lacks {', '.join(missing)}; run that model again")
        history, timing = folder / "history" / f"{path.stem}.csv", folder / "timing" / path.name
        rows = read_csv(history) if history.is_file() else []
        run["history"] = [{k: float(v) for k, v in row.items() if v} for row in rows]
        run["timing"] = read_json(timing, "timing file") if timing.is_file() else {}
        runs.append(run)
    if len({(run["corpus"]["checksum"], *run["labels"]) for run in runs}) > 1:
        raise KwsError(f"{folder} holds runs on different corpora or words; keep a results folder for each")
    return sorted(runs, key=lambda run: (run["model"], run["seed"]))


def whole_corpus(results_dir):
    """The runs on all of Speech Commands (profile `paper`, beside a results folder): empty until it has been run."""
    folder = Path(results_dir).parent / "paper"
    return load_runs(folder) if folder.is_dir() else []


def load_benchmark(results_dir):
    """The content of benchmark.json, or None where nothing has been timed."""
    path = Path(results_dir) / "benchmark.json"
    return read_json(path, "benchmark") if path.is_file() else None


def label_of(model):
    """A model's name in full, from the registry; an unknown model's own key."""
    return MODELS[model].label if model in MODELS else model


def short_of(model):
    """A model's name in a figure."""
    return (MODELS[model].short or MODELS[model].label) if model in MODELS else model


def by_model(entries):
    """model -> its entries, one for each seed, in the order in which the models first appear."""
    groups = {}
    for entry in entries:
        groups.setdefault(entry["model"], []).append(entry)
    return groups


def epochs_of(runs):
    """The numbers of epochs that runs were trained for, a set."""
    return {run["training"]["epochs"] for run in runs}


def by_epochs(runs):
    """Epochs in words ("20", or "5 to 7") -> the runs that may stand in one column.

    Where a model has been run for different numbers of epochs, each number is a group of its own; else every model was
    trained as long as its recipe says, and all are one group.
    """
    if not any(len(epochs_of(own)) > 1 for own in by_model(runs).values()):
        return {span(epochs_of(runs)): runs} if runs else {}
    return {f"{n:,}": [run for run in runs if epochs_of([run]) == {n}] for n in sorted(epochs_of(runs))}


def speaker_tables(own):
    """{speaker: [right, clips]} of each of a model's runs; None where a run's file is older than these counts."""
    tables = [run["test"].get("by_speaker") for run in own]
    return tables if all(tables) else None


def chosen_run(runs):
    """The run of the highest *validation* accuracy (never chosen on the test), or None."""
    return max(runs, key=lambda run: run["validation"]["accuracy"], default=None)


def corpus_name(runs):
    """The corpus the runs were measured on, called synthetic where it is."""
    corpus = runs[0]["corpus"] if runs else {"name": "no corpus"}
    return f"synthetic corpus “{corpus['name']}”" if corpus.get("synthetic") else corpus["name"]


def source(runs):
    """Caption part: the corpus and its licence notice."""
    corpus = runs[0]["corpus"]
    credit = corpus.get("attribution") or corpus["licence"]
    credit = "Synthetic speech, no recordings" if corpus["synthetic"] else credit
    return f"Corpus: {corpus_name(runs)}. {credit.rstrip('.')}."


def seeds_phrase(counts):
    """Caption part: what an accuracy is, where models have `counts` (a set of numbers) of seeds."""
    if set(counts) == {1}:
        return "one seed"
    single = ", one seed where no deviation is given" if 1 in counts else ""
    return f"mean ± standard deviation over {span(set(counts) - {1})} seeds{single}"


def span(numbers):
    """Whole numbers in words: "3", or "3 to 5"."""
    return " to ".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)}))


def effective_n(tables):
    """How many independent clips the test clips are worth, as a set of tables {speaker: [right, clips]} shows: "351 to
    685", or "not known" where there is no table.
    """
    found = {round(effective_clips(table)) for table in tables}
    return span(found) if found else "not known"


def effective_phrase(tables):
    """Caption part: the same."""
    found = effective_n(tables)
    return f"effective n {found}" + (", because clips of one speaker are correlated" if found != "not known" else "")


def all_tables(runs):
    """The tables {speaker: [right, clips]} of all runs whose files have these counts."""
    return [run["test"]["by_speaker"] for run in runs if run["test"].get("by_speaker")]


def describe(runs):
    """Caption part: corpus, n and effective n, epochs, seeds, meaning of the interval."""
    if not runs:
        return "No run has finished yet."
    test, groups = runs[0]["test"], by_epochs(runs)
    counts = {len(own) for part in groups.values() for own in by_model(part).values()}
    over = "seeds and speakers together" if max(counts) > 1 else "speakers"
    over += " (speakers alone where there is one seed)" if min(counts) == 1 < max(counts) else ""
    return (
        f"{source(runs)} n = {test['n']:,} test clips of {test['speakers']:,} speakers "
        f"({effective_phrase(all_tables(runs))}), "
        f"{len(runs[0]['labels'])} classes; after {' or '.join(groups)} epochs; "
        f"{seeds_phrase(counts)}; 95 % intervals of the mean by resampling {over}."
    )


def timed_on(benchmark):
    """Caption part: the machine of a benchmark."""
    if not benchmark:
        return "No benchmark has been run."
    machine = benchmark["machine"]
    gpu = f" and {machine['gpu']}" if machine.get("gpu") and benchmark.get("gpu") else ""
    on = f"Timed on {machine['cpu']}, {machine['cores']} cores{gpu}, PyTorch {machine['torch']}."
    if not benchmark.get("loaded"):
        return on
    most = max(value for key, value in benchmark["load"].items() if key != "limit" and value is not None)
    return f"{on} The machine was loaded: other programs used up to {most:.1f} cores, so these times are not sound."


def trained_on(runs):
    """Caption part: the processors that the runs were trained on."""
    machines = [run["timing"]["machine"] for run in runs if "machine" in run["timing"]]
    named = sorted({f"{m['gpu'] or m['cpu']}, threads: {m['threads']}" for m in machines})
    return f"Trained on {'; '.join(named)}." if named else "No training has been timed."
