"""The table of runs carried home, and the GPU's benchmark: what it needs, and that recorded steps are the same."""

import json

import pytest
import torch

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, KwsError
from kwslib.models import MODELS, build
from kwslib.training.config import load_config
from kwslib.training.graphs import Graphed
from paper import grid
from paper.benchmarks import gpu as benchmark_gpu

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


def test_the_table_says_how_the_authors_kernel_compares(root):
    result = json.loads((root / "results/scan/gpu.json").read_text())
    text = benchmark_gpu.table(result)
    assert text == (root / "results/scan/gpu.md").read_text()
    alone = {"batch": 1, "channels": 128, "length": 31, "mode": "forward", "dtype": "bfloat16"}
    rows = [alone | {"ms": {"gpu": {"kwslib": 2.0, "mamba_ssm_cuda": 1.0}}}, alone | {"ms": {"gpu": {"kwslib": 2.0}}}]
    of_both, of_ours = benchmark_gpu.table(result | {"scan": rows, "models": {}}).splitlines()[-2:]
    assert of_both.split(" | ")[1:4] == ["2.00", "1.00", "0.50"] and of_ours.split(" | ")[2:4] == ["–", "–"]


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_the_benchmark_asks_for_a_gpu():
    with pytest.raises(KwsError, match="sees no GPU here"):
        benchmark_gpu.benchmark_gpu(small=True)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_step_has_the_gradients_of_a_launched_one(name):
    torch.manual_seed(0)
    frontend = frontend_of(load_config(name, task=["yes"]))
    model = build(name, 5).cuda().train()
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
            module.p = 0.0
    frames, bands = frontend.frames(CLIP), frontend.n_features
    x, lengths = torch.randn(4, frames, bands, device="cuda"), torch.full((4,), frames, device="cuda")
    found, before = [], {k: v.clone() for k, v in model.state_dict().items()}
    replayed = Graphed(model).train()
    replayed(torch.randn_like(x), lengths)  # recorded with other numbers
    for way in (model, replayed):
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
        way(x, lengths).logsumexp(1).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-6)
    after = {k: v for k, v in model.state_dict().items() if "running" in k}
    assert all(not torch.equal(before[k], v) for k, v in after.items()), "batch norm's statistics move in a replay too"


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_model_that_waits_for_the_gpu_is_refused_with_the_remedy():
    class Waits(torch.nn.Linear):
        def forward(self, inputs, lengths):
            return super().forward(inputs) * lengths.max().item()

    with pytest.raises(KwsError, match="set graphs to false"):
        Graphed(Waits(3, 2).cuda()).train()(torch.zeros(2, 3, device="cuda"), torch.ones(2, device="cuda"))
