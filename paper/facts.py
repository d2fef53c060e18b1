"""Everything that is known of a model, by key: claims, measurements, cost; and how each is printed."""

from __future__ import annotations

from statistics import mean, stdev

from kwslib.models.registry import MODELS
from paper.results import by_epochs, by_model, corpus_name, epochs_of, label_of, span, speaker_tables
from paper.statistics import effective_clips, interval_of, mean_draws

AVERAGED = ("parameters", "macs", "test.accuracy", "test.macro_f1", "test.n")
NEAR = 0.01  # of accuracy: models this close to the best are compared by their cost
SHARES = ("test.accuracy", "test.macro_f1", "common", "precision", "recall")  # fractions, printed in per cent


def flat(value, prefix="", lists=False):
    """Nested dicts (and lists, if asked for) as one dict of paths: {"a": {"1": {"p50": 3.2}}} -> {"a.1.p50": 3.2}."""
    if lists and isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    leaves = {}
    for key, child in value.items():
        leaves |= flat(child, f"{prefix}.{key}" if prefix else str(key), lists)
    return leaves


def listed():
    """The registered models in the order of their files: small before large (decorators apply from the last one up)."""
    families = {}
    for name, model in MODELS.items():
        families.setdefault(getattr(model.make, "func", model.make), []).insert(0, name)
    return [name for family in families.values() for name in family]


def described(model):
    """The row that a row "as run" is another of: the same network with the features of the paper's README."""
    return model.removesuffix("_as_run")


def collect_facts(runs, benchmark, claims):
    """model -> key -> value: the claimed models first, then the other registered ones, then any others.

    A row "as run" is there, after its model, where it has been run or timed. Of a model with runs of several numbers of
    epochs the fewest count: see `results.by_epochs`.

    Keys are paths: name, claimed.accuracy, claimed.i5 CPU (claims); test.accuracy (a mean over seeds, beside std,
    interval and seeds), macs, ... (runs); latency_ms.1.p50, gpu.throughput.64, length.exponent_time, ... (benchmark).
    Accuracies are fractions; "interval" is that of the mean: see `interval_over_seeds`.
    """
    groups, timings = {}, timing_facts(benchmark)
    for part in by_epochs(runs).values():
        groups = by_model(part) | groups
    known = [name for name in listed() if name == described(name) or name in groups or name in timings]
    rows = [name for model in claims["models"] for name in known if described(name) == model]
    models = dict.fromkeys([*rows, *known, *timings, *groups])
    return {
        model: {"name": label_of(model)}
        | claimed_facts(model, claims)
        | timings.get(model, {})
        | (measured_facts(groups[model]) if model in groups else {})
        for model in models
    }


def claimed_facts(model, claims):
    """What claims.yaml says of a model."""
    facts = {}
    if entry := claims["models"].get(described(model)):
        classes, true = next(iter(entry["true_parameters"].items()))
        facts = flat(entry["claimed"], "claimed")
        facts["true"] = f"{true:,} ({classes} classes)"
        facts["reason"] = entry["reason"].format(**entry)
        if f"{model}_as_run" in MODELS:
            facts["reason"] += f" {claims['paper']['slip']}"
    for claim in claims["latency"]:
        if claim["model"] == model:
            facts[f"claimed.{claim['device']}"] = f"{claim['ms']}; {claim['clips_per_second']}"
    return facts


def timing_facts(benchmark):
    """model -> what benchmark.json says of it; keys of the GPU begin with "gpu.", those of the length "length."."""
    facts = {}
    parts = {"": benchmark, "gpu": (benchmark or {}).get("gpu"), "length": (benchmark or {}).get("length")}
    for prefix, part in parts.items():
        for model, values in (part["models"] if part else {}).items():
            facts.setdefault(model, {}).update(flat(values, prefix))
    return facts


def measured_facts(own):
    """What the runs of one model say, averaged over its seeds."""
    flats = [flat(run) for run in own]
    accuracies = [run["test.accuracy"] for run in flats]
    facts = {key: mean(run[key] for run in flats) for key in AVERAGED}
    facts |= {
        "std": stdev(accuracies) if len(own) > 1 else None,
        "seeds": len(own),
        "epochs": span(epochs_of(own)),
        "interval": interval_over_seeds(own),
        "effective_n": effective_n(own),
        "common": mean(run.get("test_common.accuracy") or 0 for run in flats) or None,
        "counted": f"{own[0]['parameters']:,} ({len(own[0]['labels'])} classes)",
    }
    timed = [run["timing"] for run in own if "seconds" in run.get("timing", {})]
    for place, on_gpu in (("cpu", False), ("gpu", True)):
        if rates := [t["clips_per_second"] for t in timed if bool(t["machine"].get("gpu")) == on_gpu]:
            facts[f"training.{place}"] = max(rates)  # other programs may have run beside it
    return facts


def interval_over_seeds(own):
    """The 95 % interval of the mean accuracy of a model's runs, seeds and speakers resampled together; of a single run
    its own, over speakers. None where a file lacks the counts of its speakers.
    """
    if len(own) == 1:
        return own[0]["test"]["interval"]
    tables = speaker_tables(own)
    return tables and interval_of(mean_draws({own[0]["model"]: tables})[own[0]["model"]])


def effective_n(own):
    """What the test clips are worth, a mean over a model's runs; None where no file has the counts of its speakers."""
    worth = [effective_clips(run["test"]["by_speaker"]) for run in own if run["test"].get("by_speaker")]
    return round(mean(worth)) if worth else None


def shown(facts, key):
    """One fact of a model as tables and pages print it: "97.42 ± 0.08", "1,506,051", "not run", "not known", "–".

    The interval of a single seed is marked "(one seed)".
    """
    value = facts.get(key)
    if value is None and key in ("interval", "effective_n") and "seeds" in facts:
        return "not known"
    if value is None or isinstance(value, str):
        return value or ("not run" if key in ("test.accuracy", "counted") else "–")
    if key == "interval":
        return "–".join(f"{100 * end:.2f}" for end in value) + (" (one seed)" if facts["seeds"] == 1 else "")
    if key in SHARES:
        spread = facts.get("std") if key == "test.accuracy" else None
        return f"{100 * value:.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
    return plain(value / 1e6 if key == "macs" else value)


def plain(value):
    """A number as text, with three or four digits where it is no whole one; text as it is."""
    if isinstance(value, str):
        return value
    decimals = 0 if isinstance(value, int) or value >= 1000 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def paper_findings(runs, benchmark, claims):
    """Sentences, in Markdown, on what the runs show, one group of epochs after the other."""
    lines = [line for part in by_epochs(runs).values() for line in findings_of(part, benchmark, claims)]
    return "\n".join(f"- {line}" for line in lines) or "- No run has finished yet."


def findings_of(runs, benchmark, claims):
    """Sentences on runs that may be compared."""
    facts = collect_facts(runs, benchmark, claims)
    run = sorted((own for own in facts.values() if "test.accuracy" in own), key=lambda own: -own["test.accuracy"])
    best, near = run[0], [own for own in run if run[0]["test.accuracy"] - own["test.accuracy"] <= NEAR]
    lines = [
        f"{len(run)} of {len(facts)} models have been run for {span(epochs_of(runs))} epochs on: {corpus_name(runs)}.",
        f"The highest test accuracy: {accuracy_sentence(best)}.",
    ]
    if (least := min(near, key=lambda own: own["macs"])) is not best:
        lines.append(
            f"Of those at most {100 * NEAR:.0f} point below it, the cheapest to run: {accuracy_sentence(least)}."
        )
    if paper := [own for own in run if "reason" in own and own is not best]:
        lines.append(
            f"The best {'other ' if 'reason' in best else ''}variant of the paper: {accuracy_sentence(paper[0])}."
        )
    return [*lines, f"The lowest test accuracy: {accuracy_sentence(run[-1])}."]


def accuracy_sentence(own):
    """A model's accuracy, epochs, interval, clips and what they are worth, seeds, parameters and MACs in words."""
    interval = shown(own, "interval").replace(" (one seed)", ", one seed")
    seeds = f", {own['seeds']} seeds" if own["seeds"] > 1 else ""
    worth = f"effective n {own['effective_n']:,}" if own["effective_n"] else "effective n not known"
    return (
        f"{own['name']} reaches {shown(own, 'test.accuracy')} % after {own['epochs']} epochs (95 % interval "
        f"{interval}{seeds}; n = {shown(own, 'test.n')}, {worth}) with {shown(own, 'parameters')} parameters and "
        f"{shown(own, 'macs')} M MACs"
    )
