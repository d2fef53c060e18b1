"""How much of what the repository holds did a rerun reproduce? Counts first, then each difference.

    python -m paper.reproduction quick

compares every number that the profile's stages have written, as the last commit holds it, with the file as it is now,
except what depends on the machine (timing/, benchmark.json, notebooks, proofs and the tables that are made from these).
It prints the report and writes its counts to results/<profile>/reproduction.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import subprocess
from collections import Counter
from pathlib import Path

from ruamel.yaml import YAML

from kwslib.io import KwsError, cli, write_json
from kwslib.machine import machine
from paper.facts import flat

PER_MACHINE = (
    "timing/",
    "benchmark.json",
    "notebooks/",
    "proofs/",
    "tables/",
    "wake_words/",
    "comparisons.json",
    "reproduction.json",
    "trials.md",
    "beyond/",
)
CLOCKS = ("training.resumed", "cpu_s_per_s", "speaking_s", "training_s")  # how often it was killed, how long it took
# Another processor rounds differently, and training amplifies it: these differences are expected there, and no more.
SHARES, POINTS, RELATIVE = ("accuracy", "interval", "f1", "precision", "recall"), 0.05, 0.25
TOLERANCE = (
    f"{100 * POINTS:.0f} points for accuracies, F1, precision and recall, {100 * RELATIVE:.0f} % for other numbers"
)


def numbers(name, text):
    """{path: value} of a result file's numbers."""
    if name.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(text)))
        found = {f"{i}.{key}": float(value) for i, row in enumerate(rows, 1) for key, value in row.items() if value}
    else:
        found = flat(json.loads(text), lists=True)
    kept = {key: v for key, v in found.items() if not key.endswith(CLOCKS)}
    return {key: v for key, v in kept.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def judge(path, old, new):
    """ "identical", "within tolerance" or "different", of one number."""
    if old == new:
        return "identical"
    if new is None:
        return "different"
    if any(word in path for word in SHARES) and max(abs(old), abs(new)) <= 1:
        return "within tolerance" if abs(old - new) <= POINTS else "different"
    return "within tolerance" if math.isclose(old, new, rel_tol=RELATIVE) else "different"


def committed(profile, root="."):
    """{name: text} of the result files of a profile in the last commit, without those that depend on the machine: what
    its lock names as outputs, or all of its folder where nothing is locked."""
    listed = git(root, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    lock, outs = "dvc.lock" if profile == "quick" else f"profiles/{profile}/dvc.lock", [f"results/{profile}"]
    if lock in listed:
        stages = YAML(typ="safe").load(git(root, "show", f"HEAD:{lock}"))["stages"]
        outs = [out["path"] for stage in stages.values() for out in stage.get("outs", ())]
    inside = tuple(f"{out}/" for out in outs)
    kept = [n for n in listed if n in outs or n.startswith(inside)]
    kept = [n for n in kept if n.startswith("results/") and n.endswith((".json", ".csv"))]
    kept = [n for n in kept if not any(f"/{part}" in n for part in PER_MACHINE)]
    return {name: git(root, "show", f"HEAD:{name}") for name in kept}


def git(root, *arguments):
    run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if run.returncode:
        raise KwsError(f"git cannot tell what the repository holds ({run.stderr.strip()}); run this in a clone")
    return run.stdout


def compare(profile, root="."):
    """The report of a profile: counts, number of files, and what moved as [(file, path, committed, now, verdict)];
    None where the repository holds no results of it."""
    old = committed(profile, root)
    if not old:
        return None
    counts, moved = Counter({"identical": 0, "within tolerance": 0, "different": 0}), []
    for name, text in old.items():
        now = Path(root) / name
        new = numbers(name, now.read_text()) if now.is_file() else {}
        for path, value in numbers(name, text).items():
            verdict = judge(path, value, new.get(path))
            counts[verdict] += 1
            if verdict != "identical":
                moved.append((name, path, value, new.get(path), verdict))
    found = {"profile": profile, "commit": git(root, "rev-parse", "HEAD").strip(), "files": len(old)}
    found |= {"counts": dict(counts), "tolerance": TOLERANCE, "made_on": processors(profile, root)}
    return found | {"machine": machine(), "moved": moved}


def processors(profile, root="."):
    """What the committed runs of a profile were trained on."""
    files = git(root, "ls-tree", "--name-only", "HEAD", f"results/{profile}/timing/").splitlines()
    timings = [json.loads(git(root, "show", f"HEAD:{name}")) for name in files if name.endswith(".json")]
    return sorted({processor(timing["machine"]) for timing in timings if "machine" in timing})


def processor(machine):
    """The GPU of a machine, or else its CPU."""
    return machine["gpu"] or machine["cpu"]


def report(found, most=20):
    """The report as text, counts first, the largest differences after them."""
    total, counts = sum(found["counts"].values()), found["counts"]
    lines = [f"Reproduction of profile {found['profile']}: {total:,} numbers in {found['files']} files."]
    lines += [f"  {count:7,} {verdict}" for verdict, count in counts.items()]
    lines.append(f"Tolerance: {found['tolerance']}.")
    if set(found["made_on"]) - {here := processor(found["machine"])}:
        lines.append(
            f"The committed runs were made on {' and '.join(found['made_on'])}; this is {here}. Another processor "
            "rounds differently, and training amplifies it: single epochs and words may move by more."
        )
    order = {"different": 0, "within tolerance": 1}
    for name, path, old, new, verdict in sorted(found["moved"], key=lambda m: order[m[4]])[:most]:
        by = "absent now" if new is None else f"now {new:.6g}, by {new - old:+.3g}"
        lines.append(f"  {verdict}: {name} {path}: {old:.6g}, {by}")
    if len(found["moved"]) > most:
        lines.append(f"  … and {len(found['moved']) - most:,} more")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profile", help="name of a profile, such as quick")
    profile = parser.parse_args().profile
    found = compare(profile)
    if not found:
        print(f"The repository holds no results of profile {profile} yet: there is nothing to compare with.")
        return 0
    print(report(found))
    write_json(f"results/{profile}/reproduction.json", {k: v for k, v in found.items() if k != "moved"})
    return 0


if __name__ == "__main__":
    cli(main)
