"""What a model costs: its parameters and its multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn


def count_parameters(model):
    """Every parameter, the ones inside the scan included: what the paper's count leaves out."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model, inputs):
    """Multiply-accumulates of one forward of `inputs` (1, T, F): every Linear and convolution, and what else multiplies.

    A module whose work is not in such layers says it in `own_macs(frames)`: the scan, retention, attention.
    PyTorch's FlopCounterMode gives the same for matrix products, and takes seconds to import.
    """
    total = 0

    def count(module, args, out):
        nonlocal total
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            total += out.numel() * module.weight[0].numel()
        elif hasattr(module, "own_macs"):
            total += len(args[0]) * module.own_macs(args[0].shape[1])

    hooks, training = [m.register_forward_hook(count) for m in model.modules()], model.training
    try:
        with torch.no_grad():
            model.eval()(inputs, None)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
