"""Ray as the engine: pack with the cores of many machines, and train a table's runs on them. Needs kwslib[cluster].

A node needs this repository's Python packages and, for trainings, the packed corpus under the same path (a shared
folder). Nothing else is shared: what a run writes, its resume file after each epoch too, is carried to the machine that
started it, and a run whose node died continues on another from there."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from kwslib.data import corpus as packing
from kwslib.io import KwsError, replacing
from kwslib.training.resume import RESUME

TRIES = 100  # of a task whose node dies; nodes that leave when they are needed elsewhere count
PAUSE = 1  # seconds between two looks at what a run has written


def connect(address=None):
    """Join the cluster at `address` ("auto": the one that runs here), or start one on this machine. Raises KwsError."""
    try:
        import ray
    except ImportError:
        raise KwsError("engine ray needs Ray; install it with: pip install kwslib[cluster]") from None
    if not ray.is_initialized():
        found = {"env_vars": {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}}
        try:
            ray.init(address, runtime_env=found, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as e:
            raise KwsError(f"no Ray cluster answers at {address} ({e}); start one with: ray start --head") from None
    return ray


class Pool:
    """`map` and `shutdown` of an executor, for `kwslib.data.corpus.pack`: pieces of clips decoded anywhere."""

    def __init__(self, source, workers, address=None):
        self.ray = connect(address)
        self.source = self.ray.put(source)
        self.decode = self.ray.remote(num_cpus=1, max_retries=TRIES)(_decode)

    def map(self, function, clips, chunksize):
        clips = iter(clips)
        pieces = iter(lambda: [*islice(clips, chunksize)], [])
        for found in [self.decode.remote(self.source, piece) for piece in pieces]:
            yield from self.ray.get(found)

    def shutdown(self, cancel_futures=True):
        """Nothing: the cluster goes on."""


def _decode(source, clips):
    packing._source = source
    return [packing._decode(clip) for clip in clips]


class Home:
    """Where a run's files are kept, on the machine that started it: an actor. Paths are relative to `out`."""

    def __init__(self, out):
        self.out = Path(out)

    def put(self, files, finished=None):
        """Write {path: bytes}. finished: the folder of a run that has ended; its old resume file is removed."""
        if finished and (resume := f"{finished}/{RESUME}") not in files:
            (self.out / resume).unlink(missing_ok=True)
        for name, data in files.items():
            with replacing(self.out / name) as scratch:
                scratch.write_bytes(data)

    def get(self, folder):
        return read_all(self.out, folder)


def read_all(out, folder="."):
    """{path relative to out: bytes} of the files of a folder in it, but for locks and files that are being written."""
    found = {}
    for path in sorted(Path(out, folder).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            found[path.relative_to(out).as_posix()] = path.read_bytes()
    return found


@contextmanager
def carried(out, folder, home, ray):
    """While the block runs, each time that a new resume file is there, carry `folder` of `out` home."""
    over, seen = threading.Event(), [None]

    def look():
        resume = Path(out, folder, RESUME)
        while not over.wait(PAUSE):
            try:
                now = resume.stat().st_mtime_ns
                if now != seen[0]:
                    ray.get(home.put.remote(read_all(out, folder)))
                    seen[0] = now
            except OSError:  # not there yet, or just now replaced
                continue

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _run(home, config, name, profile):
    """On some node: train and test, from what is at home, and carry all home. -> None, or the text of the error."""
    import ray

    from paper.grid import run_one

    folder = f"checkpoints/{name}"
    with tempfile.TemporaryDirectory() as out:
        for path, data in ray.get(home.get.remote(folder)).items():
            Path(out, path).parent.mkdir(parents=True, exist_ok=True)
            Path(out, path).write_bytes(data)
        with carried(out, folder, home, ray):
            error = run_one(config.model_copy(update={"out": Path(out, folder)}), name, out, profile)
        ray.get(home.put.remote(read_all(out), folder))
    return error


def run_all(jobs, out, profile, address=None, cpus=1, gpus=0):
    """{name: config} -> {name: None or the text of its error}, in whatever order; cpus, gpus: of each run."""
    ray = connect(address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    home = ray.remote(num_cpus=0, scheduling_strategy=here)(Home).remote(os.path.abspath(out))
    run = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=TRIES)(_run)
    waiting, found = {run.remote(home, config, name, profile): name for name, config in jobs.items()}, {}
    began = time.perf_counter()
    while waiting:
        for done in ray.wait([*waiting])[0]:
            name = waiting.pop(done)
            try:
                found[name] = ray.get(done)
            except ray.exceptions.RayError as e:  # ours are texts
                found[name] = f"the run ended with {str(e).splitlines()[-1]}; run the grid again to continue"
            print(f"{name}: {found[name] or 'done'}, {time.perf_counter() - began:.0f} s", flush=True)
    return found
