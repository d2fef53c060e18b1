"""README.md and the pages of docs that hold numbers, whole, from their templates and the committed result files.

    python -m paper.pages            writes them

The templates are paper/templates/*.md (Jinja2). No number in them is typed by hand that a file holds: `fact("subset",
"mamba_light", "test.accuracy")` reads a run, `scan("…")` the scan's benchmark, `table("results/…md")` a table with its
caption, `published("facts.testing_list")` published.yaml, `claimed("models.retnet.claimed.accuracy")` claims.yaml.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from statistics import mean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pandas import DataFrame

from kwslib.io import KwsError, cli, replacing
from kwslib.models.registry import MODELS
from paper import comparisons, deviations, facts, longer, results, trials
from paper.profile import Profile
from paper.reports import scan as scan_report
from paper.reports import wake as wake_report
from paper.spotting.counts import confused
from paper.spotting.unseen import GROUPS
from paper.writing import captioned, markdown

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "templates"
PAGES = {"README.md": "README.md", "results.md": "docs/results.md", "published.md": "docs/published.md"}
PAGES |= {"wake_words.md": "docs/wake_words.md", "listening.md": "docs/listening.md"}


def render(root=ROOT):
    """Every page's path, relative to the repository, and its text. Raises KwsError where a template asks for what is
    not held.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.globals |= readers(Path(root))
    return {page: environment.get_template(template).render() for template, page in PAGES.items()}


def readers(root):
    """The functions that templates call: each reads one thing from the repository `root`."""
    claims = results.load_claims()
    stated = {"claims": facts.flat(claims, lists=True), "published": facts.flat(deviations.load_published())}

    @cache
    def held(profile):
        folder = root / "results" / profile
        runs, benchmark = results.load_runs(folder), results.load_benchmark(folder)
        return facts.collect_facts(runs, benchmark, claims), runs

    def fact(profile, model, key):
        """One fact of a model, as tables print it."""
        known = held(profile)[0].get(model, {})
        if key not in known:
            raise KwsError(
                f"a page asks for {key!r} of {model!r} in results/{profile}, which is not there; run it first"
            )
        return facts.shown(known, key)

    def measured(profile, models):
        """Those of `models` that have been run, in the order of their accuracy, the best first."""
        known = held(profile)[0]
        return sorted((m for m in models if "seeds" in known.get(m, {})), key=lambda m: -known[m]["test.accuracy"])

    def superseded(profile):
        """The labels of the models whose runs had another recipe than the profile asks for now: these are due."""
        asked = Profile(root / "profiles" / profile / "params.yaml", root)

        def differs(run):
            now = asked.config(run["model"], run["seed"]).model_dump()
            return any(run["config"][key] != now[key] for key in run["config"].keys() & now.keys())

        due = {run["model"] for run in held(profile)[1] if differs(run)}
        return ", ".join(MODELS[model].label for model in MODELS if model in due)

    def not_run(profile):
        """The runs that a profile asks for and that have not been made: "BC-ResNet-8 (seeds 1, 2)"."""
        asked = Profile(root / "profiles" / profile / "params.yaml", root)
        wanted = {(variant, seed) for variant in asked.variants for seed in asked.seeds}
        wanted |= {(run["variant"], run["seed"]) for run in asked.again.values()}
        due = {}
        for model, seed in sorted(wanted - {(run["model"], run["seed"]) for run in held(profile)[1]}):
            due.setdefault(model, []).append(str(seed))
        return "; ".join(f"{MODELS[m].label} (seed{'s' * (len(s) > 1)} {', '.join(s)})" for m, s in due.items())

    def listening():
        """The cost of a stream, by results/stream.json."""
        rows = []
        for name, engine in json.loads((root / "results/stream.json").read_text())["engines"].items():
            parts, cost = engine.get("parts", {}), engine["cpu_s_per_s"]
            cells = [f"{parts[key]:.4f}" if key in parts else "–" for key in ("features", "model", "rest")]
            memory = f"{engine['peak_mb']:.0f} ({engine['loaded_mb']:.0f})"
            rows.append([name, f"{cost:.4f}", *cells, memory])
        columns = ["engine", "CPU s/s", "features", "model", "rest", "memory, MB (of it loaded)"]
        return markdown(DataFrame(rows, columns=columns))

    def times(profile, key, model, other):
        """How many times as much of a fact `other` has as `model`: "10"."""
        known = held(profile)[0]
        return f"{known[other][key] / known[model][key]:.2g}"

    def corpus(profile, key):
        """Of the corpus: "clips.training", "attribution"; of the runs: "n", "classes", "epochs" and "effective_n"."""
        runs = held(profile)[1]
        found = facts.flat(runs[0]["corpus"]) | {"n": runs[0]["test"]["n"], "classes": len(runs[0]["labels"])}
        found |= {
            "epochs": " or ".join(results.by_epochs(runs)),
            "effective_n": results.effective_n(results.all_tables(runs)),
        }
        return f"{found[key]:,}" if isinstance(found[key], int) else found[key]

    def worth(profile, models):
        """How many independent clips the test clips are worth to these models: "404 to 566"."""
        return results.span({held(profile)[0][model]["effective_n"] for model in models})

    def opus_rate():
        """At how many kbit/s the clips of profile subset are stored."""
        return f"{json.loads((root / 'results/opus.json').read_text())['kbit_per_second']['once']:.0f}"

    def search_gain():
        """By how many points the best trial of the search for Mamba-Light's recipe is above that without a change."""
        trials = (root / "results/search/earlier/trials").glob("*.json")
        found = {path.stem: json.loads(path.read_text())["validation"]["accuracy"] for path in trials}
        return f"{100 * (max(found.values()) - found['plain']):.2f}"

    def recall(profile, model, word):
        """How many per cent of the test clips of a class a model names rightly, the mean of its seeds."""
        own = [run["test"]["per_word"][word]["recall"] for run in held(profile)[1] if run["model"] == model]
        return f"{100 * mean(own):.0f}"

    def quiet(key):
        """Of the nearly silent speaker: see paper.levels."""
        value = facts.flat(json.loads((root / "results/subset/levels.json").read_text()))[key]
        return f"{value:.0f}" if isinstance(value, float) else facts.plain(value)

    def detector(key):
        """Of the shipped detector on the test, at its threshold for 0.5 false alarms an hour: "misses" of clean streams
        in per cent, the same in noise ("noisy"), false alarms "per_hour" on clean sound, of 1,000 "confusable" words.
        """
        measured = json.loads((root / "results/spot/commands.json").read_text())
        if key == "confusable":
            return f"{confused(measured['confusable'], '0.5')[0]:.0f}"
        if stream := {"misses": "clean, windows", "noisy": "noise, windows"}.get(key):
            return f"{100 * measured['streams'][stream]['0.5']['misses']:.0f}"
        return f"{measured['ordinary']['all']['0.5'][key]:.1f}"

    def wake_example(key):
        """Of the wake words of results/spot/example.json, missed recordings in per cent, their mean: at the "card"'s
        thresholds for one false alarm an hour, or at one alarm in the running speech ("swept"); or the "minutes" that
        it took to make them. "two_cores": the minutes in the card of `kws wake`, with ten recordings of each.
        """
        if key == "two_cores":
            return f"{json.loads((root / 'results/spot/two_cores.json').read_text())['wake']['seconds'] / 60:.0f}"
        run = json.loads((root / "results/spot/example.json").read_text())
        if key == "minutes":
            return f"{run['seconds'] / 60:.0f}"
        clean = run["clean"]
        at = clean["at_card_thresholds"]["1"].values()
        return f"{100 * (mean(w['misses'] for w in at) if key == 'card' else clean['mean_misses']['1']):.0f}"

    def wake_unseen(key):
        """Of the other words than those of the wake words' development: how many "words" and "recordings", and how
        many per cent are missed, in the mean of the words, at "one" false alarm of a word, or at "none"; "led", the
        words on which the place that training starts from was found.
        """
        run = wake_report.load_unseen(root / "results/spot/unseen.json")
        if key == "led":
            return str(len(GROUPS[1]))
        if key in ("words", "recordings"):
            return str(len(run["n"]) if key == "words" else sum(run["n"].values()))
        return f"{wake_report.misses(run, alarms={'one': 1, 'none': 0}[key])['mean']:.0f}"

    def published(path):
        """A number or text of published.yaml."""
        return facts.plain(stated["published"][path])

    def claimed(path):
        """The same of claims.yaml."""
        return facts.plain(stated["claims"][path])

    def deviation_table():
        return captioned(*deviations.deviation_table()).strip()

    def longer_table(profile, more):
        """The models of profile `more`, after its epochs and after those of `profile`; "" before any has been run."""
        runs = held(more)[1] if (root / "results" / more / "runs").is_dir() else []
        return captioned(*longer.longer_table(held(profile)[1], runs)).strip() if runs else ""

    def compared(profile):
        """Which models of a profile differ."""
        found = comparisons.comparison_tables(held(profile)[1])
        return captioned(*found["comparisons"]).strip() if "comparisons" in found else ""

    @cache
    def comparisons_of(profile):
        return {tuple(entry["models"]): entry for entry in comparisons.compare_runs(held(profile)[1])["comparisons"]}

    def comparison(profile, model, other):
        """Whether two models of a profile differ, in a sentence."""
        found = comparisons_of(profile)
        if (model, other) not in found:
            raise KwsError(f"a page compares {model} with {other} in results/{profile}, which are not a pair there")
        return comparisons.comparison_sentence(found[model, other])

    def tried():
        """What was tried to make Mamba-Light better."""
        files = sorted((root / "results/search/trials").glob("*.json"))
        return captioned(*trials.trials_table([json.loads(path.read_text()) for path in files])).strip()

    def scan(key):
        """A number of the scan's benchmark: see scan_report.headline_numbers."""
        value = scan_report.headline_numbers(json.loads((root / "results/scan/scan.json").read_text()))[key]
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    def table(path, otherwise=None, all_rows=True):
        """A Markdown file that a stage wrote: a caption and a table, or a list of findings. otherwise: what stands
        there where it is not written yet. all_rows: with those of models that have not been run.
        """
        if otherwise and not (root / path).is_file():
            return otherwise
        if not (root / path).is_file():
            raise KwsError(f"a page asks for {path}, which does not exist; make figures writes it")
        lines = (root / path).read_text(encoding="utf-8").strip().split("\n")
        return "\n".join(line for line in lines if all_rows or "| not run |" not in line)

    def size(model):
        """The size of a shipped model's file."""
        return f"{(root / 'kwslib/pretrained' / f'{model}.safetensors').stat().st_size / 1e6:.1f} MB"

    given = (
        fact, measured, times, corpus, superseded, worth, opus_rate, search_gain, recall, quiet, scan, detector,
        wake_example, wake_unseen, published, claimed, table, compared, size, not_run, listening, comparison, tried,
    )  # fmt: skip
    named = {"deviations": deviation_table, "longer": longer_table, "label": lambda model: MODELS[model].label}
    return {function.__name__: function for function in given} | named


def main(argv=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(argv)
    for page, text in render().items():
        with replacing(ROOT / page) as scratch:
            scratch.write_text(text, encoding="utf-8")
        print(page)
    return 0


if __name__ == "__main__":
    cli(main)
