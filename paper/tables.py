"""The paper's tables, made from result files: one function a table, each returns (DataFrame of text, caption).

Measured numbers and claimed or published ones never share a column. A measured column names its corpus, and says so
where that is synthetic. A table that holds timings names the machine; the others do not depend on it.
"""

from __future__ import annotations

import re

from paper.comparisons import comparison_tables
from paper.facts import collect_facts, described, shown
from paper.results import by_epochs, chosen_run, corpus_name, describe, label_of, timed_on, trained_on

# A part of a timing's key -> how a heading says it; the first that fits.
TIMING_WORDS = {
    "gpu.latency_ms.1.": "GPU latency (ms) ",
    "gpu.": "GPU ",
    "throughput.": "clips/s, batch ",
    "latency_ms.": "latency (ms), threads ",
    "_ms": " (ms)",
    "_mb": " (MB)",
    "_": " ",
    ".": " ",
}


def text_table(rows, columns):
    """DataFrame of text: one row per dict of `rows`, one column per entry (heading: key) of `columns`."""
    from pandas import DataFrame

    return DataFrame({heading: [shown(row, key) for row in rows] for heading, key in columns.items()})


def paper_tables(runs, benchmark, claims, whole=()):
    """name -> (DataFrame, caption) of what does not depend on the machine: variants, reasons, comparison, rivals,
    per_word; comparisons and without_speaker where the runs say of every speaker how many of the clips were right.

    benchmark: read for the sizes of models that have not been run. whole: the runs of `whole_corpus`, which have a
    column of their own in the variants.
    """
    facts = collect_facts(runs, benchmark, claims)
    tables = {
        "variants": variants_table(facts, runs, claims, collect_facts(whole, None, claims) if whole else {}),
        "reasons": reasons_table(facts, claims),
        "comparison": comparison_table(facts, runs, claims),
        "rivals": rivals_table(claims),
    }
    if runs:
        tables["per_word"] = per_word_table(chosen_run(runs))
    return tables | comparison_tables(runs)


def timing_tables(runs, benchmark, claims):
    """name -> (DataFrame, caption) of what was timed: cost; benchmark and length where there is a benchmark."""
    facts = collect_facts(runs, benchmark, claims)
    tables = {"cost": cost_table(facts, runs, benchmark)}
    if benchmark:
        tables["benchmark"] = benchmark_table(facts, benchmark, claims)
        if benchmark.get("length"):
            tables["length"] = length_table(facts, benchmark)
    return tables


def by_columns(facts, runs, claims):
    """The rows of `facts` with what was measured for each group of epochs, as text, and the heading -> key of that.

    No column holds runs of a model after different numbers of epochs.
    """
    rows, columns, on = {model: dict(own) for model, own in facts.items()}, {}, f"{corpus_name(runs)} test"
    for epochs, part in (by_epochs(runs) or {"": []}).items():
        after = f", after {epochs} epochs" if epochs else ""
        least = {run["test_common"]["minimum_training_clips"] for run in part if run.get("test_common")}
        headings = {
            f"measured accuracy, {on} (%){after}": "test.accuracy",
            f"95 % interval{after}": "interval",
            f"effective n{after}": "effective_n",
            f"seeds{after}": "seeds",
            f"macro-F1, {on} (%){after}": "test.macro_f1",
            **{f"accuracy, {on}, words of {n}+ training clips (%){after}": "common" for n in least},
        }
        own = collect_facts(part, None, claims)
        for heading, key in headings.items():
            columns[heading] = f"{key} {epochs}"
            for model, row in rows.items():
                row[columns[heading]] = shown(own.get(model, {}), key)
    return rows, columns


def variants_table(facts, runs, claims, whole):
    """The paper's variants: the claim and the measurement. whole: facts of runs on all of the corpus, if any."""
    measured, columns = by_columns(facts, runs, claims)
    columns = {heading: key for heading, key in columns.items() if key.split()[0] not in ("test.macro_f1", "common")}
    rows = [
        own | {"whole": shown(whole.get(model, {}), "test.accuracy")}
        for model, own in measured.items()
        if described(model) in claims["models"]
    ]
    columns = {
        "model": "name",
        "claimed parameters": "claimed.parameters",
        "true parameters": "true",
        "counted here": "counted",
        "claimed accuracy, V2-35 validation (%)": "claimed.accuracy",
        **columns,
        **({"test accuracy, all of Speech Commands V2, 35 words (%)": "whole"} if whole else {}),
    }
    caption = (
        f"Claimed and measured, side by side. {claims['paper']['accuracy_kind']} {claims['paper']['labels']} Claimed "
        "and measured accuracies come from different clips and must not be compared. "
        f"{'' if whole else 'None of ours was trained on all of Speech Commands: that is profile paper. '}"
        f"{describe(runs)}"
    )
    return text_table(rows, columns), caption


def reasons_table(facts, claims):
    """The paper's variants: why the claim and what is measured or counted here differ."""
    rows = [own for model, own in facts.items() if described(model) in claims["models"]]
    caption = "Why a claimed number is not the one that is measured or counted."
    return text_table(rows, {"model": "name", "why they differ": "reason"}), caption


def comparison_table(facts, runs, claims):
    """All models: size and accuracy."""
    rows, measured = by_columns(facts, runs, claims)
    columns = {"model": "name", "parameters": "parameters", "MACs, 1 s of audio (M)": "macs", **measured}
    if len({own["epochs"] for own in rows.values() if "epochs" in own}) > 1 and len(by_epochs(runs)) == 1:
        columns["epochs"] = "epochs"  # every recipe's own
    return text_table(rows.values(), columns), f"Size and accuracy. {describe(runs)}"


def cost_table(facts, runs, benchmark):
    """All models: what they take to run and to train."""
    throughput = [(heading, key) for heading, key in timing_columns(facts.values()).items() if key.startswith("thr")]
    columns = {
        "model": "name",
        "CPU latency p50, 1 thread (ms)": "latency_ms.1.p50",
        **{f"CPU {heading}": key for heading, key in throughput[-1:]},
        "training clips/s, one CPU thread": "training.cpu",
        "training clips/s, GPU": "training.gpu",
        "epochs": "epochs",
    }
    caption = (
        f"What each model costs. Latency: batch 1, features to logits. {timed_on(benchmark)} Training: the fastest of "
        f"the seeds, beside other trainings on the same machine. {trained_on(runs)}"
    )
    return text_table(facts.values(), columns), caption


def rivals_table(claims):
    """Test accuracies that others have published."""
    columns = {
        "model": "model",
        "published parameters": "parameters",
        "published V2-35 test (%)": "v2_35",
        "published V2-12 test (%)": "v2_12",
        "source": "source",
        "note": "note",
    }
    caption = "Published results on Speech Commands V2, as printed; none was measured here."
    return text_table(claims["rivals"], columns), caption


def timing_columns(rows):
    """heading -> key of every latency, throughput and memory that was measured."""
    parts = "|".join(map(re.escape, TIMING_WORDS))
    columns = {}
    for row in rows:
        for key in row:
            if re.match(r"(gpu\.)?(\w+_ms\.|throughput|peak_mb)", key):
                columns[re.sub(parts, lambda part: TIMING_WORDS[part[0]], key)] = key
    return columns


def benchmark_table(facts, benchmark, claims):
    """Every timing, beside what is claimed of other machines."""
    devices = dict.fromkeys(claim["device"] for claim in claims["latency"])
    columns = {
        "model": "name",
        **(timing_columns(facts.values()) or {"latency (ms)": "latency_ms"}),
        **{f"claimed, {device} (ms; clips/s)": f"claimed.{device}" for device in devices},
    }
    caption = (
        "Latency (batch 1, features to logits unless stated otherwise), throughput, and peak memory of the largest "
        "batch beyond weights and input. Claimed figures are from other machines, and how they were measured is not "
        f"stated. {timed_on(benchmark)}"
    )
    return text_table(facts.values(), columns), caption


def per_word_table(run):
    """Precision and recall of each word, in one run."""
    rows = [{"word": word, **scores} for word, scores in run["test"]["per_word"].items()]
    columns = {
        "word": "word",
        f"precision, {corpus_name([run])} test (%)": "precision",
        f"recall, {corpus_name([run])} test (%)": "recall",
        "test clips": "n",
    }
    caption = f"Each word: {label_of(run['model'])}, seed {run['seed']}, the best run on validation. {describe([run])}"
    return text_table(rows, columns), caption


def length_table(facts, benchmark):
    """Cost against the length of the audio: exponents, and the ends of the curve."""
    seconds, rows = benchmark["length"]["seconds"], []
    for model, values in benchmark["length"]["models"].items():
        row = facts[model] | {"fitted": fitted_range(values)}
        for unit in ("ms", "mb"):
            row |= {f"{unit} at {seconds[end]}": values[unit][end] for end in (0, -1)}
        rows.append(row)
    ends = {f"{unit} at {s} s": f"{unit.lower()} at {s}" for unit in ("ms", "MB") for s in (seconds[0], seconds[-1])}
    columns = {
        "model": "name",
        "exponent of time": "length.exponent_time",
        "exponent of memory": "length.exponent_memory",
        "fitted over (s)": "fitted",
        **ends,
    }
    caption = (
        "Cost against the length of the audio, and the exponent of its growth (1: linear, 2: quadratic), valid for the "
        f"lengths it was fitted over. {timed_on(benchmark)}"
    )
    return text_table(rows, columns), caption


def fitted_range(values):
    """The lengths, in seconds, that a model's exponents were fitted over: "8–64"."""
    return "–".join(str(values["fitted_over"][end]) for end in (0, -1)) if values.get("fitted_over") else None
