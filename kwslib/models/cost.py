"""What a model costs: its parameters and its multiply-accumulates."""

import torch
from torch import nn

from kwslib.io import KwsError

_COUNTERS = {}  # kind of module: function of module, input, output


def count_parameters(model):
    """Every parameter, the ones inside the scan included: what the paper's count leaves out."""
    return sum(p.numel() for p in model.parameters())


def macs_of(*kinds):
    """Decorate a function (module, input, output) -> multiply-accumulates that are not those of layers inside it.

    Every kind of module with parameters of its own needs one, as does what multiplies activations with each other."""

    def add(count):
        _COUNTERS.update(dict.fromkeys(kinds, count))
        return count

    return add


@macs_of(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _(layer, x, y):
    return y.numel() * layer.weight[0].numel()


@macs_of(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding)
def _(layer, x, y):
    return 0  # by convention: element by element, or a look-up


def count_macs(model, inputs):
    """Multiply-accumulates of one forward pass of `inputs` (1, T, F), in evaluation mode.

    Raises KwsError for a layer that has parameters and that nothing is known of. PyTorch's FlopCounterMode gives the
    same for matrix products, and takes seconds to import."""
    macs, hooks, training = [], [], model.training
    try:
        for module in model.modules():
            kind = type(module)
            if count := next((_COUNTERS[k] for k in kind.__mro__ if k in _COUNTERS), None):
                add = lambda layer, args, out, count=count: macs.append(count(layer, args[0], out))  # noqa: E731
                hooks.append(module.register_forward_hook(add))
            elif list(module.parameters(recurse=False)):
                raise KwsError(
                    f"layer {kind.__name__} has parameters, but no count of work; give it one with `macs_of`"
                )
        with torch.no_grad():
            model.eval()(inputs, None)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sum(macs)
