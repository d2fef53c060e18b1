"""Fixtures that every test file shares."""

import signal
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONG = "test_export test_cluster test_resume test_snippets test_torture test_scale test_spot test_beyond".split()


def pytest_configure():
    """What a shell starts in the background ignores Ctrl-C, and so do its children, to whom some tests send it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The files that take minutes come first, so that no process waits for another at the end (`make test`)."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs chapters 1 and 2, in turn: both pack the corpus of the profile `tiny` where it is not yet."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling

    class ChaptersInTurn(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return super()._split_scope(nodeid).replace("02_train", "01_data")

    return ChaptersInTurn(config, log)


def git(folder, *arguments):
    """What git prints in a folder, as somebody."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def root():
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def real_clips():
    """The zip with a subset of the real Speech Commands; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared" / "data" / "speech_commands_subset.zip"
    if not path.is_file():
        pytest.skip("real clips absent: no ../shared/data/speech_commands_subset.zip beside the repository")
    return path


@pytest.fixture(scope="session")
def wake_words():
    """The zip with real recordings of wake words; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared" / "data" / "wake_words.zip"
    if not path.is_file():
        pytest.skip("real recordings absent: no ../shared/data/wake_words.zip beside the repository")
    return path


@pytest.fixture(scope="module")
def one_thread():
    """Small tensors: threads that wait for each other on a busy machine cost more than they bring."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A packed corpus: three words, each a tone in noise."""
    from small_runs import write_tones

    return write_tones(tmp_path_factory.mktemp("corpora") / "tones")


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory):
    """(folder, card) of a whole run on it, nothing in its way."""
    import torch
    from small_runs import run

    threads, out = torch.get_num_threads(), tmp_path_factory.mktemp("runs") / "whole"
    card = run(corpus, out)
    torch.set_num_threads(threads)
    return out, card


@pytest.fixture(scope="session")
def claims():
    """The content of claims.yaml."""
    from paper.results import load_claims

    return load_claims()


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Two seeds of one Mamba, one of MobileNetV2 with a better validation accuracy, timings of two models."""
    from made_results import a_benchmark, a_folder, a_run

    runs = [a_run("mamba_mel_small", 0, 0.90), a_run("mamba_mel_small", 1, 0.94), a_run("mobilenet_v2_035", 0, 0.95)]
    return a_folder(tmp_path_factory.mktemp("results") / "quick", runs, a_benchmark(gpu=True))


@pytest.fixture(scope="module")
def spotters():
    """name -> the KeywordSpotter of that name in small_streams."""
    from small_streams import SPOTTERS

    made = {}
    return lambda name: made.setdefault(name, SPOTTERS[name]())
