"""The Mamba mixer and retention: names, start, causality, carried state; both forms of retention agree."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import shaken

from kwslib.io import KwsError
from kwslib.models import build
from kwslib.models.mamba import Mamba, MambaBlock
from kwslib.models.retnet import RetNetBlock
from kwslib.scan import use_backend

MAMBA_SSM = {  # mamba_ssm.Mamba(d_model=64).state_dict()
    "A_log": (128, 16),
    "D": (128,),
    "in_proj.weight": (256, 64),
    "conv1d.weight": (128, 1, 4),
    "conv1d.bias": (128,),
    "x_proj.weight": (36, 128),
    "dt_proj.weight": (128, 4),
    "dt_proj.bias": (128,),
    "out_proj.weight": (64, 128),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_mixer_runs_on_the_backend_it_is_given():
    mixers = [Mamba(16, scan_backend=backend) for backend in (None, "reference")]
    mixers[1].load_state_dict(mixers[0].state_dict())
    x = torch.randn(2, 12, 16)
    names = [{type(node).__name__ for node in walk(mixer(x).grad_fn)} for mixer in mixers]
    assert "ScanBackward" in names[0] and "ScanBackward" not in names[1]
    with use_backend("reference"):
        assert torch.equal(mixers[0](x), mixers[1](x))


def walk(node):
    """A result's graph, from its last operation to the first."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


def test_mixer_has_the_names_and_shapes_of_mamba_ssm():
    mixer = Mamba(64)
    assert {k: tuple(v.shape) for k, v in mixer.state_dict().items()} == MAMBA_SSM
    theirs = {k: torch.randn(shape) for k, shape in MAMBA_SSM.items()}
    mixer.load_state_dict(theirs, strict=True)
    assert all(torch.equal(v, theirs[k]) for k, v in mixer.state_dict().items())


def test_mixer_sees_no_future():
    torch.manual_seed(0)
    mixer, x = Mamba(16), torch.randn(2, 12, 16, requires_grad=True)
    y = mixer(x)
    for t in (0, 5, 11):
        (slope,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert slope[:, t + 1 :].abs().sum() == 0 and (slope[:, : t + 1].abs().sum((0, 2)) > 0).all()


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 44), max_size=6), batch=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_chunks_with_carried_state_give_the_whole(cuts, batch, seed):
    torch.manual_seed(seed)
    block, x = MambaBlock(24, 0.1).eval(), 3 * torch.randn(batch, 45, 24)
    edges, state, parts = sorted({0, *cuts, 45}), None, []
    with torch.no_grad():
        for first, last in zip(edges, edges[1:]):
            y, state = block(x[:, first:last], state, return_state=True)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), block(x), atol=1e-5, rtol=1e-5)


def test_step_gives_what_forward_gives():
    torch.manual_seed(0)
    mixer, x, state, frames = Mamba(32), torch.randn(2, 40, 32), None, []
    with torch.no_grad():
        for frame in x.unbind(1):
            y, state = mixer.step(frame, state)
            frames.append(y)
        torch.testing.assert_close(torch.stack(frames, 1), mixer(x), atol=1e-5, rtol=1e-5)
        assert [tuple(t.shape) for t in state] == [(2, 3, 64), (2, 64, 16)]  # however many frames came


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(1, 9),
    d_model=st.integers(1, 40),
    d_conv=st.integers(2, 5),
    carried=st.booleans(),
)
def test_mixer_agrees_with_itself_in_float64(batch, length, d_model, d_conv, carried):
    torch.manual_seed(length)
    mixer = Mamba(d_model, d_conv=d_conv)
    x = torch.randn(batch, length, d_model, requires_grad=True)
    inner = 2 * d_model
    state = (torch.randn(batch, d_conv - 1, inner), torch.randn(batch, inner, 16)) if carried else None
    exact, exact_x = copy.deepcopy(mixer).double(), x.detach().double().requires_grad_()
    exact_state = tuple(t.double() for t in state) if carried else None
    y, (past, h) = mixer(x, state, return_state=True)
    exact_y, (exact_past, exact_h) = exact(exact_x, exact_state, return_state=True)
    (y.square().sum() + h.sum()).backward()
    (exact_y.square().sum() + exact_h.sum()).backward()
    pairs = [(y, exact_y), (past, exact_past), (h, exact_h), (x.grad, exact_x.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(mixer.parameters(), exact.parameters())]
    for a, b in pairs:
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=1e-4)


def test_gradients_flow_through_carried_state():
    torch.manual_seed(0)
    mixer, x = Mamba(16), torch.randn(2, 20, 16)
    weights = list(mixer.parameters())
    whole = torch.autograd.grad(mixer(x).square().sum(), weights)
    y, state = mixer(x[:, :7], return_state=True)
    parts = torch.autograd.grad(y.square().sum() + mixer(x[:, 7:], state).square().sum(), weights)
    for a, b in zip(parts, whole):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["frame", "clip"])
@pytest.mark.parametrize("length", [1, 25])
def test_recurrent_retention_equals_parallel(norm, length):
    """Always inside the retention module; for a block only where each frame is normalised on its own."""
    torch.manual_seed(0)
    block, x = RetNetBlock(32, 4, 0.1, norm=norm).double().eval(), torch.randn(2, length, 32, dtype=torch.float64)
    with torch.no_grad():
        inputs = block.inputs(x)
        module = in_steps(block.retention, *inputs)
        torch.testing.assert_close(module, block.retention(*inputs), atol=1e-12, rtol=0)
        apart = (in_steps(block, x) - block(x)).abs().max()
    assert apart < 1e-12 if norm == "frame" or length == 1 else apart > 1e-3


def in_steps(module, *inputs):
    """What `module.step` gives for inputs (B, T, d), frame by frame, with the state carried."""
    state, frames = None, []
    for t in range(inputs[0].shape[1]):
        y, state = module.step(*(x[:, t : t + 1] for x in inputs), state)
        frames.append(y)
    return torch.cat(frames, 1)


def test_a_block_sees_the_future_only_through_a_norm_over_the_clip():
    for norm, sees in (("clip", True), ("frame", False)):
        torch.manual_seed(0)
        block, x = RetNetBlock(16, 2, 0.0, norm=norm), torch.randn(1, 9, 16, requires_grad=True)
        (slope,) = torch.autograd.grad(block(x)[:, 4].sum(), x)
        assert bool(slope[:, 5:].any()) is sees and slope[:, :5].abs().sum((0, 2)).gt(0).all()


def test_a_norm_that_is_not_known():
    with pytest.raises(KwsError, match="norm 'batch' is not known; choose one of clip, frame"):
        build("retnet", norm="batch")


def test_recurrent_retention_through_the_whole_model():
    model, width = shaken("retnet", norm="frame"), 128
    with torch.no_grad():
        x, _ = model.frontend(torch.randn(1, 30, width), None)
        frames, parallel = x, x
        for block in model.blocks:
            frames, parallel = in_steps(block, frames), block(parallel)
    torch.testing.assert_close(frames, parallel, atol=1e-4, rtol=1e-3)
