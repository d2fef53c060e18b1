"""The README's tables and numbers, read again from result files.

    python -m paper.pages README.md results/quick results/subset results/scan

replaces what lies between `<!-- table: quick/variants -->` and `<!-- end -->`, and between
`<!-- n: quick/retnet.parameters -->` and `<!-- /n -->`. No number there is typed by hand.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from kwslib.io import KwsError, cli, read_json, replacing
from paper import robustness_report, scan_report, tables
from paper.facts import collect_facts, flat, shown
from paper.results import corpus_name, load_benchmark, load_claims, load_runs, whole_corpus
from paper.writing import markdown


def readme_numbers(runs, benchmark, claims):
    """KEY -> text of one number: corpus.testing, and retnet.macs for each key of `collect_facts`."""
    clips = flat(runs[0]["corpus"]["clips"], "corpus") if runs else {}
    facts = collect_facts(runs, benchmark, claims) | {"": clips | {"corpus.name": corpus_name(runs)}}
    return {
        f"{m}.{key}".strip("."): shown(own, key)
        for m, own in facts.items()
        for key in own
        if key == "interval" or not isinstance(own[key], list)
    }


def fill_readme(text, built, numbers=None):
    """`text` with its marked tables (name -> (DataFrame, caption)) and numbers (key -> text) filled in.

    Raises KwsError where a marker is unknown or not closed.
    """
    found = {f"table: {k}": f"\n{caption}\n\n{markdown(df)}\n" for k, (df, caption) in built.items()}
    found |= {f"n: {key}": value for key, value in (numbers or {}).items()}

    def filled(match):
        if match[2] not in found:
            raise KwsError(f"README marker “{match[2]}” is unknown; choose from: {'; '.join(found)}")
        return match[1] + found[match[2]] + match[3]

    for kind, end in (("table", "end"), ("n", "/n")):
        if text.count(f"<!-- {kind}: ") != text.count(f"<!-- {end} -->"):
            raise KwsError(f"a README marker “{kind}: …” is not closed; close each with <!-- {end} -->")
        text = re.sub(rf"(<!-- ({kind}: .+?) -->).*?(<!-- {end} -->)", filled, text, flags=re.DOTALL)
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("readme", type=Path)
    parser.add_argument("results", nargs="+", type=Path)
    args, claims, built, numbers = parser.parse_args(argv), load_claims(), {}, {}
    for folder in args.results:
        if (timed := folder / "scan.json").is_file():
            scan = read_json(timed, "benchmark")
            found = {"scan": scan_report.scan_table(scan), "models": scan_report.models_table(scan)}
            texts = {
                key: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
                for key, value in scan_report.headline_numbers(scan).items()
            }
        else:
            runs, benchmark = load_runs(folder), load_benchmark(folder)
            found, texts = (
                tables.paper_tables(runs, benchmark, claims, whole_corpus(folder))
                | tables.timing_tables(runs, benchmark, claims),
                readme_numbers(runs, benchmark, claims),
            )
            if (further := robustness_report.load_beyond(folder))["robustness"]:
                found |= robustness_report.robustness_tables(further)
                texts["findings"] = f"\n{robustness_report.findings(further)}\n"
        built |= {f"{folder.name}/{name}": table for name, table in found.items()}
        numbers |= {f"{folder.name}/{key}": text for key, text in texts.items()}
    text = fill_readme(args.readme.read_text(encoding="utf-8"), built, numbers)
    with replacing(args.readme) as scratch:
        scratch.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli(main)
