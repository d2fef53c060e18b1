"""The scan under what PyTorch does to functions: traces, exports, derivatives of derivatives, maps, copies, threads."""

import pytest
import torch

from kwslib.scan import selective_scan


class Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C):
        options = {"delta_softplus": True, "layout": "bld", "return_last_state": True}
        return selective_scan(u, delta, A, B, C, **options)


def example(batch, length, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (batch, length, 6), (batch, length, 6), (6, 3), (batch, length, 3), (batch, length, 3)
    u, delta, A, B, C = (torch.randn(size, generator=g) for size in sizes)
    return u, delta, -A.exp(), B, C


def test_a_trace_computes_and_does_not_remember():
    traced = torch.jit.trace(Scan(), example(2, 5))
    for got, wanted in zip(traced(*example(3, 5, seed=1)), Scan()(*example(3, 5, seed=1))):
        torch.testing.assert_close(got, wanted)
    with pytest.raises(RuntimeError, match="Expected 5 elements"):
        traced(*example(2, 7))


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_onnx_file_computes_the_scan(dynamo, tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path, names = str(tmp_path / "scan.onnx"), ["u", "delta", "A", "B", "C"]
    torch.onnx.export(Scan(), example(2, 5), path, input_names=names, dynamo=dynamo)
    tensors = example(2, 5, seed=1)
    given = {name: t.numpy() for name, t in zip(names, tensors)}
    got = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, given)
    for a, b in zip(got, Scan()(*tensors)):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-5)
