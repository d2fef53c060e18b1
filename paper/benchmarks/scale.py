"""A rehearsal of large corpora: what it costs to open one and to start a training on it, and what whole works cost.

    python -m paper.benchmarks.scale --out results/scale.json               (minutes, and 4 GB in --folder, or $TMPDIR)
    python -m paper.benchmarks.scale --out results/scale.json --report      the estimates, table and figure again

Corpora of 1,000 to millions of clips: the one of Speech Commands' size holds noise, the larger ones are sparse files
with noise in the first clips of each shard. Of each, a process opens it, and starts profile paper's Mamba-Mel Small
until its first step is done; seconds count from the start of the interpreter, and memory is the most that was resident.
The estimates are work / measured rates, with the assumptions of paper/benchmarks/scale.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from kwslib.data.columns import COLUMNS, HEADER, ROW, SHARD, checksum, header, parse_index
from kwslib.data.manifest import SPLITS
from kwslib.data.tasks import V2_35
from kwslib.io import CLIP, KwsError, cli, read_json, replacing, write_csv, write_json

ROOT = Path(__file__).resolve().parents[2]
WHOLE = 105_829  # clips of Speech Commands v0.02
SIZES = (1_000, 10_000, WHOLE, 1_000_000, 4_000_000)
LOUD = 64  # clips of a sparse shard that are not silence
KEYS = {"open_s": "open, s", "open_mb": "open, MB", "start_s": "to the first step, s", "peak_mb": "peak, MB"}


def synthetic_corpus(folder, clips, sparse=False):
    """Write a packed corpus of one-second clips of noise in Speech Commands' 35 words; eight of ten train."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = rng.integers(-3000, 3000, (1000, CLIP), np.int16)
    shards = [min(SHARD, clips - first) for first in range(0, clips, SHARD)]
    for k, rows in enumerate(shards):
        with open(folder / (f"waves-{k:03}.npy" if shards[1:] else "waves.npy"), "wb") as file:
            file.write(header(rows))
            for first in range(0, min(rows, LOUD) if sparse else rows, len(noise)):
                file.write(noise[: (min(rows, LOUD) if sparse else rows) - first])
            file.truncate(HEADER + rows * ROW)
    np.save(folder / "noise.npy", noise[:600].ravel())
    words, splits = V2_35, [SPLITS[max(0, i % 10 - 7)] for i in range(10)]
    rows = (
        dict(zip(COLUMNS, (f"{w}/{i // 40:08x}_nohash_{i % 40}.wav", w, f"{i // 40:08x}", splits[i % 10], CLIP)))
        for i, w in ((i, words[i % 35]) for i in range(clips))
    )
    write_csv(folder / "index.csv", rows, COLUMNS)
    np.save(folder / "index.npy", parse_index(folder / "index.csv"))
    counts = {s: sum(len(range(i, clips, 10)) for i in range(10) if splits[i] == s) for s in SPLITS}
    card = {k: "synthetic noise" for k in ("name", "source", "licence", "attribution")}
    crc = checksum(folder / "index.csv", folder / "index.npy")
    write_json(
        folder / "card.json", {**card, "synthetic": True, "checksum": "0" * 64, "index_crc": crc, "clips": counts}
    )
    return folder


def start(corpus, out, began):
    """In a process of its own: open the corpus, train until the first step is done; print what that took."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from kwslib.data.corpus import load_corpus
    from kwslib.training import train
    from paper.benchmarks.memory import resident
    from paper.profile import Profile

    before, clock = resident("VmRSS"), time.perf_counter()
    held = load_corpus(corpus)
    found = {"open_s": time.perf_counter() - clock, "open_mb": resident("VmRSS") - before}
    del held

    def first_step(*_):
        found.update(start_s=time.time() - began, peak_mb=resident("VmHWM"))
        print(json.dumps(found), flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(first_step)
    profile = Profile(ROOT / "profiles/paper/params.yaml")
    train(profile.config("mamba_mel_small", 0, corpus=corpus, out=out, device="cpu", threads=2), progress=False)


def measure(folder, sizes):
    """[{clips, sparse, seconds and MB of KEYS}] of corpora that are made in `folder` and deleted."""
    rows = []
    for clips in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            sparse = clips > WHOLE
            corpus = synthetic_corpus(Path(place) / "corpus", clips, sparse)
            command = [
                sys.executable,
                "-m",
                "paper.benchmarks.scale",
                "--out",
                f"{place}/out",
                "--start",
                corpus,
                str(time.time()),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise KwsError(f"the training on {clips} clips did not start: {done.stderr[-500:]}; see to that")
            rows.append({"clips": clips, "sparse": sparse, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def packing_rate(folder, clips=3_000):
    """Clips/s of packing a zip of WAV files with one worker and with two, without the start of the processes."""
    from kwslib.data.corpus import pack

    wave, rates = np.random.default_rng(0).integers(-3000, 3000, 2 * CLIP, np.int16), {}
    for workers in (1, 2):
        seconds = []
        for count in (clips // 10, clips):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                with zipfile.ZipFile(f"{place}/z.zip", "w") as z:
                    for i in range(count):
                        z.writestr(f"w/{i:05}_nohash_0.wav", wav(wave[i : i + CLIP]))
                began = time.perf_counter()
                pack(f"{place}/z.zip", f"{place}/o", workers=workers)
                seconds.append(time.perf_counter() - began)
        rates[str(workers)] = (clips - clips // 10) / (seconds[1] - seconds[0])
    return rates


def wav(wave):
    """int16 (n,) at 16 kHz -> the bytes of a WAV file."""
    import io

    import soundfile

    soundfile.write(out := io.BytesIO(), wave, 16_000, format="WAV")
    return out.getvalue()


def exponents(rows):
    """{key: slope of log(key) over log(clips)}, from Speech Commands' size on."""
    rows = [r for r in rows if r["clips"] >= WHOLE] if sum(r["clips"] >= WHOLE for r in rows) > 1 else rows
    x = np.log([r["clips"] for r in rows])
    return {k: float(np.polyfit(x, np.log([max(r[k], 1e-3) for r in rows]), 1)[0]) for k in KEYS}


def estimates(assumed, packing, peak, root=ROOT):
    """[{work, machine, model, hours, dollars, memory_gb, pack_hours, disk_gb}]: work / rates of committed timing files.

    packing: clips/s of one worker; peak: MB of one process."""
    found = []
    for work, w in assumed["work"].items():
        for machine, m in assumed["machines"].items():
            for model in assumed["models"]:
                rate = read_json(Path(root) / m["timing"] / f"{model}-0.json", "timing")["clips_per_second"]
                hours = w["training"] * w["passes"] / (rate * m["processes"] * m["efficiency"]) / 3600
                found.append(
                    {
                        "work": work,
                        "machine": machine,
                        "model": model,
                        "hours": hours,
                        "dollars": hours * m["dollars_per_hour"],
                        "memory_gb": m["processes"] * peak / 1e3,
                        "pack_hours": w["clips"] / packing / 3600,
                        "disk_gb": w["clips"] * ROW / 1e9,
                    }
                )
    return found


def report(path):
    """The tables (Markdown) and the figure of a scale.json, beside it. -> the text."""
    import pandas
    from matplotlib.figure import Figure

    from paper.figure_style import COLUMN, RC, save_figure
    from paper.writing import markdown

    found = read_json(path)
    rows, slopes = found["starts"], found["exponents"]
    cells = [{"clips": f"{r['clips']:,}", **{v: f"{r[k]:.3g}" for k, v in KEYS.items()}} for r in rows]
    cells.append({"clips": "exponent", **{v: f"{slopes[k]:.2f}" for k, v in KEYS.items()}})
    costs = [
        {
            "work": c["work"],
            "machine": c["machine"],
            "model": c["model"],
            "hours": f"{c['hours']:,.1f}",
            "dollars": f"{c['dollars']:,.0f}",
            "memory, GB": f"{c['memory_gb']:.1f}",
            "packing, h": f"{c['pack_hours']:.1f}" if c["disk_gb"] else "none",
            "disk, GB": f"{c['disk_gb']:,.1f}" if c["disk_gb"] else "none",
        }
        for c in found["estimates"]
    ]
    machine = f"{found['machine']['cores']} cores of {found['machine']['cpu']}"
    text = (
        "Opening a corpus of one-second clips, and starting profile paper's Mamba-Mel Small on it, "
        f"on {machine}; peak: resident memory of the process. The exponents are those from the size of Speech "
        f"Commands on. Corpora above {WHOLE:,} clips are sparse files.\n\n{markdown(pandas.DataFrame(cells))}\n\n"
        "What whole works would cost: measured training rates, and the assumptions of paper/benchmarks/scale.yaml. "
        "Hours: all processes of a machine at work; a training on one of them alone takes as many times as long. "
        "Memory: the peak of the largest corpus in the first table, for each process. "
        f"Packing at {found['packing']['1']:,.0f} clips/s, one worker.\n\n"
        f"{markdown(pandas.DataFrame(costs))}\n"
    )
    with replacing(path.with_suffix(".md")) as scratch:
        scratch.write_text(text)
    import matplotlib

    with matplotlib.rc_context(RC):
        fig = Figure(figsize=(2 * COLUMN, 2.2))
        for ax, keys, unit in zip(fig.subplots(1, 2), (("start_s", "open_s"), ("peak_mb", "open_mb")), ("s", "MB")):
            for key, marker in zip(keys, "os"):
                ax.plot([r["clips"] for r in rows], [max(r[key], 1e-3) for r in rows], marker=marker, label=KEYS[key])
            ax.set(xscale="log", yscale="log", xlabel="clips", ylabel=unit)
            ax.legend()
        save_figure(fig, path.parent, path.stem)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; its table and figure go beside it")
    parser.add_argument("--folder", help="where the corpora are made")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="clips, with commas between")
    parser.add_argument("--report", action="store_true", help="measure nothing: estimates, table and figure again")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)  # corpus and time: the process that is measured
    a = parser.parse_args()
    if a.start:
        return start(a.start[0], a.out, float(a.start[1]))
    if a.report:
        found = read_json(a.out, "scale file")
    else:
        from kwslib.machine import machine

        rows = measure(a.folder, [int(n) for n in a.sizes.split(",")])
        found = {"machine": machine(), "starts": rows, "exponents": exponents(rows), "packing": packing_rate(a.folder)}
    from kwslib.training.config import read_yaml

    assumed = read_yaml(ROOT / "paper/benchmarks/scale.yaml", "assumptions", "they are in the repository")
    found["estimates"] = estimates(assumed, found["packing"]["1"], found["starts"][-1]["peak_mb"])
    write_json(a.out, found)
    print(report(a.out))


if __name__ == "__main__":
    cli(main)
