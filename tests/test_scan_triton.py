"""The scan's GPU backends: Triton's kernel against the plain loop in float64, values and gradients.

Without a GPU the kernel runs in Triton's interpreter, step by step in NumPy: the same program, except
for what a compiler and a real GPU do to it. The authors' kernel is tested through a stand-in.
"""

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scan import NAMES, SEQUENCES, USUAL, assert_close, double, everything, inputs

from kwslib.scan import BACKENDS, selective_scan
from kwslib.scan import reference as scan

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton", reason="Triton exists for Linux only")
from kwslib.scan import triton as scan_triton  # noqa: E402

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
TRITON = {**USUAL, "backend": "triton"}


def tensors(*sizes, **options):
    """Arguments of the scan by name, on the GPU where there is one."""
    made = inputs(*sizes, **options)
    return {k: v if v is None or not GPU else v.detach().cuda().requires_grad_() for k, v in made.items()}


def compare(arguments, tolerance=2e-5, **options):
    got = everything(arguments, **{**TRITON, **options})
    wanted = everything(double(arguments), **{**USUAL, **options, "backend": "reference"})
    assert_close(got, wanted, tolerance)
    return got


@pytest.mark.parametrize(
    "sizes, options",
    [
        ((1, 1, 5, 3), {}),
        ((2, 3, 8, 1), {"absent": ("D", "z")}),
        ((1, 4, 33, 16), {"layout": "bdl"}),
        ((2, 5, 70, 16), {"absent": ("delta_bias", "initial_state")}),
        ((1, 9, 20, 20), {"delta_scale": 30.0}),
        ((1, 6, 17, 2), {"delta_scale": 1e-3, "absent": OPTIONAL}),
        ((1, 13, 9, 64), {"layout": "bdl", "absent": ("z",)}),
        ((0, 3, 4, 2), {}),
    ],
)
def test_values_and_gradients_equal_the_plain_loop(sizes, options):
    compare(tensors(*sizes, **options), layout=options.get("layout", "bld"))


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 2 * scan_triton.CHUNK + 1),
    channels=st.sampled_from([1, 8, 31, 40]),
    state=st.sampled_from([1, 2, 3, 16, 33]),
    absent=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    layout=st.sampled_from(["bld", "bdl"]),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_of_any_sizes(softplus, layout, **sizes):
    arguments = tensors(layout=layout, **sizes)
    if not softplus:
        for name in ("delta", "delta_bias"):  # A step size below zero lets h grow
            if arguments[name] is not None:
                arguments[name] = arguments[name].detach().abs().requires_grad_()
    compare(arguments, delta_softplus=softplus, layout=layout)


def test_a_long_sequence():
    compare(tensors(1, 64_000 if GPU else 41, 8, 2), 1e-4)


def test_extreme_steps_and_gates():
    arguments = {k: v.detach() for k, v in tensors(1, 6, 4, 3, absent=("delta_bias",)).items() if v is not None}
    for name in ("delta", "z"):
        arguments[name] = 200 * arguments[name].sign()
    compare({k: v.requires_grad_() for k, v in arguments.items()} | {"delta_bias": None})


def test_small_steps_are_as_precise_as_large_ones():
    """softplus(-12) = 6e-6; the logarithm of 1 + e**-12 in float32 would be off by a percent."""
    arguments = {
        k: v.detach() for k, v in tensors(1, 5, 9, 3, absent=("D", "z", "initial_state")).items() if v is not None
    }
    arguments |= {k: arguments[k].abs() for k in ("u", "B", "C")}  # so that no sum cancels
    arguments["delta_bias"] = arguments["delta_bias"] - 12
    exact = selective_scan(**{k: v.double() for k, v in arguments.items()}, **USUAL, backend="reference")
    got = selective_scan(**arguments, **TRITON)
    assert ((got - exact) / exact).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    got = compare(tensors(2, 5, 20, 4, dtype=dtype), 2 * torch.finfo(dtype).eps)
    assert all(got[k].dtype == dtype for k in ("y", *("d" + k for k in NAMES)))
    assert got["last"].dtype == torch.float32


def test_every_input_may_have_a_dtype_of_its_own():
    dtypes = dict(zip(NAMES, 3 * (torch.bfloat16, torch.float32, torch.float16)))
    arguments = {k: v.detach().to(dtypes[k]).requires_grad_() for k, v in tensors(1, 5, 9, 3).items()}
    got = compare(arguments, 2e-2)
    assert got["y"].dtype == torch.bfloat16 and all(got["d" + k].dtype == dtypes[k] for k in NAMES)


def test_tensors_with_gaps():
    """Parts of one wide projection, as the Mamba block makes them, and tensors with no unit stride at all."""
    arguments = tensors(2, 5, 12, 3)
    wanted = everything(arguments, **TRITON)
    with torch.no_grad():
        wide = torch.cat([arguments[k] for k in ("u", "z", "B", "C")], dim=-1)
        parts = dict(zip(("u", "z", "B", "C"), wide.split([12, 12, 3, 3], dim=-1)))
        apart = {k: v.repeat_interleave(2, -1)[..., ::2] for k, v in arguments.items()} | parts
        apart["delta"] = arguments["delta"].transpose(0, 1).contiguous().transpose(0, 1)  # steps outermost
        assert not any(v.is_contiguous() for v in apart.values())
    got = everything({k: v.detach().requires_grad_() for k, v in apart.items()}, **TRITON)
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_alignment_is_the_worst_of_address_and_strides():
    x = torch.zeros(2, 3, 40)
    assert scan_triton._alignment(x, x[..., 8:24]) == 16 and scan_triton._alignment(x, x[..., 2:18]) == 8
    assert scan_triton._alignment(torch.zeros(2, 3, 41)) == 4
    assert scan_triton._alignment(x.bfloat16()[..., 1:17]) == 2


def test_gradients_repeat_bit_for_bit_whatever_memory_held():
    arguments = tensors(2, 6, 40, 16)
    wanted = everything(arguments, **TRITON)
    torch.use_deterministic_algorithms(True)  # from here on, new tensors are full of NaN
    try:
        assert torch.empty(1).isnan()
        got = everything(arguments, **TRITON)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_gradients_of_one_output_only():
    arguments = tensors(2, 5, 6, 3)
    for output in (0, 1):
        grads = []
        for t, options in ((arguments, TRITON), (double(arguments), {**USUAL, "backend": "reference"})):
            result = selective_scan(**t, **options, return_last_state=True)
            grads.append(torch.autograd.grad(result[output].sum(), [t["delta"], t["B"], t["initial_state"]]))
        for a, b in zip(*grads):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_pieces_with_carried_state_equal_the_whole():
    arguments = {k: v.detach() for k, v in tensors(1, 10, 33, 4).items()}
    whole, last = selective_scan(**arguments, **TRITON, return_last_state=True)
    state, ys = arguments["initial_state"], []
    for start in range(0, 10, 3):
        part = {k: v[:, start : start + 3] if k in SEQUENCES else v for k, v in arguments.items()}
        y, state = selective_scan(**{**part, "initial_state": state}, **TRITON, return_last_state=True)
        ys.append(y)
    assert torch.equal(torch.cat(ys, 1), whole) and torch.equal(state, last)


def test_not_a_number_is_not_hidden():
    for name in SEQUENCES:
        arguments = {k: v.detach() for k, v in tensors(1, 4, 6, 2).items()}
        arguments[name][0, 2, 1] = torch.nan
        y = selective_scan(**arguments, **TRITON)
        assert y[0, :2].isfinite().all() and y[0, 2, 1].isnan(), name


def test_the_operator_is_registered_soundly():
    for absent in ((), OPTIONAL):
        arguments = tensors(1, 5, 5, 3, absent=absent)
        torch.library.opcheck(
            torch.ops.kwslib.scan_triton.default,
            (*(arguments[k] for k in NAMES), True, True),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_compiled_function_equals_eager():
    arguments = tensors(2, 5, 5, 3, absent=("initial_state",), dtype=torch.bfloat16)
    compiled = torch.compile(lambda t: selective_scan(**t, **TRITON), backend="aot_eager", fullgraph=True)
    results = []
    for function in (compiled, lambda t: selective_scan(**t, **TRITON)):
        y = function(arguments)
        results.append((y, *torch.autograd.grad(y.square().sum(), [arguments[k] for k in NAMES[:8]])))
    for a, b in zip(*results):
        assert a.dtype == b.dtype and torch.equal(a, b)


def chosen(monkeypatch, device, **options):
    """The name of the backend that runs for tensors on `device`, none of which is really run."""

    def stub(name):
        def run(*arguments):
            ran.append(name)
            return arguments[0], None

        return run

    ran = []
    for name, (fits, _) in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, name, (fits, stub(name)))
    with torch._subclasses.FakeTensorMode():
        u, A, B = (torch.empty(*shape, device=device) for shape in ((2, 3, 8), (8, 4), (2, 3, 4)))
        selective_scan(u, u, A, B, B, layout="bld", **options)
    return ran[0]


def test_choice_of_the_backend(monkeypatch):
    assert chosen(monkeypatch, "cuda") == "triton" and chosen(monkeypatch, "cpu") == "cpu"
    monkeypatch.setattr(scan, "_MAMBA_SSM", True)
    assert chosen(monkeypatch, "cuda") == "triton"
    assert chosen(monkeypatch, "cuda", backend="mamba_ssm") == "mamba_ssm"
    monkeypatch.setattr(scan, "_TRITON", False)
    assert chosen(monkeypatch, "cuda") == "mamba_ssm"


def test_processors_get_the_interpreter_by_name_only(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(scan, "_NUMBA", False)
    assert chosen(monkeypatch, "cpu") == "reference" and chosen(monkeypatch, "cpu", backend="triton") == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="'triton' cannot run torch.float32 on cpu"):
        chosen(monkeypatch, "cpu", backend="triton")


def test_backends_refuse_what_they_cannot_run(monkeypatch):
    with pytest.raises(ValueError, match="'triton' cannot run torch.float64"):
        selective_scan(**double(tensors(1, 2, 3, 2)), **TRITON)
    monkeypatch.setattr(scan, "_MAMBA_SSM", True)
    fits = BACKENDS["mamba_ssm"][0]
    with torch._subclasses.FakeTensorMode():
        u, A = torch.empty(2, 3, 8, device="cuda"), torch.empty(8, 256, device="cuda")
        assert fits((u, u, A, u, u, None, None, None, None), True)
        assert not fits((u, u, A, u, u, None, None, None, A), True), "an initial state"
        assert not fits((u, u, torch.empty(8, 257, device="cuda"), u, u, None, None, None, None), True)
        assert not fits((u[:0], u, A, u, u, None, None, None, None), True), "no clip"
        assert not fits((u.cpu(), u, A, u, u, None, None, None, None), True)


def test_importing_the_scan_imports_no_triton():
    code = "import sys, kwslib.scan; sys.exit('triton' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class StandIn(torch.autograd.Function):
    """mamba_ssm's contract, its demands included; like it, the gradient of the last state is dropped."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        batch, channels, length = u.shape
        assert u.shape == delta.shape == z.shape and B.shape == C.shape == (batch, A.shape[1], length)
        assert u.dtype == delta.dtype == z.dtype == B.dtype == C.dtype
        assert A.dtype == D.dtype == delta_bias.dtype == torch.float32 and delta_softplus is True
        ctx.inputs = [t.detach().requires_grad_() for t in (u, delta, A, B, C, D, z, delta_bias)]
        with torch.enable_grad():
            ctx.y, last = selective_scan(*ctx.inputs, True, True, backend="reference")
        return ctx.y.detach(), last.detach()

    @staticmethod
    def backward(ctx, grad_y, *_):
        return *torch.autograd.grad(ctx.y, ctx.inputs, grad_y), None


@pytest.mark.parametrize("layout", ["bld", "bdl"])
def test_the_authors_kernel_gets_what_it_demands(monkeypatch, layout):
    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = lambda *arguments: StandIn.apply(*arguments[:-1]) if arguments[-1] else None
    for name in ("mamba_ssm", "mamba_ssm.ops", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(BACKENDS, "mamba_ssm", (lambda tensors, by_name: True, scan._mamba_ssm_scan))
    arguments = inputs(2, 7, 6, 3, absent=("initial_state",), layout=layout)
    arguments |= {k: arguments[k].detach().bfloat16().requires_grad_() for k in ("D", "B", "delta_bias")}
    results = []
    for backend in ("mamba_ssm", "reference"):
        y, last = selective_scan(
            **arguments, delta_softplus=True, layout=layout, return_last_state=True, backend=backend
        )
        grads = torch.autograd.grad(y.square().sum(), [arguments[k] for k in NAMES[:8]], retain_graph=True)
        results.append((y, last, *grads))
        if backend == "mamba_ssm":
            with pytest.raises(ValueError, match="no gradient of the last state"):
                last.sum().backward()
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
