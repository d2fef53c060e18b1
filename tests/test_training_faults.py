"""Training under faults: two runs of one folder, damaged resume files, several processes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import recipe, run, same
from test_resume import broken_after

from kwslib.io import KwsError, locked
from kwslib.machine import pick_device
from kwslib.training.config import Config
from kwslib.training.device import Place

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = "--model keyword_cnn --epochs 2 --batch_size 16 --device cpu --n_mels 16 --hop_length 1600".split()


def launched(*arguments, launcher=(), **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, "-m", "kwslib.train", *OPTIONS, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_two_trainings_of_one_folder(corpus, tmp_path):
    """The second is refused and names the first, which ends with the same bits as if alone."""
    run(corpus, tmp_path / "alone")
    with locked(tmp_path / ".lock", "busy"), pytest.raises(KwsError, match=f"another run: process {os.getpid()} on"):
        run(corpus, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on a machine that was switched off")
    run(corpus, tmp_path / "run")
    assert same(tmp_path / "alone", tmp_path / "run") and not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("damage", ["weights", "header", "no header"])
def test_a_resume_file_that_was_changed(corpus, tmp_path, monkeypatch, damage):
    broken_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path)
    monkeypatch.undo()
    path = tmp_path / "resume.safetensors"
    with safe_open(path, "pt") as f:
        header, tensors = f.metadata(), load_file(path)
    if damage == "weights":
        name = next(k for k, v in tensors.items() if v.dtype == torch.float32 and v.dim())
        tensors[name].view(torch.int32).view(-1)[0] ^= 1
    else:
        header = {"run": header["run"].replace('"lr_scale": 1.0', '"lr_scale": 0.2') if damage == "header" else "null"}
    save_file(tensors, path, metadata=header)
    if damage == "no header":  # of no run at all: it starts again
        assert run(corpus, tmp_path)["training"]["resumed"] == 0
    else:
        with pytest.raises(KwsError, match="resume.safetensors is damaged .the checksum differs.; delete it"):
            run(corpus, tmp_path)


def test_features_that_a_model_cannot_read(corpus, tmp_path):
    with pytest.raises(KwsError, match="model retnet cannot read 11 frames of 16 features .*change n_mels"):
        run(corpus, tmp_path, model="retnet")


def test_fewer_clips_than_processes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Place, "wait", lambda self: None)
    monkeypatch.setattr(Place, "parallel", lambda self, model: model)
    place = Place.__init__

    def two(self, config):
        place(self, config)
        self.world = 2

    monkeypatch.setattr(Place, "__init__", two)
    with pytest.raises(KwsError, match="batch_size gives 1 clips to 2 processes; raise it"):
        run(corpus, tmp_path, batch_size=1)


def test_accelerate_on_a_cpu_says_that_it_starts_one_process(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    Place(Config(device="cpu"))
    assert "starts one process; torchrun --nproc_per_node N" in capsys.readouterr().err


def test_devices_that_are_none():
    for name in ("cpu:x", "tpu", "", "cpu:-7"):
        with pytest.raises(KwsError, match="device .* is not known; set it to auto"):
            pick_device(name)


def test_several_processes_say_an_error_once(tmp_path):
    launcher = "-m torch.distributed.run --nproc_per_node 2".split()
    with launched("--corpus", tmp_path / "absent", launcher=launcher) as process:
        told = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and told.count("error: corpus") == 1


def test_ctrl_c_ends_training_in_one_line_and_it_goes_on(corpus, tmp_path):
    run(corpus, tmp_path / "whole", epochs=30)
    config = recipe(corpus, tmp_path / "run", epochs=30)
    code = "import sys, json; from kwslib.io import cli; from kwslib.training import train\n"
    code += "from kwslib.training.config import Config\ncli(lambda: train(Config(**json.loads(sys.argv[1]))) and None)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(config.model_dump())], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (tmp_path / "run" / "resume.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130 and "Traceback" not in "".join(told)
    assert told[-1] == "stopped before the end; the same command continues or starts again"
    assert run(corpus, tmp_path / "run", epochs=30)["training"]["resumed"] == 1
    assert same(tmp_path / "whole", tmp_path / "run")
