"""The selective scan: the fused kernel against the plain loop in float64, values and gradients."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kwslib.scan import BACKENDS, selective_scan, use_backend

numba = pytest.importorskip("numba")
from kwslib.scan import cpu as scan_cpu  # noqa: E402
from kwslib.scan import cpu_math as scan_math  # noqa: E402

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
SEQUENCES = ("u", "delta", "B", "C", "z")
USUAL = {"delta_softplus": True, "layout": "bld"}


def inputs(batch, length, channels, state, seed=0, delta_scale=1.0, absent=(), layout="bld", dtype=torch.float32):
    """Arguments of the scan by name, with tensors that require gradients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    sequence = {"bld": lambda k: normal(batch, length, k), "bdl": lambda k: normal(batch, k, length)}[layout]
    tensors = {
        "u": sequence(channels),
        "delta": delta_scale * sequence(channels),
        "A": -normal(channels, state).exp(),
        "B": sequence(state),
        "C": sequence(state),
        "D": normal(channels),
        "z": sequence(channels),
        "delta_bias": delta_scale * normal(channels),
        "initial_state": normal(batch, channels, state),
    }
    return {k: None if k in absent else v.to(dtype).requires_grad_() for k, v in tensors.items()}


def everything(tensors, **options):
    """y, last state and the gradients of a fixed random function of both, by name."""
    y, last = selective_scan(**tensors, return_last_state=True, **options)
    g = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=g).to(t)).sum() for t in (y, last))
    present = [k for k in NAMES if tensors[k] is not None]
    grads = torch.autograd.grad(loss, [tensors[k] for k in present])
    return {"y": y, "last": last, **{"d" + k: grad for k, grad in zip(present, grads)}}


def double(tensors):
    return {k: None if v is None else v.detach().double().requires_grad_() for k, v in tensors.items()}


def assert_close(got, wanted, tolerance=2e-5):
    """Equal to `tolerance` of the largest value of each tensor."""
    assert got.keys() == wanted.keys()
    for name in wanted:
        a, b = got[name].double(), wanted[name]
        assert a.shape == b.shape, name
        if b.numel():
            assert torch.isfinite(a).all(), name
            scale = max(b.abs().max(), 1e-3)
            if name == "ddelta_bias" and wanted["ddelta"].numel():  # its sum over clips and frames: terms may cancel
                scale = max(scale, wanted["ddelta"].abs().max())
            assert (a - b).abs().max() <= tolerance * scale, name


def compare(tensors, tolerance=2e-5, **options):
    got = everything(tensors, backend="cpu", **options)
    assert_close(got, everything(double(tensors), backend="reference", **options), tolerance)
    return got


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.sampled_from([1, 2, 3, 7, 31, 32, 33, 65]),
    channels=st.sampled_from([1, 5, 16, 63, 64, 65, 130]),
    state=st.sampled_from([1, 2, 3, 16, 17, 64]),
    delta_scale=st.sampled_from([1e-3, 1.0, 30.0]),
    absent=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])),
    layout=st.sampled_from(["bld", "bdl"]),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_equal_the_plain_loop(layout, **sizes):
    compare(inputs(layout=layout, **sizes), delta_softplus=True, layout=layout)


def test_without_softplus():
    tensors = inputs(2, 9, 20, 4)
    tensors["delta"] = tensors["delta"].detach().abs().requires_grad_()
    tensors["delta_bias"] = tensors["delta_bias"].detach().abs().requires_grad_()
    compare(tensors, delta_softplus=False, layout="bld")


def test_reference_gradients_by_finite_differences():
    tensors = {k: v.detach().double().requires_grad_() for k, v in inputs(2, 3, 2, 2).items()}

    def scan(*values):
        return selective_scan(**dict(zip(NAMES, values)), **USUAL, return_last_state=True)

    assert torch.autograd.gradcheck(scan, [tensors[k] for k in NAMES])


def test_many_clips_over_several_threads():
    tensors = inputs(9, 40, 70, 24)
    assert 9 * 40 * 70 * 24 > scan_cpu.SERIAL
    compare(tensors, **USUAL)


def test_one_longer_clip_over_several_threads():
    assert 2001 * 70 * 5 > scan_cpu.SERIAL
    compare(inputs(1, 2001, 70, 5), 5e-5, **USUAL)


def test_gradients_repeat_bit_for_bit():
    for shape in ((9, 50, 130, 16), (1, 2000, 130, 4)):
        tensors = inputs(*shape)
        first, second = (everything(tensors, **USUAL, backend="cpu") for _ in range(2))
        for name in first:
            assert torch.equal(first[name], second[name]), name


GRADIENTS = """
import hashlib, torch
from kwslib.scan import selective_scan
draw = torch.Generator().manual_seed(0)
u, delta, z = (torch.randn(4, 40, 128, generator=draw).requires_grad_() for _ in range(3))
B, C = (torch.randn(4, 40, 16, generator=draw).requires_grad_() for _ in range(2))
y = selective_scan(u, delta, -torch.ones(128, 16), B, C, z=z, delta_softplus=True, layout="bld")
found = y, *torch.autograd.grad(y.square().sum(), (u, delta, z, B, C))
print(hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in found)).hexdigest())
"""


def test_gradients_are_the_same_whether_the_kernels_were_compiled_or_cached(tmp_path):
    """The first process compiles them, the second loads them. A training that goes on after a kill needs this."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [subprocess.run([sys.executable, "-c", GRADIENTS], env=env, capture_output=True, check=True) for _ in "12"]
    assert list(tmp_path.rglob("*backward_team*.nbc")) and len(said[0].stdout.strip()) == 64
    assert said[0].stdout == said[1].stdout


def test_tensors_with_gaps():
    """Parts of one wide projection, as the Mamba block makes them, and tensors with no unit stride at all."""
    tensors = inputs(2, 35, 12, 3)
    wanted = everything(tensors, **USUAL, backend="cpu")
    with torch.no_grad():
        wide = torch.cat([tensors[k] for k in ("u", "z", "B", "C")], dim=-1)
        parts = dict(zip(("u", "z", "B", "C"), wide.split([12, 12, 3, 3], dim=-1)))
        apart = {k: v.repeat_interleave(2, -1)[..., ::2] for k, v in tensors.items()} | parts
        assert not any(v.is_contiguous() for v in apart.values())
    apart = {k: v.detach().requires_grad_() for k, v in apart.items()}
    got = everything(apart, **USUAL, backend="cpu")
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_gradients_of_one_output_only():
    tensors = inputs(2, 5, 6, 3)
    for output in (0, 1):
        grads = []
        for t, backend in ((tensors, "cpu"), (double(tensors), "reference")):
            result = selective_scan(**t, **USUAL, return_last_state=True, backend=backend)
            grads.append(torch.autograd.grad(result[output].sum(), [t["delta"], t["B"], t["initial_state"]]))
        for a, b in zip(*grads):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    tensors = inputs(2, 33, 20, 4, dtype=dtype)
    got = compare(tensors, 2 * torch.finfo(dtype).eps, **USUAL)
    assert got["y"].dtype == got["du"].dtype == dtype and got["last"].dtype == torch.float32


@pytest.mark.parametrize("length, piece", [(70, 16), (16_001, 3_000)])
def test_pieces_with_carried_state_equal_the_whole(length, piece):
    tensors = inputs(1, length, 65, 4)
    whole, last = selective_scan(**tensors, **USUAL, return_last_state=True)
    state, ys = tensors["initial_state"], []
    for start in range(0, length, piece):
        part = {k: v[:, start : start + piece] if k in SEQUENCES else v for k, v in tensors.items()}
        part["initial_state"] = state
        y, state = selective_scan(**part, **USUAL, return_last_state=True)
        ys.append(y)
    pieces = torch.cat(ys, 1)
    assert torch.equal(pieces, whole) and torch.equal(state, last)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    grads = [
        torch.autograd.grad((y * weights).sum() + h.sum(), [tensors[k] for k in NAMES])
        for y, h in ((whole, last), (pieces, state))
    ]
    assert_close(dict(zip(NAMES, grads[1])), {k: g.double() for k, g in zip(NAMES, grads[0])}, 1e-5)


def test_not_a_number_is_not_hidden():
    for name in SEQUENCES:
        tensors = {k: v.detach() for k, v in inputs(1, 4, 6, 2).items()}
        tensors[name][0, 2, 1] = torch.nan
        y = selective_scan(**tensors, **USUAL, backend="cpu")
        assert y[0, :2].isfinite().all() and y[0, 2, 1].isnan(), name


def test_a_fork_after_a_threaded_scan_does_not_hang():
    tensors = {k: v.detach() for k, v in inputs(16, 40, 70, 16).items()}
    wanted = selective_scan(**tensors, **USUAL, backend="cpu")

    def child(queue):
        y = selective_scan(**tensors, **USUAL, backend="cpu")
        queue.put(np.array_equal(y.numpy(), wanted.numpy()))  # PyTorch's threads do not survive a fork

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    process.join(20)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and queue.get()


def test_the_operator_is_registered_soundly():
    for absent in ((), ("D", "z", "delta_bias", "initial_state")):
        tensors = inputs(2, 35, 5, 3, absent=absent)
        arguments = (*(tensors[k] for k in NAMES), True, True)
        torch.library.opcheck(
            torch.ops.kwslib.scan.default,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_compiled_function_equals_eager():
    tensors = inputs(2, 35, 5, 3, absent=("initial_state",))
    compiled = torch.compile(lambda t: selective_scan(**t, **USUAL), backend="aot_eager", fullgraph=True)
    results = []
    for scan in (compiled, lambda t: selective_scan(**t, **USUAL)):
        y = scan(tensors)
        results.append((y, *torch.autograd.grad(y.square().sum(), [tensors[k] for k in NAMES[:8]])))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_exported_scan_takes_any_length():
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return selective_scan(u, delta, A, B, C, **USUAL)

    def example(batch, length):
        return tuple(inputs(batch, length, 6, 3)[k] for k in NAMES[:5])

    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    shapes = (sizes, sizes, None, sizes, sizes)
    exported = torch.export.export(Scan(), example(2, 5), dynamic_shapes=shapes).module()
    tensors = example(3, 70)
    outputs = exported(*tensors), Scan()(*tensors)
    grads = [torch.autograd.grad(y.square().sum(), tensors) for y in outputs]
    assert torch.equal(*outputs) and all(torch.equal(a, b) for a, b in zip(*grads))


def over(function, x):
    """The scalar kernel function over an array, compiled into a loop as in the scan."""

    @numba.njit
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    out = np.empty_like(x)
    loop(x, out)
    return out


@pytest.mark.parametrize(
    "name, exact, low, high, ulps",
    [
        ("exp2", np.exp2, -126, 127.4, 1.5),
        ("exp", np.exp, -87.3, 88, 2),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -87, 100, 3),
        ("log1pexp", lambda x: np.logaddexp(0, x), -87, 100, 3.5),
    ],
)
def test_vector_functions_are_accurate_to_a_few_ulp(name, exact, low, high, ulps):
    near_zero = np.random.default_rng(0).normal(size=100_000) * np.logspace(-6, 0, 100_000)
    x = np.sort(np.concatenate([np.linspace(low, high, 300_000), near_zero])).astype(np.float32)
    wanted = exact(x.astype(np.float64))
    got = over(getattr(scan_math, name), x)
    assert np.max(np.abs(got - wanted) / np.spacing(wanted.astype(np.float32))) <= ulps
    assert (got[1:] >= got[:-1] * np.float32(1 - 4e-7)).all()  # rises, but for rounding


def test_exponentials_saturate():
    x = np.array([-np.inf, -1e30, -500, -128, 0, 500, 1e30, np.inf, np.nan], np.float32)
    for name in ("exp", "exp2"):
        got = over(getattr(scan_math, name), x)
        assert (got[:4] == 0).all() and got[4] == 1 and (got[5:8] == np.inf).all() and np.isnan(got[8])


def test_mistakes_are_told_in_a_sentence():
    tensors = inputs(2, 5, 6, 3)
    with pytest.raises(ValueError, match="B has shape"):
        selective_scan(**{**tensors, "B": tensors["B"][:, :4]}, layout="bld")
    with pytest.raises(ValueError, match="layout"):
        selective_scan(**tensors, layout="dlb")
    with pytest.raises(ValueError, match="needs a step"):
        selective_scan(**inputs(2, 0, 6, 3), layout="bld")
    with pytest.raises(ValueError, match="'cpu' cannot run torch.float64"):
        selective_scan(**double(tensors), layout="bld", backend="cpu")
    with pytest.raises(ValueError, match="choose one of"):
        selective_scan(**tensors, layout="bld", backend="gpu")
    assert list(BACKENDS)[-1] == "reference"


def test_a_backend_is_chosen_for_a_block_of_code(monkeypatch):
    tensors, ran = inputs(2, 5, 6, 3), []
    for name, (fits, scan) in BACKENDS.items():
        run = lambda *given, name=name, scan=scan: ran.append(name) or scan(*given)  # noqa: E731
        monkeypatch.setitem(BACKENDS, name, (fits, run))
    with pytest.raises(RuntimeError), use_backend("reference"):
        selective_scan(**tensors, **USUAL)
        selective_scan(**tensors, **USUAL, backend="cpu")  # a call that names its backend keeps it
        with use_backend("cpu"):
            selective_scan(**tensors, **USUAL)
        selective_scan(**tensors, **USUAL)
        raise RuntimeError
    selective_scan(**tensors, **USUAL)
    assert ran == ["reference", "cpu", "cpu", "reference", "cpu"]
    with pytest.raises(ValueError, match="choose one of"), use_backend("gpu"):
        pass
    with pytest.raises(ValueError, match="'cpu' cannot run torch.float64"), use_backend("cpu"):
        selective_scan(**double(tensors), **USUAL)


def test_several_python_threads_where_openmp_is_absent(monkeypatch):
    tensors = inputs(9, 40, 70, 24)
    wanted = everything(tensors, **USUAL, backend="cpu")
    monkeypatch.setattr(scan_cpu, "_openmp", None)
    got = everything(tensors, **USUAL, backend="cpu")
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
