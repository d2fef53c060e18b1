"""Which models differ? Their mean accuracies over seeds, compared on the same test speakers, from result files alone.

    python -m paper.comparisons subset

writes results/subset/comparisons.json. Compared are every model with Mamba-Light and with Mamba-Mel Small, and the
neighbours in rank, where both were trained for the same number of epochs (`results.by_epochs`). Seeds and speakers are
resampled together (`statistics.mean_draws`); the p values of such a group are one family, corrected by Holm. Notebook 4
writes the same file.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from statistics import mean

from kwslib.io import KwsError, cli, write_json
from paper.results import (
    all_tables,
    by_epochs,
    by_model,
    describe,
    effective_phrase,
    epochs_of,
    label_of,
    load_runs,
    source,
    span,
    speaker_tables,
)
from paper.statistics import DRAWS, effective_clips, holm, interval_of, mean_draws, two_sided_p

ANCHORS = ("mamba_light", "mamba_mel_small")
FEWEST = 3  # seeds on each side: with fewer, how much seeds differ is not known, and there is no p
LEVEL = 0.05
SPEAKER = "3f2b358d"  # of Speech Commands V2: its test clips are nearly silent, see paper.levels
METHOD = (
    f"Difference of the means over seeds, in points; 95 % intervals and two-sided p by {DRAWS:,} bootstrap draws of "
    "seeds and test speakers together, the speakers the same for both sides; p corrected by Holm over all comparisons "
    "after the same epochs that have one; intervals are not corrected, so one may leave out zero where the verdict is "
    f"no significant difference. No p where a side has fewer than {FEWEST} seeds: that interval is over speakers and "
    "the few seeds. Few seeds have few means: how far they spread is estimated rightly, not how far the rarest go."
)


def share(table):
    """The accuracy that {speaker: [right, clips]} gives."""
    right, clips = (sum(column) for column in zip(*table.values()))
    return right / clips


def known_groups(runs):
    """model -> the speaker tables of its seeds, those models alone whose files have them all."""
    tables = {model: speaker_tables(own) for model, own in by_model(runs).items()}
    return {model: own for model, own in tables.items() if own}


def pairs_of(groups, anchors=ANCHORS):
    """The pairs to compare: each anchor with every other model, then neighbours in rank of accuracy, the better first;
    no pair twice.
    """
    rank = sorted(groups, key=lambda model: -mean(map(share, groups[model])))
    pairs = [(anchor, other) for anchor in anchors if anchor in groups for other in rank if other != anchor]
    found = {}
    for pair in [*pairs, *pairwise(rank)]:
        found.setdefault(frozenset(pair), pair)
    return list(found.values())


def compare(groups, pairs, draws=DRAWS, seed=0):
    """[{models, seeds, difference, interval, p, holm}] of pairs of `groups` (model -> its seeds' tables); fractions.

    p and holm, the p corrected for this family, are None where a side has fewer than FEWEST seeds.
    """
    means, found = mean_draws(groups, draws, seed), []
    for pair in pairs:
        ours, theirs = (groups[model] for model in pair)
        gain, seeds = means[pair[0]] - means[pair[1]], [len(ours), len(theirs)]
        entry = {"models": list(pair), "seeds": seeds, "difference": mean(map(share, ours)) - mean(map(share, theirs))}
        p = two_sided_p(gain) if min(seeds) >= FEWEST else None
        found.append({**entry, "interval": interval_of(gain), "p": p, "holm": None})
    tested = [entry for entry in found if entry["p"] is not None]
    for entry, adjusted in zip(tested, holm([entry["p"] for entry in tested])):
        entry["holm"] = adjusted
    return found


def without_speaker(groups, speaker=SPEAKER):
    """model -> {clips, wrong, with, without, intervals, seeds}: its mean accuracy with and without one speaker, both
    fractions, and the interval [low, high] of each of the two; how many clips the speaker has, and on how many of them
    a seed of the model is wrong. groups: see `known_groups`.

    Models that were not tested on the speaker are left out.
    """
    found = {}
    known = {m: own for m, own in groups.items() if all(speaker in table and len(table) > 1 for table in own)}
    others = {m: [{s: row for s, row in t.items() if s != speaker} for t in own] for m, own in known.items()}
    if known:
        draws, draws_of_others = mean_draws(known), mean_draws(others)
    for model, tables in known.items():
        rest = others[model]
        right, clips = (mean(table[speaker][i] for table in tables) for i in (0, 1))
        found[model] = {"clips": round(clips), "wrong": clips - right}
        found[model] |= {"with": mean(map(share, tables)), "without": mean(map(share, rest))}
        found[model]["intervals"] = [interval_of(d[model]) for d in (draws, draws_of_others)]
        found[model]["seeds"] = len(tables)
    return found


def compare_runs(runs):
    """The content of comparisons.json. Models whose files lack the counts of each speaker are under "not_known"."""
    found = {"draws": DRAWS, "speakers": None, "models": [], "comparisons": []}
    for part in by_epochs(runs).values():
        trained = by_model(part)
        if groups := known_groups(part):
            found["speakers"] = len(next(iter(groups.values()))[0])
            found["models"] += [summary(own, trained[model]) for model, own in groups.items()]
            found["comparisons"] += [
                entry | {"epochs": epochs_in_words(*(trained[model] for model in entry["models"]))}
                for entry in compare(groups, pairs_of(groups))
            ]
    rest = {epochs: without_speaker(known_groups(part)) for epochs, part in by_epochs(runs).items()}
    found["without_speaker"] = {"speaker": SPEAKER, "after_epochs": rest}
    return found | {"not_known": sorted(set(by_model(runs)) - {entry["model"] for entry in found["models"]})}


def summary(tables, own):
    """What comparisons.json says of a model, of the tables of its runs `own`."""
    return {
        "model": own[0]["model"],
        "epochs": epochs_in_words(own),
        "seeds": len(tables),
        "accuracy": mean(map(share, tables)),
        "effective_n": mean(map(effective_clips, tables)),
    }


def epochs_in_words(*sides):
    """How long the runs of each side were trained: "20", or "5 and 7"."""
    return " and ".join(dict.fromkeys(span(epochs_of(own)) for own in sides))


# -- in words


def after_epochs(epochs):
    """How a sentence about runs after `epochs` (text, or None where it is not known) begins."""
    return f"After {epochs} epochs, " if epochs else ""


def seeds_text(seeds):
    """Why there is no p: "one seed", "two seeds"; None where both sides, of `seeds`, have enough."""
    return {1: "one seed", 2: "two seeds"}.get(min(seeds))


def p_text(p):
    """A p as text, never below what the draws can resolve."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def verdict(entry):
    """What a comparison says of its first model: "better", "worse", "no significant difference", or "one seed"."""
    if few := seeds_text(entry["seeds"]):
        return few
    if entry["holm"] >= LEVEL:
        return "no significant difference"
    return "better" if entry["difference"] > 0 else "worse"


def comparison_rows(entries):
    """DataFrame of text, one row for each comparison."""
    from pandas import DataFrame

    return DataFrame(
        {
            "model": label_of(e["models"][0]),
            "compared with": label_of(e["models"][1]),
            "difference (points)": f"{100 * e['difference']:+.2f}",
            "95 % interval": f"{100 * e['interval'][0]:+.2f} to {100 * e['interval'][1]:+.2f}",
            "p": p_text(e["p"]) if e["p"] is not None else "–",
            "p, corrected": p_text(e["holm"]) if e["holm"] is not None else "–",
            "seeds": "{} and {}".format(*e["seeds"]),
            **({"epochs": e["epochs"]} if "epochs" in e else {}),
            "verdict for the first model": verdict(e),
        }
        for e in entries
    )


def comparison_sentence(entry):
    """A comparison as a sentence with its numbers."""
    (ours, theirs), (low, high) = map(label_of, entry["models"]), (100 * end for end in entry["interval"])
    numbers = f"{100 * entry['difference']:+.2f} points ({low:+.2f} to {high:+.2f}"
    after = after_epochs(entry.get("epochs"))
    if few := seeds_text(entry["seeds"]):
        return f"{after}{ours} minus {theirs}, {few}: {numbers}; no p)."
    numbers += f", corrected p {'' if entry['holm'] < 0.001 else '= '}{p_text(entry['holm'])})"
    if verdict(entry) == "no significant difference":
        none = f"{'there' if after else 'There'} is no significant difference"
        return f"{after}{none} between {ours} and {theirs}: {numbers}."
    return f"{after}{ours} is {verdict(entry)} than {theirs}: {numbers}."


def comparison_tables(runs):
    """name -> (DataFrame, caption): comparisons, and without_speaker where that speaker is in the test; both are left
    out where the result files lack the counts.
    """
    from pandas import DataFrame

    groups, tables = known_groups(runs), {}
    if len(groups) > 1:
        caption = f"{METHOD} {describe([run for run in runs if run['model'] in groups])}"
        tables["comparisons"] = comparison_rows(compare_runs(runs)["comparisons"]), caption
    rows = [
        row
        for epochs, part in by_epochs(runs).items()
        for row in speaker_rows(without_speaker(known_groups(part)), epochs)
    ]
    if rows:
        caption = "Mean test accuracy over seeds, with and without one speaker, and its 95 % interval over seeds and "
        caption += f"speakers ({effective_phrase(all_tables(runs))}). {source(runs)}"
        tables["without_speaker"] = DataFrame(rows), caption
    return tables


def speaker_rows(found, epochs):
    """Rows of text of `without_speaker`."""
    return [
        {
            "model": label_of(model),
            "epochs": epochs,
            "seeds": str(own["seeds"]),
            **{
                name: f"{100 * own[key]:.2f} ({100 * low:.2f}–{100 * high:.2f})"
                for name, key, (low, high) in zip(
                    ("accuracy (%)", f"without {SPEAKER} (%)"), ("with", "without"), own["intervals"]
                )
            },
            "change (points)": f"{100 * (own['without'] - own['with']):+.2f}",
            f"clips of {SPEAKER}": f"{own['clips']}",
            "of these wrong": f"{own['wrong']:.1f}",
        }
        for model, own in found.items()
    ]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("profile", help="whose results/<profile>/runs are compared")
    parser.add_argument("--results", default="results", help="folder of the profiles' results")
    a = parser.parse_args(argv)
    folder = Path(a.results) / a.profile
    found = compare_runs(load_runs(folder))
    if not found["comparisons"]:
        raise KwsError("fewer than two models have result files with test.by_speaker; test them again with kws test")
    write_json(folder / "comparisons.json", found)
    for entry in found["comparisons"]:
        print(comparison_sentence(entry))
    return 0


if __name__ == "__main__":
    cli(main)
