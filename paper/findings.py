"""What the results show, in Markdown sentences whose numbers come from result files. (See also scan_report.)"""

from __future__ import annotations

from kwslib.models.registry import MODELS
from paper.facts import collect_facts, shown
from paper.figure_style import family_label, family_of
from paper.results import corpus_name, label_of


def bullets(lines):
    return "\n".join(f"- {line}" for line in lines)


def accuracy_findings(runs, claims):
    """The most and least accurate models, the sizes of each family, and what the claimed counts left out."""
    if not runs:
        return "No run has finished yet."
    facts = collect_facts(runs, None, claims)
    measured = {model: own for model, own in facts.items() if "test.accuracy" in own}
    order = sorted(measured, key=lambda model: -measured[model]["test.accuracy"])

    def accuracy(model):
        own = measured[model]
        return f"{shown(own, 'test.accuracy')} % (95 % interval {shown(own, 'interval')}; seeds: {own['seeds']})"

    test = runs[0]["test"]
    lines = [
        f"On the test split of {corpus_name(runs)} ({test['n']:,} clips of {test['speakers']:,} speakers, "
        f"{len(runs[0]['labels'])} classes), {label_of(order[0])} has the highest accuracy, {accuracy(order[0])}."
    ]
    if len(order) > 1:
        lines.append(f"{label_of(order[-1])} has the lowest, {accuracy(order[-1])}.")
        smallest = min(order, key=lambda model: measured[model]["parameters"])
        lines.append(
            f"The smallest model, {label_of(smallest)}, has {shown(measured[smallest], 'parameters')} parameters and "
            f"an accuracy of {accuracy(smallest)}."
        )
    families = {}
    for model in sorted(order, key=lambda model: measured[model]["parameters"]):
        if model in MODELS:
            families.setdefault(family_of(model), []).append(model)
    for family, models in families.items():
        if len(models) > 1:
            sizes = ", ".join(f"{label_of(m)} {shown(measured[m], 'test.accuracy')} %" for m in models)
            lines.append(f"{family_label(family)}, from the smallest to the largest: {sizes}.")
    lines += [
        f"The claimed parameters of {label_of(model)} ({entry['claimed']['parameters']}) leave out "
        f"{entry['true_parameters'][35] - entry['without_ssm']:,} of the SSM; the true count is "
        f"{entry['true_parameters'][35]:,}."
        for model, entry in claims["models"].items()
        if "without_ssm" in entry
    ]
    return bullets(lines)


def cost_findings(benchmark):
    """Which models are the fastest, and how time and memory grow with the length of the audio."""
    models = benchmark["models"]
    one_clip = {model: entry["latency_ms"]["1"]["p50"] for model, entry in models.items()}
    fast, slow = min(one_clip, key=one_clip.get), max(one_clip, key=one_clip.get)
    lines = [
        f"On one thread of {benchmark['machine']['cpu']}, {label_of(fast)} has the lowest latency for one clip, with a "
        f"median of {one_clip[fast]:.2f} ms; {label_of(slow)} has the highest, {one_clip[slow]:.2f} ms."
    ]
    batch = max(models[fast]["throughput"], key=int)
    rates = {model: entry["throughput"][batch] for model, entry in models.items()}
    most = max(rates, key=rates.get)
    lines.append(f"In batches of {batch}, {label_of(most)} has the highest throughput, {rates[most]:,.0f} clips/s.")
    for model, values in ((benchmark.get("length") or {}).get("models", {})).items():
        if values["exponent_time"] is not None:
            memory, fitted = values["exponent_memory"], values["fitted_over"]
            lines.append(
                f"From {fitted[0]} to {fitted[-1]} s of audio, the time of {label_of(model)} grows with exponent "
                f"{values['exponent_time']:.2f}"
                + (f" and its memory with exponent {memory:.2f}." if memory is not None else ".")
            )
    return bullets(lines)
