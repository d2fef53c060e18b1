"""Many machines: Ray's nodes, and the processes of one training, of which one dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from small_runs import same, write_tones
from test_corpus import as_tar, sound
from test_scale import BAD

from kwslib.data import corpus as corpus_module
from kwslib.data.corpus import pack
from kwslib.io import KwsError

MEMORY = {"object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def head():
    """A Ray cluster on this machine, of a head, which computes nothing."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install kwslib[cluster]")
    from ray.cluster_utils import Cluster

    if " " in sys.executable:
        pytest.skip("Ray starts no worker of an interpreter whose path has a space")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def cluster(head):
    """The same with two nodes of one CPU, which are gone afterwards."""
    head.workers = [head.add_node(num_cpus=1, **MEMORY) for _ in range(2)]
    yield head
    for node in head.workers:
        if node in head.worker_nodes:
            head.remove_node(node)


def until(seen, seconds=240):
    """Wait until seen() is true."""
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def killing(cluster, seen):
    """A thread that kills a node, as a loss of power does, when seen() is true."""

    def kill():
        until(seen)
        cluster.remove_node(cluster.workers[0], allow_graceful=False)
        killed.append(True)

    killed = []
    thread = threading.Thread(target=kill)
    thread.start()
    return thread, killed


def test_a_grid_on_two_nodes_of_which_one_dies(cluster, tmp_path):
    from paper import grid

    corpus = write_tones(tmp_path / "c", noise_seconds=40)
    profile = {"profile": "made", "root": ".", "params": "p", "corpus": {"source": str(corpus), "options": {}}}
    profile |= {"task": "all", "variants": ["keyword_cnn"], "seeds": [0, 1, 2], "benchmark": {}}
    profile |= {"common": {"epochs": 40, "batch_size": 16, "precision": "fp32", "threads": 1, "device": "cpu"}}
    profile["common"] |= {"n_mels": 16, "hop_length": 1600}
    params = tmp_path / "params.yaml"
    params.write_text(json.dumps(profile | {"each": {}, "train": {}, "trials": {}}))
    plain = grid.run_grid(params, tmp_path / "plain", corpus=corpus)
    resumes = lambda: [*(tmp_path / "spread").glob("checkpoints/*/resume.safetensors")]  # noqa: E731
    thread, killed = killing(cluster, lambda: len(resumes()) > 1)
    spread = grid.run_grid(params, tmp_path / "spread", corpus=corpus, engine={"address": cluster.address})
    thread.join()
    assert killed and spread == plain == [("keyword_cnn", s, None) for s in (0, 1, 2)]
    for name in ("keyword_cnn-0", "keyword_cnn-1", "keyword_cnn-2"):
        assert same(*(tmp_path / way / "checkpoints" / name for way in ("plain", "spread")))
        for file in (f"history/{name}.csv", f"metrics/{name}.json"):
            assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "spread" / file).read_bytes()
    cards = [json.loads(p.read_text()) for p in (tmp_path / "spread/checkpoints").glob("*/model.json")]
    assert len(cards) == 3 and max(card["training"]["resumed"] for card in cards) == 1
    assert not resumes()


def test_packing_on_two_nodes_of_which_one_dies(cluster, tmp_path, monkeypatch):
    from paper import ray_engine

    files = {f"w/{i:04}_nohash_0.wav": sound(44_100, 44_100, hz=100 + i) for i in range(600)} | BAD
    source = as_tar(tmp_path / "s.tar.gz", files)
    plain = pack(source, tmp_path / "plain", workers=2)
    monkeypatch.setattr(corpus_module, "PIECE", 16)
    thread, killed = killing(cluster, lambda: (tmp_path / "o.partial/journal").exists())
    pool = partial(ray_engine.Pool, address=cluster.address)
    packed = pack(source, tmp_path / "o", workers=2, pool=pool)
    thread.join()
    assert killed and packed.checksum == plain.checksum and packed.card == plain.card


def test_engine_ray_without_ray(tmp_path, monkeypatch):
    from paper import ray_engine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KwsError, match="pip install kwslib.cluster."):
        ray_engine.connect()


def on_two_processes(corpus, out):
    """A training that is started on two processes of this machine."""
    options = dict(model="keyword_cnn", n_mels=16, hop_length=1600, epochs=25, batch_size=16, threads=1)
    arguments = [word for k, v in options.items() for word in (f"--{k}", str(v))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["kwslib.train", *arguments, "--precision", "fp32", "--device", "cpu"]
    command += ["--corpus", corpus, "--out", out]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A corpus, and what a training on two processes makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    run = on_two_processes(write_tones(folder / "c", noise_seconds=40), folder / "whole")
    told = run.communicate(timeout=300)
    assert run.returncode == 0, told
    return folder / "c", folder / "whole"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_on_two_processes_of_which_one_is_killed(undisturbed, tmp_path, rank):
    corpus, whole = undisturbed
    run = on_two_processes(corpus, tmp_path / "killed")
    until((tmp_path / "killed/resume.safetensors").exists)
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            parent = int(environment.with_name("stat").read_text().rsplit(")")[-1].split()[1])
            if parent == run.pid and f"\0RANK={rank}\0" in environment.read_text():
                os.kill(int(environment.parent.name), signal.SIGKILL)
    assert run.communicate(timeout=300) and run.returncode != 0
    again = on_two_processes(corpus, tmp_path / "killed")
    told = again.communicate(timeout=300)
    assert again.returncode == 0 and "continuing keyword_cnn after epoch" in told[1], told
    assert same(whole, tmp_path / "killed")
    assert (whole / "history.csv").read_bytes() == (tmp_path / "killed/history.csv").read_bytes()
