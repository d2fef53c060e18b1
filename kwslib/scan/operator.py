"""What the fused scans have in common: a forward and a backward pass made one differentiable operator.

Under torch.compile and torch.export a scan is the operator `kwslib::<name>`; called directly it goes around the
operator's dispatch, which costs as much as the scan of one short clip. First derivatives come from the kernels, their
own derivatives from the plain loop; vmap runs the kernels once for each of its slices."""

from functools import partial

import torch
from torch.autograd import forward_ad

from kwslib.scan.reference import reference_scan

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? initial"


def scan_operator(name, forward_pass, backward_pass, chunk):
    """-> a function like reference_scan; registers `kwslib::name` and `kwslib::name_backward`.

    forward_pass(nine tensors, softplus, keep) returns new_outputs(u, A, keep, chunk), filled in. backward_pass(nine
    tensors, softplus, kept, grad_y, grad_last or None) returns the gradients of the nine tensors, each contiguous and
    of its tensor's shape and dtype; an empty one for each that is absent."""

    Gradients = _function("ScanGradients", backward_pass, _save_backward, _second_gradients)

    def gradients(ctx, *given):
        plain = not (torch.is_grad_enabled() or _transforming())  # who has grad mode on may differentiate once more
        return _gradients(ctx, *given, backward=backward_pass if plain else Gradients.apply)

    Scan = _function("Scan", forward_pass, _save, gradients)

    def scan(*arguments):
        *tensors, softplus = arguments
        train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        plain = type(tensors[0]) in (torch.Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
        train = train or plain and _transforming()  # a transformation further out may ask for gradients
        run = operators[0] if not plain else Scan.apply if train else forward_pass
        return run(*tensors, bool(softplus), train)[:2]

    def operator(end, function, fake, more, results):
        schema = f"({_INPUTS}, bool softplus, {more}) -> ({', '.join(results * ['Tensor'])})"
        made = torch.library.custom_op(f"kwslib::{name}{end}", function, mutates_args=(), schema=schema)
        made.register_fake(fake)
        made.register_vmap(partial(_each_slice, getattr(torch.ops.kwslib, name + end)))
        return made

    forward = operator("", forward_pass, lambda u, _, A, *more: new_outputs(u, A, more[-1], chunk), "bool keep", 3)
    more = "Tensor kept, Tensor grad_y, Tensor? grad_last"
    backward = operator("_backward", backward_pass, _backward_fake, more, 9)
    operators = [getattr(torch.ops.kwslib, name + end) for end in ("", "_backward")]
    forward.register_autograd(partial(_gradients, backward=operators[1]), setup_context=_save)
    backward.register_autograd(_second_gradients, setup_context=_save_backward)
    return scan


def _function(name, run, save, gradients):
    """A pass as a torch.autograd.Function that torch.func can transform; profiles show it under its name."""
    methods = {"forward": run, "setup_context": save, "backward": gradients}
    methods["vmap"] = lambda info, in_dims, *inputs: _each_slice(made.apply, info, in_dims, *inputs)
    base = torch.autograd.Function
    made = type(base)(name, (base,), {key: staticmethod(method) for key, method in methods.items()})
    return made


def _transforming():
    """Inside torch.func's grad, vmap and their like, or a forward-mode derivative? autograd.Function asks so, too."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def new_outputs(u, A, keep, chunk):
    """-> y (b, l, d), last_state (b, d, n), and kept: h before each chunk but the first (b, chunks, n, d)."""
    (batch, length, channels), state = u.shape, A.shape[1]
    # Two more than needed, never touched: torch.export takes a size of 0 or 1 as a bound on the length.
    chunks = (length - 1) // chunk + 2 if keep else 0
    last, kept = (batch, channels, state), (batch, chunks, state, channels)
    return u.new_empty(u.shape), *(u.new_empty(shape, dtype=torch.float32) for shape in (last, kept))


def unit_stride(u, delta, A, B, C, D, z, bias, initial):
    """Sequences need neighbouring channels (or states) side by side; all else must be contiguous."""
    u, delta, B, C, z = (t if t is None or t.stride(2) == 1 else t.contiguous() for t in (u, delta, B, C, z))
    A, D, bias, initial = (None if t is None else t.contiguous() for t in (A, D, bias, initial))
    return u, delta, A, B, C, D, z, bias, initial


def _backward_fake(u, *others):
    return tuple(u.new_empty(0) if t is None else t.new_empty(t.shape) for t in (u, *others[:8]))


def _save(ctx, inputs, output):
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_last, _, backward):
    *tensors, kept = ctx.saved_tensors
    grad_y = torch.zeros_like(tensors[0]) if grad_y is None else grad_y
    gradients = backward(*tensors, ctx.softplus, kept, grad_y, grad_last)
    return *(None if t is None else g for t, g in zip(tensors, gradients)), None, None


def _save_backward(ctx, inputs, output):
    *tensors, ctx.softplus, _, grad_y, grad_last = inputs
    ctx.save_for_backward(*tensors, grad_y, grad_last)
    ctx.set_materialize_grads(False)


def _second_gradients(ctx, *gradients):
    """Gradients of the nine gradients, for the nine tensors, grad_y and grad_last: through the plain loop."""
    given = ctx.saved_tensors
    present = [i for i, t in enumerate(given) if t is not None]

    def first_gradients(*values):
        tensors = dict(zip(present, values))
        grad_y, grad_last = tensors.pop(9), tensors.pop(10, None)

        def scan(*values):
            full = dict(zip(tensors, values))
            return reference_scan(*(full.get(i) for i in range(9)), ctx.softplus)

        (_, last), pull = torch.func.vjp(scan, *tensors.values())
        return pull((grad_y, torch.zeros_like(last) if grad_last is None else grad_last))

    found, pull = torch.func.vjp(first_gradients, *(given[i] for i in present))
    wanted = (torch.zeros_like(f) if gradients[i] is None else gradients[i] for i, f in zip(present, found))
    second = dict(zip(present, pull(tuple(wanted))))
    return *(second.get(i) for i in range(9)), None, None, second[9], second.get(10)


def _each_slice(operator, info, in_dims, *inputs):
    """vmap: the operator once for each slice, as its sums over the clips must not go over slices."""
    slices = range(info.batch_size)
    parts = [operator(*(t if d is None else t.select(d, i) for t, d in zip(inputs, in_dims))) for i in slices]
    return tuple(map(torch.stack, zip(*parts))), (0,) * len(parts[0])
