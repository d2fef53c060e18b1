"""The table of runs carried home, and the GPU's benchmark: what it needs, and that recorded steps are the same."""

import json

import pytest
import torch

from kwslib.io import KwsError
from kwslib.models import build
from paper import benchmark_gpu, grid
from paper.cuda_graphs import Graphed

GPU = torch.cuda.is_available()


def test_the_table_is_of_the_committed_runs(root):
    assert grid.table(root / "results/gpu") == (root / "results/gpu/table.md").read_text()
    runs = [json.loads(p.read_text()) for p in (root / "results/gpu/runs").glob("*.json")]
    best = max(runs, key=lambda run: run["test"]["accuracy"])
    row = grid.table(root / "results/gpu").split("\n|")[3]
    assert f"{100 * best['test']['accuracy']:.2f}" in row, "the best comes first"


def test_a_folder_without_runs_is_told(tmp_path):
    with pytest.raises(KwsError, match="holds no result; run the grid first"):
        grid.table(tmp_path)


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_the_benchmark_asks_for_a_gpu():
    with pytest.raises(KwsError, match="sees no GPU here"):
        benchmark_gpu.benchmark_gpu(small=True)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_replayed_step_has_the_gradients_of_a_launched_one():
    torch.manual_seed(0)
    model = build("mamba_light", 5).cuda().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x, lengths = torch.randn(4, 63, 64, device="cuda"), torch.full((4,), 63, device="cuda")
    found, before = [], {k: v.clone() for k, v in model.state_dict().items()}
    for way in (model, Graphed(model).train()):
        model.load_state_dict(before)
        way(x, lengths).logsumexp(1).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
