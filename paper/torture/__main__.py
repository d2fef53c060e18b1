"""The campaign of faults: damaged inputs, kills, bad disks, two at once, faulty servers.

    make torture                                    the whole of it, in under half an hour on two cores
    python -m paper.torture --share 0.02            a slice

It prints a table and writes it to results/torture.json and results/torture.md. A defect is an exception that is not
ours, a hang, memory beyond a bound, NaN, or other bits than an undisturbed run's. Every input is a function of its
family and its number: `python -m paper.torture --try Audio 17` shows the seventeenth."""

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from kwslib.io import KwsError, cli, read_json, replacing, write_json

PATIENCE, START = 60, 120  # seconds for one input, and for the first of a process; more is a hang
MEMORY = 800  # MB that an input may add to a process which has worked before
KINDS = {"Audio": "sound files", "Archives": "archives", "Checkpoints": "checkpoints", "Configs": "recipes"}
KINDS |= {"Arguments": "arguments of predict", "Corpora": "packed corpora"}


def attempt(family, name, number):
    """One input -> "answered" or "refused", or what is wrong. Also returns the traceback of a defect."""
    import traceback

    from paper.torture.inputs import Defect, seeded

    try:
        family(seeded(sorted(KINDS).index(name), number))
        return "answered", ""
    except KwsError as e:
        fine = str(e).strip() and "\n" not in str(e) and len(str(e)) < 5000
        return ("refused", "") if fine else (f"no sentence: {str(e)[:200]!r}", "")
    except Defect as e:
        return str(e)[:300], ""
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:200]}", traceback.format_exc()


def work(name, start, stop, folder):
    """Try inputs start to stop of a family, a line of JSON for each: the work of a process that may be killed."""
    import torch

    from paper.torture import inputs as torture_inputs

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell = os.fdopen(os.dup(1), "w")
    for stream in (1, 2):  # decoders and trainings talk
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    family, before = getattr(torture_inputs, name)(Path(folder)), None
    for number in range(start, stop):
        found = attempt(family, name, number)[0]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if before is not None and peak > before + MEMORY:
            found = f"took {peak - before:.0f} MB"
        before = peak if before is None or number < start + 20 else before
        print(json.dumps([number, found]), file=tell, flush=True)
        if found.startswith("took"):
            return  # the peak stays: a fresh process goes on


def family_of_inputs(name, count):
    """Try `count` inputs of a family in processes that are watched; yields (number, None or what is wrong)."""
    at = 0
    while at < count:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "paper.torture", "--work", name, str(at), str(count), folder]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=alone())  # a buffer hides lines
            watch = selectors.DefaultSelector()
            watch.register(process.stdout, selectors.EVENT_READ)
            patience = START
            while at < count:
                if not watch.select(patience):
                    yield at, f"hangs for more than {patience} s"
                    at += 1
                    break
                if not (line := process.stdout.readline()):
                    if process.wait() != 0:
                        yield at, f"the process ended with {process.returncode}"
                        at += 1
                    break
                number, found = json.loads(line)
                at, patience = number + 1, PATIENCE
                yield number, None if found in ("answered", "refused") else found
            process.kill()
            process.wait()
            process.stdout.close()


def alone():
    """The environment of a process that has one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def campaign(share):
    """{what is tried: an iterator over (which, None or what is wrong)}, of a share of the whole campaign."""
    from paper.torture import inputs as torture_inputs
    from paper.torture import runs as torture_runs

    def some(count, least=1):
        return max(least, round(count * share))

    def inside(tries, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            yield from tries(Path(folder), *arguments)

    tries = {KINDS[f.__name__]: family_of_inputs(f.__name__, some(n)) for f, n in torture_inputs.FAMILIES.items()}
    return {
        **tries,
        "kills of trainings": inside(torture_runs.killed_trainings, share),
        "kills of packings": inside(torture_runs.killed_packings, some(80, 3)),
        "kills of writes": inside(torture_runs.killed_writes, some(60, 5)),
        "full and read-only disks": inside(torture_runs.bad_disks, [4 << 2 * i for i in range(some(6, 1))]),
        "two at once": inside(torture_runs.two_at_once, some(5)),
        "faulty servers": inside(torture_runs.faulty_servers),
    }


def row_of(name, tries):
    """One row of the table: {"tried", "defects", "seconds"}. Says each defect as it is found."""
    started, tried, defects = time.perf_counter(), 0, []
    for which, wrong in tries:
        tried += 1
        if wrong:
            defects.append([str(which), wrong])
            print(f"{name} {which}: {wrong}", file=sys.stderr, flush=True)
    print(f"{name}: {tried} tried, {len(defects)} defects", file=sys.stderr, flush=True)
    return {"tried": tried, "defects": defects, "seconds": round(time.perf_counter() - started, 1)}


def side_by_side(names, share, jobs):
    """Yield (name, row) as rows end: each in a process of its own, since rows fork and kill; `jobs` at a time."""

    def row(name):
        with tempfile.TemporaryDirectory() as folder:
            options = ["--jobs", "1", "--share", str(share), "--only", name, "--out", folder]
            subprocess.run([sys.executable, "-m", "paper.torture", *options], stdout=subprocess.DEVNULL)
            return name, read_json(Path(folder) / "torture.json", f"row {name}:")["rows"][name]

    with ThreadPoolExecutor(jobs) as pool:  # the longest first
        rows = [pool.submit(row, name) for name in sorted(names, key=lambda name: name != "kills of trainings")]
        for future in as_completed(rows):
            yield future.result()


def table(rows, seconds=None):
    """The result as Markdown. seconds: that the whole took, where its rows ran side by side."""
    lines = ["| tried | number | clean | defects | minutes |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, row in rows.items():
        clean = row["tried"] - len(row["defects"])
        lines.append(f"| {name} | {row['tried']:,} | {clean:,} | {len(row['defects'])} | {row['seconds'] / 60:.1f} |")
    total, defects = sum(r["tried"] for r in rows.values()), sum(len(r["defects"]) for r in rows.values())
    minutes = (seconds or sum(r["seconds"] for r in rows.values())) / 60
    lines.append(f"| all | {total:,} | {total - defects:,} | {defects} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the whole campaign (default 1)")
    parser.add_argument("--only", nargs="+", metavar="WHAT", help="rows of the table, such as archives")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time (default 2)")
    parser.add_argument("--out", default="results", help="folder of torture.json and torture.md (default results)")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument(
        "--try", dest="one", nargs=2, metavar=("FAMILY", "NUMBER"), help="one input, with its traceback"
    )
    a = parser.parse_args()
    if a.work:
        return work(a.work[0], int(a.work[1]), int(a.work[2]), a.work[3])
    if a.one:
        from paper.torture import inputs as torture_inputs

        with tempfile.TemporaryDirectory() as folder:
            family = getattr(torture_inputs, a.one[0])(Path(folder))
            return print(*attempt(family, a.one[0], int(a.one[1])), sep="\n")
    path, started, seconds = Path(a.out) / "torture.json", time.perf_counter(), {}
    rows = read_json(path)["rows"] if a.only and path.exists() else {}  # rows not asked for stay as they were found
    tries = campaign(a.share)
    names = [name for name in tries if not a.only or name in a.only]
    alone = a.jobs == 1 or len(names) == 1
    found = ((n, row_of(n, tries[n])) for n in names) if alone else side_by_side(names, a.share, a.jobs)
    for name, row in found:
        rows[name] = row
        rows = {n: rows[n] for n in tries if n in rows}
        if not a.only and len(rows) == len(tries):
            seconds = {"seconds": round(time.perf_counter() - started, 1)}
        write_json(path, {"share": a.share, **seconds, "rows": rows})
        with replacing(Path(a.out) / "torture.md") as scratch:
            scratch.write_text(table(rows, **seconds))
    print(table(rows, **seconds), end="")
    return int(any(row["defects"] for row in rows.values()))


if __name__ == "__main__":
    cli(main)
