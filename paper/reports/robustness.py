"""Beyond clean clips, from result files alone: tables of robustness and streaming, and what they show in sentences."""

from __future__ import annotations

from pathlib import Path
from statistics import stdev

import numpy as np

from kwslib.io import read_json
from paper.comparisons import (
    METHOD,
    SPEAKER,
    after_epochs,
    compare,
    comparison_rows,
    comparison_sentence,
    without_speaker,
)
from paper.results import by_model, corpus_name, effective_phrase, label_of, seeds_phrase, source
from paper.statistics import interval_of, mean_draws

NOISES = {"pink": "pink noise", "babble": "babble", "recorded": "held-out noise files"}
WAYS = {"windows": "windows", "carried": "carried state"}


def load_beyond(results):
    """{"robustness": [...], "streaming": [...]}: the content of the files of a results folder, sorted by name.

    "epochs" of each is how long its model was trained, None where the file of its run is not there.
    """
    found = {}
    for kind in ("robustness", "streaming"):
        paths = sorted((Path(results) / kind).glob("*.json"))
        found[kind] = [read_json(path, kind) | {"epochs": trained_for(path)} for path in paths]
    return found


def trained_for(path):
    """The epochs of the run that a result file is about: <model>-<seed>.json, or <profile>-<model>-<seed>.json."""
    profile, _, name = path.name.partition("-")
    for run in (path.parents[1] / "runs" / path.name, path.parents[2] / profile / "runs" / name):
        if run.is_file():
            return read_json(run, "run")["training"]["epochs"]
    return None


def groups_of(entries):
    """Epochs -> the entries of models that were trained for as many: no others are compared."""
    groups = {}
    for entry in sorted(entries, key=lambda e: e.get("epochs") or 0):
        groups.setdefault(entry.get("epochs"), []).append(entry)
    return groups


def task_of(stream):
    """The classes that a streaming model was trained on: "15 words", or "8 words, unknown, silence"."""
    more = [label.strip("_") for label in stream["labels"] if label not in stream["keywords"]]
    return ", ".join([f"{len(stream['keywords'])} words", *more])


def percent(part, std=None, spread=False):
    """An {accuracy, interval} in per cent, with the standard deviation over seeds and the interval where asked for."""
    text = f"{100 * part['accuracy']:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")
    return f"{text} [{100 * part['interval'][0]:.2f}–{100 * part['interval'][1]:.2f}]" if spread else text


def averaged(values):
    """The mean of results of the same shape, number by number; of texts and of lists of other things the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: averaged([v[key] for v in values if key in v]) for key in first}
    if isinstance(first, list) and first and isinstance(first[0], float) and {len(v) for v in values} == {len(first)}:
        return [averaged(column) for column in zip(*values)]
    return sum(values) / len(values) if isinstance(first, float) else first


def over_seeds(entries):
    """One entry for each model: the mean over its seeds, "seeds" (how many), "std" (of the clean accuracies, or None).

    The clean accuracy's interval is that of the mean, seeds and speakers resampled together; the reliability diagrams
    are the first seed's.
    """
    means, draws = [], mean_draws(speaker_groups(entries))
    for model, own in by_model(entries).items():
        mean = averaged(own) | {"seeds": len(own), "std": None}
        if len(own) > 1:
            mean["std"] = stdev(entry["clean"]["accuracy"] for entry in own)
            mean["clean"] = mean["clean"] | {"interval": interval_of(draws[model])}
        means.append(mean)
    return means


def speaker_groups(entries):
    """model -> {speaker: [right, clips]} of each seed, of the clean clips."""
    return {model: [table_of(entry) for entry in own] for model, own in by_model(entries).items()}


def table_of(entry):
    """{speaker: [right, clips]} of the clean clips of one result file."""
    names, who = np.unique(entry["speakers"], return_inverse=True)
    right = np.bincount(who, np.array(entry["predictions"]) == np.array(entry["targets"]))
    return dict(zip(names.tolist(), zip(right.tolist(), np.bincount(who).tolist())))


def comparisons(entries, chosen):
    """`chosen` against every other model on the clean clips, after the same epochs: see `comparisons.compare`."""
    found = []
    for epochs, part in groups_of(entries).items():
        groups = speaker_groups(part)
        pairs = [(chosen, model) for model in groups if model != chosen and chosen in groups]
        found += [entry | {"epochs": epochs and f"{epochs}"} for entry in compare(groups, pairs)]
    return found


def robustness_tables(found, chosen="mamba_light"):
    """name -> (DataFrame, caption): robustness; paired, the comparison with `chosen`; streaming."""
    entries = found["robustness"]
    tables = {"robustness": conditions_table(entries)}
    if any(e["model"] == chosen for e in entries) and len({e["model"] for e in entries}) > 1:
        tables["paired"] = paired_table(entries, chosen)
    if any("test" in way for stream in found["streaming"] for way in stream["ways"].values()):
        tables["streaming"] = streaming_table(found["streaming"])
    return tables


def about_clips(entries):
    """Caption part: the corpus and the clips, and what the numbers are."""
    clean, groups = entries[0]["clean"], speaker_groups(entries)
    counts = {len(own) for part in groups_of(entries).values() for own in by_model(part).values()}
    return (
        f"{source(entries)} n = {clean['n']:,} test clips of {clean['speakers']:,} speakers "
        f"({effective_phrase(table for own in groups.values() for table in own)}); {epochs_phrase(entries)}"
        f"{seeds_phrase(counts)}; 95 % intervals of the mean by resampling seeds and speakers, speakers alone where "
        "there is one seed."
    )


def epochs_phrase(entries):
    """Caption part: after how many epochs; nothing where that is not known."""
    known = sorted(epochs for epochs in groups_of(entries) if epochs)
    return f"after {' or '.join(f'{epochs:,}' for epochs in known)} epochs; " if known else ""


def conditions_table(entries):
    """Accuracy under each condition, calibration, and rejection of unknown words."""
    from pandas import DataFrame

    on, rows = f", {corpus_name(entries)} (%)", []
    for e in (mean for part in groups_of(entries).values() for mean in over_seeds(part)):
        row = {
            "model": label_of(e["model"]),
            "seeds": str(e["seeds"]),
            "epochs": str(e.get("epochs") or "not known"),
            f"clean{on}": percent(e["clean"], e["std"], True),
        }
        row |= {f"{NOISES[kind]}, 0 dB{on}": f"{percent(by['0'])} {seen(e, kind)}" for kind, by in e["snr"].items()}
        row |= {
            f"200 ms late{on}": percent(e["shift"]["200"]),
            f"0.5 s, masked{on}": percent(e["cut"]["0.5"]["masked"]),
            f"0.5 s, padded{on}": percent(e["cut"]["0.5"]["padded"]),
            f"telephone{on}": percent(e["telephone"]),
            "calibration error": f"{e['calibration']['error']:.3f}",
            "temperature": f"{e['calibration']['temperature']:.2f}",
            "error at that temperature": f"{e['calibration']['error_scaled']:.3f}",
            "area, unknown words": f"{e['open_set']['area']:.3f}" if "open_set" in e else "–",
        }
        rows.append(row)
    return DataFrame(rows), (
        "Accuracy under changed conditions, calibration, and rejection of words that were not in the training. Noise: "
        "pink, babble of six other speakers, and noise files of the corpus that no training heard; "
        "“seen” is what the model's recipe mixed into its training, such as pink noise among the corpus' noise files. "
        "Only the loudest half second, with the rest masked or left as silence; 300 to 3,400 Hz and 8-bit µ-law at "
        f"8 kHz. {about_clips(entries)}"
    )


def seen(entry, kind):
    """Whether a kind of noise was in the model's training, as tables print it."""
    return {True: "(seen)", False: "(unseen)", None: "(not known)"}[entry.get("seen", {}).get(kind)]


def named(entry):
    """A model's name, marked where one seed is all there is of it."""
    return label_of(entry["model"]) + (" (one seed)" if entry["seeds"] == 1 else "")


def paired_table(entries, chosen):
    """`chosen` against every other model."""
    return comparison_rows(comparisons(entries, chosen)), f"{METHOD} {about_clips(entries)}"


def streaming_table(streams):
    """Misses and false alarms of every model and way of listening."""
    from pandas import DataFrame

    rows = []
    for s in streams:
        for way, w in s["ways"].items():
            if "test" not in w:
                continue
            test, validation = w["test"], w["validation"]
            low, high = (100 * end for end in test["miss_interval"])
            row = {
                "model": label_of(s["model"]),
                "trained on": task_of(s),
                "epochs": str(s.get("epochs") or "not known"),
                "listening": WAYS[way],
                "missed, validation (%)": f"{100 * validation['miss_rate']:.1f}",
                "false alarms/h, validation": f"{validation['alarms_per_hour']:.2f}",
                "missed, test (%)": f"{100 * test['miss_rate']:.1f} [{low:.1f}–{high:.1f}]",
                "false alarms/h, test": f"{test['alarms_per_hour']:.2f}",
                "median delay (s)": f"{test['delay_s']:.2f}" if test["delay_s"] is not None else "–",
                "keywords": f"{test['n']:,}",
                "speakers": f"{test['speakers']:,}",
            }
            rows.append(row)
    s = streams[0]
    return DataFrame(rows), (
        f"Synthetic streams of {s['hours']:g} h of held-out speakers: keywords among as many other words, background "
        f"noise at 5 to 25 dB. The threshold is the lowest with at most {s['allowed_alarms_per_hour']} false alarms an "
        "hour on the validation stream, or the highest tried. Misses with a 95 % interval over speakers. The delay "
        f"counts from the end of the clip. {source(streams)}"
    )


def findings(found, chosen="mamba_light"):
    """What the results show, in Markdown sentences, each with its numbers and epochs, unfavourable ones included."""
    lines = [
        f"{after_epochs(epochs)}{line}"
        for epochs, part in groups_of(found["robustness"]).items()
        for line in condition_sentences(part)
    ]
    lines += map(comparison_sentence, comparisons(found["robustness"], chosen))
    lines += [stream_sentence(s, way) for s in found["streaming"] for way in s["ways"] if "test" in s["ways"][way]]
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def condition_sentences(part):
    """What the robustness of models that were trained for the same epochs shows."""
    entries = over_seeds(part)
    best = max(entries, key=lambda e: e["clean"]["accuracy"])
    worth = effective_phrase(table for own in speaker_groups(part).values() for table in own)
    lines = [
        f"{named(best)} has the highest test accuracy, {percent(best['clean'], best['std'], True)} % "
        f"(n = {best['clean']['n']:,}, {worth}; seeds: {best['seeds']}).",
        *speaker_sentences(part),
    ]
    for kind in entries[0]["snr"]:
        first, last = extremes((e["snr"][kind]["0"]["accuracy"], e) for e in entries)
        lines.append(
            f"in {NOISES[kind]} at 0 dB, {named(last)} has the highest accuracy, "
            f"{percent(last['snr'][kind]['0'])} % {seen(last, kind)}, and {named(first)} the lowest, "
            f"{percent(first['snr'][kind]['0'])} % {seen(first, kind)}."
        )
    gain = {e["model"]: e["cut"]["0.5"]["masked"]["accuracy"] - e["cut"]["0.5"]["padded"]["accuracy"] for e in entries}
    least, most = extremes((value, model) for model, value in gain.items())
    lines.append(
        f"on half a second of sound, masking the padding changes the accuracy by {100 * gain[least]:+.2f} "
        f"({label_of(least)}) to {100 * gain[most]:+.2f} points ({label_of(most)})."
    )
    least, most = extremes((e["calibration"]["error"], e) for e in entries)
    lines.append(
        f"the calibration error ranges from {least['calibration']['error']:.3f}, {named(least)}, to "
        f"{most['calibration']['error']:.3f}, {named(most)}; with a temperature fitted on validation it "
        f"is at most {max(e['calibration']['error_scaled'] for e in entries):.3f}."
    )
    if known := [(e["open_set"]["area"], e) for e in entries if "open_set" in e]:
        least, most = extremes(known)
        lines.append(
            f"rejecting unknown words by its confidence, {named(most)} has the largest area under the curve, "
            f"{most['open_set']['area']:.3f}, and {named(least)} the smallest, {least['open_set']['area']:.3f}."
        )
    return lines


def speaker_sentences(part):
    """What one nearly silent speaker of the test changes, where it is in the test."""
    found = without_speaker(speaker_groups(part))
    if not found:
        return []
    least, most = (found[model] for model in extremes((own["wrong"], model) for model, own in found.items()))
    low, high = extremes((own["without"] - own["with"], own) for own in found.values())
    best = max(found, key=lambda model: found[model]["without"])
    return [
        f"the models are wrong on {least['wrong']:.3g} to {most['wrong']:.3g} of the {least['clips']} test clips of "
        f"speaker {SPEAKER}; without these, accuracies are {100 * (low['without'] - low['with']):.2f} to "
        f"{100 * (high['without'] - high['with']):.2f} points higher, and the highest is "
        f"{100 * found[best]['without']:.2f} %, {label_of(best)}."
    ]


def stream_sentence(stream, way):
    """Misses and false alarms of one model and way of listening."""
    test = stream["ways"][way]["test"]
    return (
        f"{after_epochs(stream.get('epochs'))}in {test['hours']:g} h of synthetic stream, {label_of(stream['model'])} "
        f"trained on {task_of(stream)} ({WAYS[way]}) misses {100 * test['miss_rate']:.1f} % of {test['n']:,} keywords "
        f"of {test['speakers']:,} speakers at {test['alarms_per_hour']:.2f} false alarms an hour."
    )


def extremes(pairs):
    """Of (number, thing) pairs the things with the smallest and with the largest number, the first of equal ones."""
    pairs = list(pairs)
    return min(pairs, key=lambda pair: pair[0])[1], max(pairs, key=lambda pair: pair[0])[1]
