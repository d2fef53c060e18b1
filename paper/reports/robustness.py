"""Beyond clean clips, from result files alone: tables of robustness and streaming, and what they show in sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kwslib.io import read_json
from paper.comparisons import SPEAKER, after_epochs, without_speaker
from paper.results import by_model, corpus_name, effective_phrase, label_of, source

NOISES = {"pink": "pink noise", "babble": "babble", "recorded": "held-out recorded noise"}
WAYS = {"windows": "windows", "carried": "carried state"}


def load_beyond(results):
    """{"robustness": [...], "streaming": [...]}: the content of the files of a results folder, sorted by name."""
    return {
        kind: [read_json(path, kind) for path in sorted((Path(results) / kind).glob("*.json"))]
        for kind in ("robustness", "streaming")
    }


def groups_of(entries):
    """Epochs -> the entries of models that were trained for as many: no others are compared."""
    groups = {}
    for entry in sorted(entries, key=lambda e: e["epochs"]):
        groups.setdefault(entry["epochs"], []).append(entry)
    return groups


def task_of(stream):
    """The classes that a streaming model was trained on: "15 words", or "8 words, unknown, silence"."""
    more = [label.strip("_") for label in stream["labels"] if label not in stream["keywords"]]
    return ", ".join([f"{len(stream['keywords'])} words", *more])


def percent(part, interval=False):
    """An {accuracy, interval} in per cent, with the interval where asked for."""
    text = f"{100 * part['accuracy']:.2f}"
    return f"{text} [{100 * part['interval'][0]:.2f}–{100 * part['interval'][1]:.2f}]" if interval else text


def speaker_groups(entries):
    """model -> {speaker: [right, clips]} of each seed, of the clean clips."""
    return {model: [table_of(entry) for entry in own] for model, own in by_model(entries).items()}


def table_of(entry):
    """{speaker: [right, clips]} of the clean clips of one result file."""
    names, who = np.unique(entry["speakers"], return_inverse=True)
    right = np.bincount(who, np.array(entry["predictions"]) == np.array(entry["targets"]))
    return dict(zip(names.tolist(), zip(right.tolist(), np.bincount(who).tolist())))


def robustness_tables(found):
    """name -> (DataFrame, caption): robustness; streaming, where a stream was heard."""
    tables = {"robustness": conditions_table(found["robustness"])}
    if any("test" in way for stream in found["streaming"] for way in stream["ways"].values()):
        tables["streaming"] = streaming_table(found["streaming"])
    return tables


def about_clips(entries):
    """Caption part: the corpus and the clips, and what the numbers are."""
    clean = entries[0]["clean"]
    return (
        f"{source(entries)} n = {clean['n']:,} test clips of {clean['speakers']:,} speakers "
        f"({effective_phrase(map(table_of, entries))}); {epochs_phrase(entries)}; one seed "
        "of each model, the one that ships; 95 % intervals over speakers."
    )


def epochs_phrase(entries):
    """Caption part: after how many epochs."""
    return f"after {' or '.join(f'{epochs:,}' for epochs in groups_of(entries))} epochs"


def conditions_table(entries):
    """Accuracy under each condition, calibration, and rejection of unknown words."""
    from pandas import DataFrame

    on, rows = f", {corpus_name(entries)} (%)", []
    for e in sorted(entries, key=lambda e: e["epochs"]):
        row = {"model": named(e), "epochs": f"{e['epochs']:,}", f"clean{on}": percent(e["clean"], True)}
        row |= {f"{NOISES[kind]}, 0 dB{on}": f"{percent(by['0'])} {seen(e, kind)}" for kind, by in e["snr"].items()}
        row |= {
            f"200 ms late{on}": percent(e["shift"]["200"]),
            f"0.5 s, masked{on}": percent(e["cut"]["0.5"]["masked"]),
            f"0.5 s, padded{on}": percent(e["cut"]["0.5"]["padded"]),
            f"telephone{on}": percent(e["telephone"]),
            "calibration error": f"{e['calibration']['error']:.3f}",
            "temperature": f"{e['calibration']['temperature']:.2f}",
            "error at that temperature": f"{e['calibration']['error_scaled']:.3f}",
            "AUROC, unknown words": f"{e['open_set']['area']:.3f}" if "open_set" in e else "–",
        }
        rows.append(row)
    return DataFrame(rows), (
        "Accuracy under changed conditions, calibration, and rejection of words that were not in the training. Noise: "
        "pink, babble of six other speakers, and recorded noise of the corpus that no training heard; "
        "“seen” is what the model's recipe mixed into its training, such as pink noise among the corpus' noise files. "
        "Only the loudest half second, with the rest masked or left as silence, which is the same where a model's "
        f"recipe counts all frames; 300 to 3,400 Hz and 8-bit µ-law at 8 kHz. {about_clips(entries)}"
    )


def seen(entry, kind):
    """Whether a kind of noise was in the model's training, as tables print it."""
    return "(seen)" if entry["seen"][kind] else "(unseen)"


def named(entry):
    """A model's name in texts."""
    return label_of(entry["model"])


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
                "model": named(s),
                "trained on": task_of(s),
                "epochs": f"{s['epochs']:,}",
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


def findings(found):
    """What the results show, in Markdown sentences, each with its numbers and epochs, unfavourable ones included."""
    lines = [
        f"{after_epochs(epochs)}{line}"
        for epochs, part in groups_of(found["robustness"]).items()
        for line in condition_sentences(part)
    ]
    lines += [stream_sentence(s, way) for s in found["streaming"] for way in s["ways"] if "test" in s["ways"][way]]
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def condition_sentences(part):
    """What the robustness of models that were trained for the same epochs shows."""
    best = max(part, key=lambda e: e["clean"]["accuracy"])
    worth = effective_phrase(map(table_of, part))
    lines = [
        f"of the models tested here, {named(best)} has the highest test accuracy, {percent(best['clean'], True)} % "
        f"(n = {best['clean']['n']:,}, {worth}).",
        *speaker_sentences(part),
    ]
    for kind in part[0]["snr"]:
        first, last = extremes((e["snr"][kind]["0"]["accuracy"], e) for e in part)
        lines.append(
            f"in {NOISES[kind]} at 0 dB, {named(last)} has the highest accuracy, "
            f"{percent(last['snr'][kind]['0'], True)} % {seen(last, kind)}, and {named(first)} the lowest, "
            f"{percent(first['snr'][kind]['0'], True)} % {seen(first, kind)}."
        )
    lines.append(masking_sentence(part))
    least, most = extremes((e["calibration"]["error"], e) for e in part)
    lines.append(
        f"the calibration error ranges from {least['calibration']['error']:.3f}, {named(least)}, to "
        f"{most['calibration']['error']:.3f}, {named(most)}; with a temperature fitted on validation it "
        f"is at most {max(e['calibration']['error_scaled'] for e in part):.3f}."
    )
    if known := [(e["open_set"]["area"], e) for e in part if "open_set" in e]:
        least, most = extremes(known)
        lines.append(
            f"at rejecting unknown words by their confidence, {named(most)} has the highest AUROC, "
            f"{most['open_set']['area']:.3f}, and {named(least)} the lowest, {least['open_set']['area']:.3f}."
        )
    return lines


def masking_sentence(part):
    """What it changes to leave the padding of shortened clips out of the mean, over all lengths that were tried."""
    gains = [
        (both["masked"]["accuracy"] - both["padded"]["accuracy"], e, seconds)
        for e in part
        for seconds, both in e["cut"].items()
    ]
    masks = {e["model"] for gain, e, _ in gains if gain}
    if not masks:
        return "masking the padding of shortened clips changes the accuracy of none of the models."
    ends = extremes((gain, (gain, e, seconds)) for gain, e, seconds in gains if e["model"] in masks)
    low, high = (f"{100 * gain:+.2f} ({named(e)}, {seconds} s)" for gain, e, seconds in ends)
    others = len({e["model"] for e in part} - masks)
    rest = f"; that of the {others} other models stays the same" if others else ""
    return f"masking the padding of shortened clips changes the accuracy by {low} to {high} points{rest}."


def speaker_sentences(part):
    """What one nearly silent speaker of the test changes, where it is in the test."""
    found = without_speaker(speaker_groups(part))
    if not found:
        return []
    least, most = (found[model] for model in extremes((own["wrong"], model) for model, own in found.items()))
    low, high = extremes((own["without"] - own["with"], own) for own in found.values())
    best = max(found, key=lambda model: found[model]["without"])
    worst, finest = found[best]["intervals"][1]
    return [
        f"the models are wrong on {least['wrong']:.3g} to {most['wrong']:.3g} of the {least['clips']} test clips of "
        f"speaker {SPEAKER}; without these, accuracies are {100 * (low['without'] - low['with']):.2f} to "
        f"{100 * (high['without'] - high['with']):.2f} points higher, and the highest of the "
        f"models tested here is {100 * found[best]['without']:.2f} [{100 * worst:.2f}–{100 * finest:.2f}] %, "
        f"{label_of(best)}."
    ]


def stream_sentence(stream, way):
    """Misses and false alarms of one model and way of listening."""
    test = stream["ways"][way]["test"]
    low, high = test["miss_interval"]
    return (
        f"{after_epochs(stream['epochs'])}in {test['hours']:g} h of synthetic stream, {named(stream)} "
        f"trained on {task_of(stream)} ({WAYS[way]}) misses {100 * test['miss_rate']:.1f} "
        f"[{100 * low:.1f}–{100 * high:.1f}] % of {test['n']:,} keywords of {test['speakers']:,} speakers at "
        f"{test['alarms_per_hour']:.2f} false alarms an hour."
    )


def extremes(pairs):
    """Of (number, thing) pairs the things with the smallest and with the largest number, the first of equal ones."""
    pairs = list(pairs)
    return min(pairs, key=lambda pair: pair[0])[1], max(pairs, key=lambda pair: pair[0])[1]
