"""What `make torture` does to whole runs: kills, full and read-only disks, two at once, faulty servers.

Each function yields (what was tried, None or what is wrong with how it ended)."""

import contextlib
import http.server
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

import kwslib.io as kws_io
from kwslib.data import fetch as fetching
from kwslib.data.corpus import load_corpus, pack
from kwslib.io import KwsError, file_hash, write_json
from kwslib.models.registry import MODELS
from kwslib.training.config import load_config
from kwslib.training.loop import train
from paper.torture.inputs import chirp, seeded, small_corpus, soundfile

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"d_model": 16, "n_layers": 1, "repeats": 1, "channels": 8, "width": 8}
# Where a training is killed: after how many files, of five in its first epoch and four in its second, which the last
# process begins with; -1 is half-way through the weights.
POINTS = {"without a checkpoint": 2, "mid-write": -1, "without a resume file": 4, "with one": 5, "at the end": 4}


def dies_at(count):
    """From now on, be killed after `count` files were written, or half-way through the first of tensors."""
    replace, write, done = os.replace, Path.write_bytes, itertools.count(1)

    def replaced(source, target):
        replace(source, target)
        if next(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def written(path, data):
        if count < 0 and next(done) == 1:
            write(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    kws_io.os.replace, Path.write_bytes = (replaced if count > 0 else replace), written


def small_recipe(name, corpus, out):
    options = {k: 0.1 if isinstance(v, float) else SMALL[k] for k, v in MODELS[name].options.items() if k in SMALL}
    place = dict(corpus=corpus, out=out, precision="fp32", device="cpu", threads=1)
    return load_config(name, model_options=options, batch_size=8, epochs=2, **place)


def trained(name, corpus, out, dies=None):
    """A whole training in this process, or one that is killed."""
    sys.stdout = sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)
    if dies:
        dies_at(dies)
    train(small_recipe(name, corpus, out), progress=False)


def packed(source, out, dies=None):
    """A whole packing, or one that is killed after a number of clips."""
    sys.stderr = open(os.devnull, "w")
    if dies:
        dumps, done = kws_io.json.dumps, itertools.count(1)

        def counted(value, **options):
            if "crc" in value and next(done) == dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return dumps(value, **options)

        kws_io.json.dumps = counted
    pack(source, out, workers=1)


def child(target, *arguments):
    """Run target(*arguments) in a process that has imported PyTorch already; its exit status, None if it hangs."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["paper.torture.runs", "torch._dynamo"])
    process = server.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def same_weights(a, b):
    a, b = (load_file(x / "model.safetensors") for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def killed_trainings(folder, scale=1.0):
    """Every registered model, killed at every one of POINTS in turn, each time continued, and compared at the end."""
    corpus = small_corpus(folder / "corpus")
    for name in list(MODELS)[: max(1, round(len(MODELS) * scale))]:
        whole, out = folder / f"{name}-whole", folder / name
        child(trained, name, corpus, whole)
        for where, dies in POINTS.items():
            status = child(trained, name, corpus, out, dies)
            yield f"{name}, {where}", None if status == -signal.SIGKILL else f"ended with {status}, not by the kill"
        status = child(trained, name, corpus, out)
        strays = sorted(p.name for p in out.iterdir()) if out.exists() else []
        right = ["history.csv", "model.json", "model.safetensors", "timing.json"]
        if status or strays != right or not same_weights(whole, out):
            yield f"{name}, continued", f"status {status}, files {strays}, or other weights than without kills"
        for path in (whole, out):
            shutil.rmtree(path, ignore_errors=True)


def sounds(folder, clips):
    """A source of short recordings at two rates."""
    for i in range(clips):
        path = folder / ("up", "down")[i % 2] / f"s{i // 4}_nohash_{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, chirp(seeded(i), seconds=0.3), 16_000)
    return folder


def killed_packings(folder, kills):
    """One packing killed again and again; at the end, the bytes of one that was not."""
    rng, source = seeded(7), sounds(folder / "source", 3 * kills)
    for i in range(kills):
        status = child(packed, source, folder / "out", 1 + int(rng.integers(4)))
        yield f"kill {i}", None if status == -signal.SIGKILL else f"ended with {status}, not by the kill"
        partial = folder / "out.partial"
        if i % 5 == 4:  # the power went, too: the last rows are zeros, or gone
            data = (partial / "waves.npy").read_bytes()
            lost = int(rng.integers(1, 40_000))
            (partial / "waves.npy").write_bytes(data[:-lost] + bytes(lost) * int(rng.integers(2)))
    status = child(packed, source, folder / "out") or child(packed, source, folder / "whole")
    if status or load_corpus(folder / "out").checksum != load_corpus(folder / "whole").checksum:
        yield "the end", f"status {status}, or other bytes than without kills"
    if strays := [p.name for p in folder.iterdir() if p.name not in ("source", "out", "whole")]:
        yield "the end", f"left {strays}"


def killed_writes(folder, kills):
    """Small files, each write killed half-way: the old content stays whole, and nothing lies beside it."""
    path = folder / "value.json"
    write_json(path, {"value": -1})
    before = path.read_bytes()
    for i in range(kills):
        if (pid := os.fork()) == 0:
            with kws_io.replacing(path) as scratch:
                scratch.write_text("{" * (1 + i))
                os.kill(os.getpid(), signal.SIGKILL)
        killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
        yield f"kill {i}", None if killed and path.read_bytes() == before else "the file changed"
    write_json(path, {"value": 1})
    if strays := [p.name for p in folder.iterdir() if p != path]:
        yield "the end", f"left {strays}"


def command(*arguments, inside=()):
    """`kws …` as a program -> (exit status, its lines on stderr); None for a status if it hangs."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*inside, sys.executable, "-c", "from kwslib.cli import main; main()", *map(str, arguments)]
    try:
        done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return None, []
    return done.returncode, done.stderr.splitlines()


def complaint(status, lines):
    """What is wrong with how a program ended that could not succeed; None if it said so in one sentence."""
    errors = [line for line in lines if line.startswith("error: ")]
    fine = status == 2 and len(errors) == 1 and not any("Traceback" in line for line in lines)
    return None if fine else f"status {status}: {' / '.join(lines[-3:])[:300]}"


def recipe_options(corpus, out):
    small = dict(model="keyword_cnn", n_mels=16, hop_length=1600, batch_size=8, epochs=2, device="cpu", threads=1)
    return [text for k, v in {**small, "corpus": corpus, "out": out}.items() for text in (f"--{k}", v)]


def bad_disks(folder, sizes):
    """Packing and training on disks (in memory) that are too small or read-only: one sentence. Then the disk is made
    larger, and the same command ends with the same bytes as ever. Nothing where this machine lets us mount no disk."""
    source, corpus, disk = sounds(folder / "source", 40), small_corpus(folder / "corpus"), folder / "disk"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o "$0" none "$DISK" && { "$@"; echo "first $?" >&2; '
        'mount -t tmpfs -o remount,rw,size=64m none "$DISK"; "$@"; } && cp -r "$DISK/out" "$DISK.kept"'
    )
    inside = ["env", f"DISK={disk}", "unshare", "-rm", "sh", "-c", script]
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", disk]).returncode
    ):
        return
    tasks = {
        "pack": ["pack", source, disk / "out", "--workers", "1"],
        "train": ["train", *recipe_options(corpus, disk / "out")],
    }
    for name, task in tasks.items():
        whole = folder / name
        command(*[whole if word == disk / "out" else word for word in task])
        for options in (*(f"size={size}k" for size in sizes), "ro"):
            status, lines = command(*task, inside=[*inside, options])
            first = next((i for i, line in enumerate(lines) if line.startswith("first ")), len(lines))
            wrong = None if lines[first:][:1] == ["first 0"] else complaint(int(lines[first].split()[1]), lines[:first])
            yield f"{name} on a disk of {options}", wrong
            kept = folder / "disk.kept"
            same = same_weights if name == "train" else lambda a, b: load_corpus(a).checksum == load_corpus(b).checksum
            wrong = None if status == 0 and same(kept, whole) else f"status {status}, {lines[-1:]}, or other bytes"
            yield f"{name} on the same, made larger", wrong
            shutil.rmtree(kept, ignore_errors=True)


def two_at_once(folder, rounds):
    """Two packings or trainings of one folder at the same moment: one at least succeeds, the other may be refused."""
    source, corpus = sounds(folder / "source", 40), small_corpus(folder / "corpus")
    for i in range(rounds):
        tasks = {
            "pack": ["pack", source, folder / f"packed{i}", "--workers", "1"],
            "train": ["train", *recipe_options(corpus, folder / f"run{i}")],
        }
        for name, task in tasks.items():
            with ThreadPoolExecutor(2) as pool:
                ends = [end.result() for end in [pool.submit(command, *task) for _ in range(2)]]
            wrong = [complaint(*end) for end in ends if end[0] != 0]
            wrong = [w for w in wrong if w] or (["both were refused"] if all(end[0] for end in ends) else [])
            yield f"two of {name}", wrong[0] if wrong else None
        if i and not same_weights(folder / "run0", folder / f"run{i}"):
            yield "two trainings", "other weights than the first pair's"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a file in a way that `how` names, at most `times` times; then properly, with ranges."""

    body, how, times, log_message = b"", "", 0, lambda *arguments: None

    def do_GET(self):
        cls, body = type(self), self.body
        cls.times -= 1
        how = self.how if cls.times >= 0 else "right"
        with contextlib.suppress(OSError):
            if how == "garbage":
                return self.wfile.write(b"\0\1\2 no http at all\r\n\r\n")
            if how == "silence":
                return None
            if how.isdigit():
                return self.send_error(int(how))
            if how == "circle":
                self.send_response(302)
                self.send_header("Location", self.path)
                return self.end_headers()
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            start = 0 if how in ("no ranges", "wrong start") else min(start, len(body))
            self.send_response(206 if (start or how == "wrong start") else 200)
            lengths = {"long": 2 * len(body), "short": len(body) // 2, "negative": -5, "odd": "many"}
            if how != "no length":
                self.send_header("Content-Length", str(lengths.get(how, len(body) - start)))
            if how == "headers":
                [self.send_header(f"X-{i}", "x" * 600) for i in range(300)]
            self.end_headers()
            piece = {"half": body[start : (start + len(body)) // 2], "other": body[::-1], "empty": b""}
            self.wfile.write(piece.get(how, body[start:]))
        return None


FAULTS = "half other empty garbage silence 404 416 500 503 circle long short negative odd headers".split()
FAULTS += ["no ranges", "wrong start", "no length"]


def faulty_servers(folder):
    """fetch from servers that fail once, twice or always: the file, verified, or one sentence; never another file."""
    Server.body = seeded(3).bytes(300_000)
    right, pause = folder / "right", time.sleep
    right.write_bytes(Server.body)
    sums = {kind: file_hash(right, kind=kind) for kind in ("md5", "sha256")}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        fetching.time.sleep = lambda seconds: None
        try:
            for i, (how, times) in enumerate(itertools.product(FAULTS, (1, 2, 99))):
                Server.how, Server.times, wrong, path = how, times, None, folder / f"file{i}"
                try:
                    fetching.fetch(f"http://127.0.0.1:{httpd.server_port}/file", path, sums)
                    wrong = None if path.read_bytes() == Server.body else "another file, taken for verified"
                except KwsError as e:
                    wrong = (
                        "the sentence has lines" if "\n" in str(e) else "a file of that name" if path.exists() else None
                    )
                except Exception as e:
                    wrong = repr(e)
                yield f"{how}, {times} times", wrong
        finally:
            fetching.time.sleep = pause
            httpd.shutdown()
