"""The scan under what PyTorch does to functions: traces, exports, derivatives of derivatives, maps, copies, threads."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from kwslib.models.mamba import Mamba
from kwslib.scan import selective_scan

pytest.importorskip("numba")


class Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C):
        options = {"delta_softplus": True, "layout": "bld", "return_last_state": True}
        return selective_scan(u, delta, A, B, C, **options)


def example(batch, length, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (batch, length, 6), (batch, length, 6), (6, 3), (batch, length, 3), (batch, length, 3)
    u, delta, A, B, C = (torch.randn(size, generator=g) for size in sizes)
    return u, delta, -A.exp(), B, C


def inputs(dtype=torch.float32):
    """All nine tensors of a scan."""
    g = torch.Generator().manual_seed(1)
    D, z, bias, initial = (torch.randn(size, generator=g) for size in ((6,), (2, 5, 6), (6,), (2, 6, 3)))
    return [t.to(dtype) for t in (*example(2, 5), D, z, bias, initial)]


def scan(backend, *tensors):
    """-> y, last state"""
    return selective_scan(*tensors[:8], True, True, tensors[8], "bld", backend)


def loss(backend, *tensors):
    y, last = scan(backend, *tensors)
    return y.square().sum() + last.sum()


def assert_close(got, wanted, tolerance=2e-6):
    """float32 beside float64, to `tolerance` of each tensor's largest value."""
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and (a.double() - b).abs().max() <= tolerance * b.abs().max()


def both(function):
    """function(backend, tensors) with the kernel in float32, and with the plain loop in float64."""
    return function("cpu", inputs()), function("reference", inputs(torch.float64))


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
    torch.onnx.export(Scan().eval(), example(2, 5), path, input_names=names, dynamo=dynamo)
    tensors = example(2, 5, seed=1)
    given = {name: t.numpy() for name, t in zip(names, tensors)}
    got = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, given)
    for a, b in zip(got, Scan()(*tensors)):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_second_and_third_derivatives(power):
    """power 1: the gradient that comes back is a constant, and does not say that it is differentiated again."""

    def derivatives(backend, tensors):
        tensors = [t.requires_grad_() for t in tensors]
        y, last = scan(backend, *tensors)
        values = y.pow(power).sum() + last.pow(power).sum()
        found = []
        for _ in range(3):
            grads = torch.autograd.grad(values, tensors, create_graph=True)
            values = sum(g.square().sum() for g in grads)
            found += [g.detach() for g in grads]
        return found

    assert_close(*both(derivatives))


def test_second_derivatives_for_the_gradients_that_come_in_and_without_what_is_absent():
    def derivatives(backend, tensors):
        u, delta, A, B, C = (t.requires_grad_() for t in tensors[:5])
        y = selective_scan(u, delta, A, B, C, delta_softplus=True, layout="bld", backend=backend)
        weights = torch.ones_like(y, requires_grad=True)
        (slope,) = torch.autograd.grad(y, delta, weights, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (u, A, weights))

    assert_close(*both(derivatives))


def test_first_gradients_are_the_same_bits_whether_or_not_a_graph_is_kept():
    tensors = [t.requires_grad_() for t in inputs()]
    once, kept = (torch.autograd.grad(loss("cpu", *tensors), tensors, create_graph=k) for k in (False, True))
    func = torch.func.grad(partial(loss, "cpu"), argnums=tuple(range(9)))(*(t.detach() for t in tensors))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, kept, func))


@pytest.mark.parametrize("transform", ["jacrev", "jacfwd", "hessian", "vjp of vjp"])
def test_jacobians_and_hessians(transform):
    def derivative(backend, tensors):
        f = partial(loss, backend)
        if transform == "vjp of vjp":
            return torch.func.grad(lambda *t: torch.func.grad(f)(*t).square().sum(), argnums=(1, 2, 8))(*tensors)
        return (getattr(torch.func, transform)(f, argnums=3)(*tensors),)

    assert_close(*both(derivative))


def test_gradients_of_each_clip_by_vmap():
    def derivative(backend, tensors):
        def one(A, u, delta):
            y = selective_scan(u[None], delta[None], A, *(t[:1] for t in tensors[3:5]), layout="bld", backend=backend)
            return y.square().sum()

        return torch.func.vmap(torch.func.grad(one, argnums=(0, 1)), (None, 0, 0))(tensors[2], *tensors[:2])

    assert_close(*both(derivative))


@pytest.mark.parametrize("train", [False, True])
def test_several_models_by_vmap(train):
    def models(backend, tensors):
        tensors = [t.requires_grad_(train) for t in tensors]
        weights = torch.stack([tensors[2], 2 * tensors[2]])
        y, last = torch.func.vmap(lambda A: scan(backend, *tensors[:2], A, *tensors[3:]))(weights)
        grads = torch.autograd.grad(y.square().sum() + last.sum(), tensors) if train else ()
        return [t.detach() for t in (y, last, *grads)]

    assert_close(*both(models))


def test_a_batched_backward_is_refused():
    y, _ = scan("cpu", *(tensors := [t.requires_grad_() for t in inputs()]))
    rows = torch.ones(2, *y.shape)
    with pytest.raises(RuntimeError, match="data pointer"):  # torch.func.jacrev is what works
        torch.autograd.grad(y, tensors[:3], rows, is_grads_batched=True)


def test_forward_mode_has_a_tangent_and_does_not_meet_a_kernel():
    def tangent(backend, tensors):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
            return [forward_ad.unpack_dual(t).tangent for t in scan(backend, dual, *tensors[1:])]

    assert_close(*both(tangent))
    tensors = [t.requires_grad_() for t in inputs()]
    y, _ = scan("cpu", *tensors)  # a kernel's forward pass, and only backward in forward mode: refused
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError), match="jvp|forward mode"):
        torch.autograd.grad(y, tensors[0], forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


def compiled(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def test_compiled_models_train_and_refuse_second_derivatives():
    tensors = [t.requires_grad_() for t in inputs()]
    function = partial(loss, None)
    values = [f(*tensors) for f in (compiled(function), function)]
    for a, b in zip(*(torch.autograd.grad(v, tensors) for v in values)):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="double backward|create_graph=False"):
        grads = torch.autograd.grad(compiled(function)(*tensors), tensors, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)


def test_an_exported_mixer_equals_the_mixer():
    mixer, x = Mamba(8, d_state=4), torch.randn(2, 9, 8)
    exported = torch.export.export(mixer, (x,), dynamic_shapes=({1: torch.export.Dim("length", min=2)},)).module()
    for length in (2, 9, 40):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(exported(x), mixer(x))


def test_checkpointing_copies_and_pickles():
    mixer, x = Mamba(8, d_state=4), torch.randn(2, 9, 8, requires_grad=True)
    wanted = torch.autograd.grad(mixer(x).square().sum(), x)[0]
    again = checkpoint(mixer, x, use_reentrant=False).square().sum()
    assert torch.equal(torch.autograd.grad(again, x)[0], wanted)
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert torch.equal(torch.autograd.grad(other(x).square().sum(), x)[0], wanted)
    assert pickle.loads(pickle.dumps(selective_scan)) is selective_scan is copy.deepcopy(selective_scan)


def test_threads_at_once():
    def job(seed):
        tensors = [t.requires_grad_() for t in example(9, 200 + seed, seed)]
        y, last = Scan()(*tensors)
        return torch.autograd.grad(y.square().sum() + last.sum(), tensors)

    wanted = [job(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, grads in zip(pool.map(job, range(8)), wanted):
                assert all(torch.equal(a, b) for a, b in zip(got, grads))


def test_the_first_scans_of_a_process_may_be_in_several_threads():
    code = (
        "import torch; from concurrent.futures import ThreadPoolExecutor; from kwslib.scan import selective_scan as s\n"
        "t = [torch.ones(2, 3, 4), torch.ones(2, 3, 4), -torch.ones(4, 2), torch.ones(2, 3, 2), torch.ones(2, 3, 2)]\n"
        "def job(_):\n    return s(*(x.clone().requires_grad_() for x in t), layout='bld', backend='cpu')\n"
        "ys = list(ThreadPoolExecutor(4).map(job, range(4)))\n"
        "assert all(torch.equal(y, ys[0]) for y in ys)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
