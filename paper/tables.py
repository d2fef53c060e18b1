"""The paper's tables, regenerated from result files.

Measured numbers come from results/<profile>/ only, claimed and published ones from claims.yaml only, and
the two never share a column. A measured column names its corpus, and says so where that is synthetic.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean, stdev

from kwslib.io import KwsError, read_csv, read_json, replacing

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
NEEDED = {"model", "seed", "corpus", "labels", "parameters", "macs", "validation", "test", "training"}
AVERAGED = (
    "parameters",
    "macs",
    "test.accuracy",
    "test.macro_f1",
    "test.n",
    "training.clips_per_second",
    "training.seconds",
)
SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "“": "``",
    "”": "''",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def load_claims(path=CLAIMS):
    """The claimed and published numbers: the content of claims.yaml."""
    import yaml

    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def load_runs(results_dir):
    """The runs of a results folder: a list of dicts sorted by model and seed, empty where none has ended.

    Each is the JSON of runs/<model>-<seed>.json and "history", a list of dicts of floats, one per epoch.
    Raises KwsError where a file lacks a key, or where runs differ in corpus or words.
    """
    folder, runs = Path(results_dir), []
    if not folder.is_dir():
        raise KwsError(f"results folder {folder} does not exist; run the experiments first")
    for path in (folder / "runs").glob("*.json"):
        run = read_json(path, "result file")
        if missing := sorted(NEEDED - run.keys()):
            raise KwsError(f"result file {path} lacks {', '.join(missing)}; run that model again")
        history = folder / "history" / f"{path.stem}.csv"
        rows = read_csv(history) if history.is_file() else []
        runs.append(run | {"history": [{k: float(v) for k, v in row.items() if v} for row in rows]})
    if len({(run["corpus"]["checksum"], *run["labels"]) for run in runs}) > 1:
        raise KwsError(f"{folder} holds runs on different corpora or words; keep a results folder for each")
    return sorted(runs, key=lambda run: (run["model"], run["seed"]))


def whole_corpus(results_dir):
    """The runs on all of Speech Commands, of profile `paper` beside a results folder: an empty list until somebody has run it."""
    folder = Path(results_dir).parent / "paper"
    return load_runs(folder) if folder.is_dir() else []


def load_benchmark(results_dir):
    """The content of benchmark.json, or None where nothing has been timed."""
    path = Path(results_dir) / "benchmark.json"
    return read_json(path, "benchmark") if path.is_file() else None


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


def describe(runs):
    """Caption part: corpus, n, seeds, meaning of the interval."""
    if not runs:
        return "No run has finished yet."
    test, epochs = runs[0]["test"], sorted({run["training"]["epochs"] for run in runs})
    seeds = {sum(run["model"] == model for run in runs) for model in {run["model"] for run in runs}}
    several = (
        "one seed"
        if seeds == {1}
        else "mean ± standard deviation over seeds" + (", one seed where no deviation stands" if 1 in seeds else "")
    )
    return (
        f"{source(runs)} n = {test['n']:,} test clips of {test['speakers']:,} speakers, "
        f"{len(runs[0]['labels'])} classes; {' to '.join(map(str, sorted({epochs[0], epochs[-1]})))} epochs of training; "
        f"{several}; "
        "95 % intervals over the choice of speakers."
    )


def timed_on(benchmark):
    """Caption part: the machine of a benchmark."""
    if not benchmark:
        return "No benchmark has been run."
    machine = benchmark["machine"]
    gpu = f" and {machine['gpu']}" if machine.get("gpu") and benchmark.get("gpu") else ""
    return f"Timed on {machine['cpu']}, {machine['cores']} cores{gpu}, PyTorch {machine['torch']}."


def flat(value, prefix=""):
    """{"latency_ms": {"1": {"p50": 3.2}}} -> {"latency_ms.1.p50": 3.2}."""
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (flat(child, f"{prefix}.{key}".strip(".")) for key, child in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def collect(runs, benchmark, claims):
    """model -> key -> value: everything known of a model, in the order of claims.yaml.

    Keys are paths: name, claimed.accuracy, claimed.i5 CPU (claims); test.accuracy (a mean over seeds, beside
    std, interval, seeds), macs, ... (runs); latency_ms.1.p50, gpu.throughput.64, length.exponent_time, ...
    (benchmark). Accuracies are fractions; "interval" is the mean of the runs' own 95 % intervals.
    """
    facts = {model: {"name": entry["name"]} for model, entry in claims["models"].items()}
    for model, entry in claims["models"].items():
        if entry["claimed"]:
            classes, true = next(iter(entry["true_parameters"].items()))
            facts[model] |= flat(entry["claimed"], "claimed") | {
                "true": f"{true:,} ({classes} classes)",
                "reason": entry["reason"].format(**entry),
            }
    for claim in claims["latency"]:
        facts[claim["model"]][f"claimed.{claim['device']}"] = f"{claim['ms']}; {claim['clips_per_second']}"
    timed = benchmark or {}
    for prefix, part in (("", timed), ("gpu", timed.get("gpu")), ("length", timed.get("length"))):
        for model, values in (part or {}).get("models", part or {}).items():
            facts.setdefault(model, {"name": model}).update(flat(values, prefix))
    for model in dict.fromkeys(run["model"] for run in runs):
        own = [flat(run) for run in runs if run["model"] == model]
        accuracies, labels = [run["test.accuracy"] for run in own], own[0]["labels"]
        averages = {key: mean(run[key] for run in own) for key in AVERAGED}
        facts[model] = (
            facts.get(model, {"name": model})
            | averages
            | {
                "std": stdev(accuracies) if len(own) > 1 else None,
                "seeds": len(own),
                "interval": [mean(run["test.interval"][i] for run in own) for i in (0, 1)],
                "common": mean(run.get("test_common.accuracy") or 0 for run in own) or None,
                "counted": f"{own[0]['parameters']:,} ({len(labels)} classes)",
                "training.minutes": averages["training.seconds"] / 60,
            }
        )
    return facts


def shown(facts, key):
    """One fact of a model as tables and README print it: "97.42 ± 0.08", "1,506,051", "not run", "–"."""
    value = facts.get(key)
    if value is None or isinstance(value, str):
        return value or ("not run" if key in ("test.accuracy", "counted") else "–")
    if key == "interval":
        return "–".join(f"{100 * end:.2f}" for end in value)
    if key in ("test.accuracy", "test.macro_f1", "common", "precision", "recall"):
        spread = facts.get("std") if key == "test.accuracy" else None
        return f"{100 * value:.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
    value = value / 1e6 if key == "macs" else value
    return f"{value:,.{0 if isinstance(value, int) or value >= 1000 else 1 if value >= 10 else 2}f}"


def table(rows, columns):
    """DataFrame of text: one row per dict of `rows`, one column per entry (heading: key) of `columns`."""
    from pandas import DataFrame

    return DataFrame({heading: [shown(row, key) for row in rows] for heading, key in columns.items()})


def timing_columns(rows):
    """heading -> key of every latency, throughput and memory that was measured."""
    words = {
        "gpu.latency_ms.1.": "GPU latency (ms) ",
        "gpu.": "GPU ",
        "throughput.": "clips/s, batch ",
        "latency_ms.": "latency (ms), threads ",
        "_ms": " (ms)",
        "_mb": " (MB)",
        "_": " ",
        ".": " ",
    }
    columns = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if re.match(r"(gpu\.)?(\w+_ms\.|throughput|peak_mb)", key):
            columns[re.sub("|".join(map(re.escape, words)), lambda m: words[m[0]], key)] = key
    return columns


def fitted(values):
    """The lengths, in seconds, that a model's exponents were fitted over: "8–64"."""
    return "–".join(str(values["fitted_over"][end]) for end in (0, -1)) if values.get("fitted_over") else None


def build_tables(runs, benchmark, claims, whole=()):
    """name -> (DataFrame, caption): variants, comparison, rivals, benchmark; per_word, length if measured.

    whole: the runs of `whole_corpus`, which have a column of their own in the variants.
    """
    facts, corpus, paper = collect(runs, benchmark, claims), corpus_name(runs), claims["paper"]
    about, timed, rows = describe(runs), timed_on(benchmark), list(facts.values())
    measured = {f"measured accuracy, {corpus} test (%)": "test.accuracy", "95 % interval": "interval"}
    timings = timing_columns(rows)
    fastest = [(f"CPU {heading}", key) for heading, key in timings.items() if key.startswith("throughput")]
    least = {run["test_common"]["minimum_training_clips"] for run in runs if run.get("test_common")}
    common = {f"accuracy, {corpus} test, words of {n}+ training clips (%)": "common" for n in least}
    for row in rows:
        row["whole"] = "not run"
    for model, own in collect(whole, None, claims).items():
        facts[model]["whole"] = shown(own, "test.accuracy")
    tables = {}
    tables["variants"] = (
        table(
            [row for row in rows if "reason" in row],
            {
                "model": "name",
                "claimed parameters": "claimed.parameters",
                "true parameters": "true",
                "counted here": "counted",
                "claimed accuracy, V2-35 validation (%)": "claimed.accuracy",
                **measured,
                "test clips": "test.n",
                "seeds": "seeds",
                "test accuracy, all of Speech Commands V2, 35 words (%)": "whole",
                "why they differ": "reason",
            },
        ),
        (
            f"Claimed beside measured. {paper['accuracy_kind']} {paper['labels']} Claimed and measured accuracy "
            f"are of different clips: do not compare them. All of Speech Commands: profile paper. {about}"
        ),
    )
    tables["comparison"] = (
        table(
            rows,
            {
                "model": "name",
                "parameters": "parameters",
                "MACs, 1 s of audio (M)": "macs",
                **measured,
                "seeds": "seeds",
                f"macro-F1, {corpus} test (%)": "test.macro_f1",
                **common,
                "CPU latency p50, 1 thread (ms)": "latency_ms.1.p50",
                **dict(fastest[-1:]),
                "training clips/s": "training.clips_per_second",
                "training minutes": "training.minutes",
            },
        ),
        (f"All models. {about} Latency: batch 1, features to logits. {timed}"),
    )
    tables["rivals"] = (
        table(
            claims["rivals"],
            {
                "model": "model",
                "published parameters": "parameters",
                "published V2-35 test (%)": "v2_35",
                "published V2-12 test (%)": "v2_12",
                "source": "source",
                "note": "note",
            },
        ),
        ("Published results on Speech Commands V2, as printed; none was measured here."),
    )
    devices = dict.fromkeys(claim["device"] for claim in claims["latency"])
    tables["benchmark"] = (
        table(
            rows,
            {
                "model": "name",
                **(timings or {"latency (ms)": "latency_ms"}),
                **{f"claimed, {device} (ms; clips/s)": f"claimed.{device}" for device in devices},
            },
        ),
        (
            "Latency (batch 1, features to logits unless named otherwise), throughput, and peak memory of the "
            "largest batch beyond weights and input. Claimed figures are of other machines, by a method not "
            f"stated. {timed}"
        ),
    )
    if run := chosen_run(runs):
        words = [{"word": word, **scores} for word, scores in run["test"]["per_word"].items()]
        tables["per_word"] = (
            table(
                words,
                {
                    "word": "word",
                    f"precision, {corpus} test (%)": "precision",
                    f"recall, {corpus} test (%)": "recall",
                    "test clips": "n",
                },
            ),
            (f"Each word: {facts[run['model']]['name']}, seed {run['seed']}, best on validation. {describe([run])}"),
        )
    if length := (benchmark or {}).get("length"):
        first, last = length["seconds"][0], length["seconds"][-1]
        cost = [
            facts[model]
            | {f"{unit} at {s}": values[unit][i] for unit in ("ms", "mb") for i, s in ((0, first), (-1, last))}
            | {"fitted": fitted(values)}
            for model, values in length["models"].items()
        ]
        tables["length"] = (
            table(
                cost,
                {
                    "model": "name",
                    "exponent of time": "length.exponent_time",
                    "exponent of memory": "length.exponent_memory",
                    "fitted over (s)": "fitted",
                    **{f"{u} at {s} s": f"{u.lower()} at {s}" for u in ("ms", "MB") for s in (first, last)},
                },
            ),
            (
                "Cost against length of audio, and the exponent of its growth (1: linear, 2: quadratic), good "
                f"for the lengths it was fitted over. {timed}"
            ),
        )
    return tables


def markdown(df):
    """A DataFrame of text as a Markdown table."""
    rows = [[re.sub(r"(?<!\w)_|_(?!\w)|[\\|*<`]", r"\\\g<0>", c) for c in line] for line in (df, *df.values)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def latex(df, name, caption):
    """A DataFrame of text as a LaTeX table in booktabs style (packages booktabs and graphicx)."""

    def escape(text):
        return "".join(SIGNS.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)

    wide = {c: df[c].str.len().max() > 50 for c in df}
    align = "".join("p{70mm}" if wide[c] else "l" if i == 0 else "r" for i, c in enumerate(df))
    head, *rows = (" & ".join(map(escape, line)) + r" \\" for line in (df, *df.values))
    return "\n".join(
        (
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{name}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        )
    )


def write_table(df, folder, name, caption):
    """Write <folder>/<name>.md, .csv and .tex."""
    for suffix, text in (
        ("md", f"{caption}\n\n{markdown(df)}\n"),
        ("tex", latex(df, name, caption)),
        ("csv", df.to_csv(index=False, lineterminator="\n")),
    ):
        with replacing(Path(folder) / f"{name}.{suffix}") as scratch:
            scratch.write_text(text, encoding="utf-8")
