"""Tables, figures and findings beyond clean clips, from result files alone: runs, robustness and streaming of a profile."""

from __future__ import annotations

from pathlib import Path
from statistics import stdev

import numpy as np

from kwslib.io import read_json
from paper.figures import PAGE, figure, look
from paper.statistics import paired_bootstrap
from paper.tables import corpus_name, source

NOISES = {"pink": "pink noise", "babble": "babble"}
FEW = 20  # clips: a bin of a reliability diagram with fewer is not drawn
WAYS = {"windows": "windows", "carried": "carried state"}


def load_beyond(results):
    """{"robustness": [...], "streaming": [...]}: the content of the files of a results folder, sorted by name."""
    kinds = ("robustness", "streaming")
    return {kind: [read_json(p, kind) for p in sorted((Path(results) / kind).glob("*.json"))] for kind in kinds}


def name_of(model, claims):
    return claims["models"].get(model, {}).get("name", model)


def task_of(stream):
    """What a streaming model was trained to tell apart: "15 words", or "8 words, unknown, silence"."""
    more = [label.strip("_") for label in stream["labels"] if label not in stream["keywords"]]
    return ", ".join([f"{len(stream['keywords'])} words", *more])


def percent(part, std=None, spread=False):
    """Accuracy of an {accuracy, interval} in per cent, with its standard deviation over seeds and its interval where asked for."""
    text = f"{100 * part['accuracy']:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")
    return f"{text} [{100 * part['interval'][0]:.2f}–{100 * part['interval'][1]:.2f}]" if spread else text


def chance(p):
    """A bootstrap's p, never below what 10,000 draws can tell."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def right(entry):
    return np.array(entry["predictions"]) == np.array(entry["targets"])


def by_model(entries):
    """model -> its entries, one for each seed."""
    groups = {}
    for entry in entries:
        groups.setdefault(entry["model"], []).append(entry)
    return groups


def averaged(values):
    """The mean of results of the same shape, number by number; of texts and of lists of other things the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: averaged([v[key] for v in values if key in v]) for key in first}
    if isinstance(first, list) and first and isinstance(first[0], float) and {len(v) for v in values} == {len(first)}:
        return [averaged(column) for column in zip(*values)]
    return sum(values) / len(values) if isinstance(first, float) else first


def over_seeds(entries):
    """One entry for each model, the mean over its seeds, with "seeds" (how many) and "std" (of the clean accuracies, or None).

    The intervals are the means of the seeds' own; the reliability diagrams are the first seed's.
    """
    return [
        averaged(own) | {"seeds": len(own), "std": stdev(e["clean"]["accuracy"] for e in own) if len(own) > 1 else None}
        for own in by_model(entries).values()
    ]


def comparisons(entries, chosen):
    """`chosen` against every other model, on the same clips, by a paired bootstrap over speakers; seeds are averaged."""
    hits = {model: [right(entry) for entry in own] for model, own in by_model(entries).items()}
    ours = hits.pop(chosen)
    return {
        model: paired_bootstrap(np.mean(ours, 0), np.mean(theirs, 0), entries[0]["speakers"])
        | {"seeds": [len(ours), len(theirs)]}
        for model, theirs in hits.items()
    }


def build(found, claims, chosen="mamba_light"):
    """name -> (DataFrame, caption): robustness, comparison with `chosen`, streaming."""
    from pandas import DataFrame

    entries, streams, tables = found["robustness"], found["streaming"], {}
    clean, means = entries[0]["clean"], over_seeds(entries)
    about = (
        f"{source(entries)} n = {clean['n']:,} test clips of {clean['speakers']:,} speakers; means over the seeds of each model, "
        "± standard deviation; 95 % intervals over speakers."
    )
    on = f", {corpus_name(entries)} (%)"
    tables["robustness"] = (
        DataFrame(
            {
                "model": name_of(e["model"], claims),
                "seeds": str(e["seeds"]),
                f"clean{on}": percent(e["clean"], e["std"], True),
                **{f"{NOISES[kind]}, 0 dB{on}": percent(by["0"]) for kind, by in e["snr"].items()},
                f"200 ms late{on}": percent(e["shift"]["200"]),
                f"0.5 s, masked{on}": percent(e["cut"]["0.5"]["masked"]),
                f"0.5 s, padded{on}": percent(e["cut"]["0.5"]["padded"]),
                f"telephone{on}": percent(e["telephone"]),
                "calibration error": f"{e['calibration']['error']:.3f}",
                "temperature": f"{e['calibration']['temperature']:.2f}",
                "error at that temperature": f"{e['calibration']['error_scaled']:.3f}",
                "area, unknown words": f"{e['open_set']['area']:.3f}" if "open_set" in e else "–",
            }
            for e in means
        ),
        (
            "Accuracy under conditions not trained for, calibration, and rejection of words never heard. Pink noise and "
            "babble of six other voices; only the loudest half second, the rest masked or left as silence; 300 to 3,400 Hz "
            f"and 8-bit µ-law at 8 kHz. {about}"
        ),
    )
    if any(e["model"] == chosen for e in entries) and len({e["model"] for e in entries}) > 1:
        tables["paired"] = (
            DataFrame(
                {
                    "model": name_of(model, claims),
                    f"{name_of(chosen, claims)} is better by (points)": f"{100 * c['difference']:+.2f}",
                    "95 % interval": f"{100 * c['interval'][0]:+.2f} to {100 * c['interval'][1]:+.2f}",
                    "p": chance(c["p"]).removeprefix("= "),
                    f"seeds of {name_of(chosen, claims)} and of the model": "{} and {}".format(*c["seeds"]),
                }
                for model, c in comparisons(entries, chosen).items()
            ),
            (
                "Paired bootstrap over speakers, 10,000 draws, the same clips for both, each clip's mean over the seeds, which are not "
                f"resampled; p is two-sided and not corrected for the number of comparisons. {about}"
            ),
        )
    rows = [(s, way, w) for s in streams for way, w in s["ways"].items() if "test" in w]
    if rows:
        s = streams[0]
        tables["streaming"] = (
            DataFrame(
                {
                    "model": name_of(s["model"], claims),
                    "trained on": task_of(s),
                    "listening": WAYS[way],
                    "missed, validation (%)": f"{100 * w['validation']['miss_rate']:.1f}",
                    "false alarms/h, validation": f"{w['validation']['alarms_per_hour']:.2f}",
                    "missed, test (%)": f"{100 * w['test']['miss_rate']:.1f} [{100 * w['test']['miss_interval'][0]:.1f}–{100 * w['test']['miss_interval'][1]:.1f}]",
                    "false alarms/h, test": f"{w['test']['alarms_per_hour']:.2f}",
                    "median delay (s)": f"{w['test']['delay_s']:.2f}" if w["test"]["delay_s"] is not None else "–",
                    "missed at 10 false alarms/h, test (%)": f"{100 * missed_at(w['curve'], 10):.1f}",
                    "keywords": f"{w['test']['n']:,}",
                    "speakers": f"{w['test']['speakers']:,}",
                }
                for s, way, w in rows
            ),
            (
                f"Made streams of {s['hours']:g} h of held-out speakers: keywords among as many other words, background noise at 5 to "
                f"25 dB. The threshold is the lowest with at most {s['allowed_alarms_per_hour']} false alarms an hour on the validation "
                "stream, or the highest tried. Misses with a 95 % interval over speakers. The delay counts from the end of the "
                f"clip. {source(streams)}"
            ),
        )
    return tables


def missed_at(curve, alarms):
    """The lowest miss rate of a curve at no more than `alarms` false alarms an hour."""
    return min((p["miss_rate"] for p in curve if p["alarms_per_hour"] <= alarms), default=1.0)


def accuracy_lines(ax, entries, claims, values, xlabel, title):
    for e in entries:
        found = values(e)
        ax.plot(list(map(float, found)), [100 * p["accuracy"] for p in found.values()], **look(e["model"], claims))
    ax.set(xlabel=xlabel, title=title)


def legend_below(fig, ax):
    """`fig` with the legend of one of its axes under all of them."""
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def conditions(entries, claims):
    """Accuracy against SNR in two noises, time shift, and what is left of the clip."""
    fig, axes = figure(PAGE, 4.6, 2, 2, sharey="row")
    for ax, kind in zip(axes[0], entries[0]["snr"]):
        accuracy_lines(ax, entries, claims, lambda e, k=kind: e["snr"][k], "SNR (dB)", NOISES[kind])
    accuracy_lines(axes[1, 0], entries, claims, lambda e: e["shift"], "shift (ms)", "time shift")
    accuracy_lines(
        axes[1, 1],
        entries,
        claims,
        lambda e: {s: c["masked"] for s, c in e["cut"].items()},
        "loudest part kept (s)",
        "cut short, masked",
    )
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    return legend_below(fig, axes[1, 0])


def confidence(entries, claims):
    """Reliability diagrams, before and after a temperature, and rejection of unknown words."""
    fig, axes = figure(PAGE, 2.9, 1, 3)
    for ax, key, title in zip(axes, ("diagram", "diagram_scaled"), ("as trained", "with the temperature")):
        ax.plot([0, 100], [0, 100], color="0.6", lw=0.8)
        for e in entries:
            d = [b for b in e["calibration"][key] if b["n"] >= FEW]
            ax.plot([100 * b["confidence"] for b in d], [100 * b["accuracy"] for b in d], **look(e["model"], claims))
        ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", title=title)
    for e in (e for e in entries if "open_set" in e):
        style = look(e["model"], claims)
        axes[2].plot(
            100 * np.array(e["open_set"]["unknown_accepted"]),
            100 * np.array(e["open_set"]["known_accepted"]),
            **{**style, "marker": None},
        )
    axes[2].set(xlabel="unknown words accepted (%)", ylabel="keywords accepted (%)", title="rejection", ylim=(50, 101))
    return legend_below(fig, axes[0])


def alarms(streams, claims):
    """Misses against false alarms an hour, a panel for each task; the marked point is the operating point."""
    tasks = sorted({task_of(s) for s in streams}, key=len)
    fig, axes = figure(PAGE, 3.0, 1, len(tasks), sharey=True, squeeze=False)
    for s in streams:
        ax = axes[0, tasks.index(task_of(s))]
        for way, w in s["ways"].items():
            if "curve" not in w:
                continue
            style = {**look(s["model"], claims), "linestyle": {"windows": "-", "carried": "--"}[way], "marker": None}
            style["label"] += f", {WAYS[way]}"
            ax.plot(
                [max(p["alarms_per_hour"], 0.1) for p in w["curve"]],
                [100 * p["miss_rate"] for p in w["curve"]],
                **style,
            )
            ax.plot(
                max(w["test"]["alarms_per_hour"], 0.1),
                100 * w["test"]["miss_rate"],
                look(s["model"], claims)["marker"],
                color=style["color"],
                clip_on=False,
            )
    for ax, task in zip(axes[0], tasks):
        ax.set(xscale="log", xlabel="false alarms an hour (none: 0.1)", title=f"trained on {task}", ylim=(0, 100))
        ax.legend(loc="lower left")
    axes[0, 0].set_ylabel("keywords missed (%)")
    return fig


def draw(found, claims):
    """name -> (figure, caption)."""
    entries, streams = over_seeds(found["robustness"]), found["streaming"]
    several = (
        f"means over {entries[0]['seeds']} seeds"
        if len({e["seeds"] for e in entries}) == 1
        else "means over the seeds that the table counts"
    )
    about = f"{source(entries)} n = {entries[0]['clean']['n']:,} test clips; {several if max(e['seeds'] for e in entries) > 1 else 'one seed'}."
    figures = {
        "conditions": (conditions(entries, claims), f"Accuracy under conditions that were not trained for. {about}"),
        "confidence": (
            confidence(entries, claims),
            f"Reliability, in bins of {FEW} clips and more of each model's first seed, as trained and with "
            f"the temperature that fits validation; and rejection of words never heard, by confidence. {about}",
        ),
    }
    if any("curve" in w for s in streams for w in s["ways"].values()):
        figures["streaming"] = (
            alarms(streams, claims),
            f"Made streams of {streams[0]['hours']:g} h, test speakers; points: "
            f"the threshold that the validation stream chose. {source(streams)}",
        )
    return figures


def findings(found, claims, chosen="mamba_light"):
    """Sentences, each with its numbers, in Markdown: also those that speak against us."""
    entries, lines = over_seeds(found["robustness"]), []
    best = max(entries, key=lambda e: e["clean"]["accuracy"])
    lines.append(
        f"The highest test accuracy here is that of {name_of(best['model'], claims)}, {percent(best['clean'], best['std'], True)} % "
        f"(n = {best['clean']['n']:,}; seeds: {best['seeds']})."
    )
    if any(e["model"] == chosen for e in entries):
        for model, c in comparisons(found["robustness"], chosen).items():
            verdict = (
                "better than"
                if c["interval"][0] > 0
                else "worse than"
                if c["interval"][1] < 0
                else "not told apart from"
            )
            lines.append(
                f"{name_of(chosen, claims)} is {verdict} {name_of(model, claims)}: {100 * c['difference']:+.2f} points "
                f"({100 * c['interval'][0]:+.2f} to {100 * c['interval'][1]:+.2f}, p {chance(c['p'])})."
            )
    for kind in entries[0]["snr"]:
        first = max(entries, key=lambda e: e["snr"][kind]["0"]["accuracy"])
        last = min(entries, key=lambda e: e["snr"][kind]["0"]["accuracy"])
        lines.append(
            f"In {NOISES[kind]} at 0 dB, {name_of(first['model'], claims)} keeps {percent(first['snr'][kind]['0'])} %, "
            f"{name_of(last['model'], claims)} {percent(last['snr'][kind]['0'])} %."
        )
    gains = sorted(
        (
            100 * (e["cut"]["0.5"]["masked"]["accuracy"] - e["cut"]["0.5"]["padded"]["accuracy"]),
            name_of(e["model"], claims),
        )
        for e in entries
    )
    lines.append(
        f"On half a second of sound, masking the padding changes the accuracy by {gains[0][0]:+.2f} points "
        f"({gains[0][1]}) to {gains[-1][0]:+.2f} ({gains[-1][1]})."
    )
    sure = sorted(
        (e["calibration"]["error"], e["calibration"]["error_scaled"], name_of(e["model"], claims)) for e in entries
    )
    lines.append(
        f"The calibration error goes from {sure[0][0]:.3f} ({sure[0][2]}) to {sure[-1][0]:.3f} ({sure[-1][2]}); with a temperature "
        f"fitted on validation it is at most {max(s[1] for s in sure):.3f}."
    )
    if areas := sorted((e["open_set"]["area"], name_of(e["model"], claims)) for e in entries if "open_set" in e):
        lines.append(
            f"By its confidence, {areas[-1][1]} tells unknown words apart best (area under the curve {areas[-1][0]:.3f}), "
            f"{areas[0][1]} worst ({areas[0][0]:.3f})."
        )
    for s in found["streaming"]:
        for way, w in s["ways"].items():
            if "test" in w:
                lines.append(
                    f"In {w['test']['hours']:g} h of made stream, {name_of(s['model'], claims)} trained on {task_of(s)} ({WAYS[way]}) "
                    f"misses {100 * w['test']['miss_rate']:.1f} % of {w['test']['n']:,} keywords at "
                    f"{w['test']['alarms_per_hour']:.2f} false alarms an hour."
                )
    return "\n".join(f"- {line}" for line in lines)
