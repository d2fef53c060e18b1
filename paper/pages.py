"""README.md and docs/results.md, whole, from their templates and the committed result files.

    python -m paper.pages            writes both

The templates are paper/templates/*.md (Jinja2). No number in them is typed by hand: `fact("subset", "mamba_light",
"test.accuracy")` reads a run, `scan("…")` the scan's benchmark, `table("results/…md")` a table with its caption.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kwslib.io import KwsError, cli, replacing
from kwslib.models.registry import MODELS
from paper import facts, results, scan_report

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "templates"
PAGES = {"README.md": "README.md", "results.md": "docs/results.md"}  # template -> page


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

    def corpus(profile, key):
        """Of the corpus: "clips.training", "attribution"; and the number of test clips, "n"."""
        run = held(profile)[1][0]
        found = facts.flat(run["corpus"]) | {"n": run["test"]["n"]}
        return f"{found[key]:,}" if isinstance(found[key], int) else found[key]

    def scan(key):
        """A number of the scan's benchmark: see scan_report.headline_numbers."""
        value = scan_report.headline_numbers(json.loads((root / "results/scan/scan.json").read_text()))[key]
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    def table(path, otherwise=None):
        """A Markdown file that a stage wrote: a caption and a table, or a list of findings. otherwise: what stands
        there where it is not written yet.
        """
        if otherwise and not (root / path).is_file():
            return otherwise
        if not (root / path).is_file():
            raise KwsError(f"a page asks for {path}, which does not exist; make figures writes it")
        return (root / path).read_text(encoding="utf-8").strip()

    def size(model):
        """The size of a shipped model's file."""
        return f"{(root / 'kwslib/pretrained' / f'{model}.safetensors').stat().st_size / 1e6:.1f} MB"

    return {"fact": fact, "measured": measured, "corpus": corpus, "scan": scan, "table": table, "size": size,
            "label": lambda model: MODELS[model].label}  # fmt: skip


def main(argv=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(argv)
    for page, text in render().items():
        with replacing(ROOT / page) as scratch:
            scratch.write_text(text, encoding="utf-8")
        print(page)
    return 0


if __name__ == "__main__":
    cli(main)
