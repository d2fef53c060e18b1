"""Mamba models of other packages on kwslib's scan: `patch_transformers()`, for Hugging Face's transformers.

transformers' models of the first Mamba (Mamba, Falcon-Mamba, Jamba, Zamba) call five functions of their own module by
name: scan, scan of one step, fused block, and two convolutions. A patch puts another function behind each name, which
for tensors on a CPU takes kwslib's scan, and for the other four transformers' own PyTorch code, where a CUDA package
may have taken their place. Tensors elsewhere get what they got before. Nothing of a model changes: a patch holds for
models made before and after it, and a model can be saved, copied or trained on as if it had never been there."""

import functools
import inspect
from importlib import import_module, metadata

from kwslib.scan.reference import selective_scan

TESTED = "5.15.0, 5.23.0 and 5.24.0"  # in between, the functions are the same to the letter
MODELS = ("mamba", "falcon_mamba", "jamba", "zamba")
_SCAN = "mamba_selective_scan"
_PLAIN = ("mamba_inner_fn", "mamba_selective_state_update", "causal_conv1d_fn", "causal_conv1d_update")
_ARGUMENTS = "hidden_states dt A B C D z delta_bias delta_softplus return_last_state".split()


class Patch:
    """What patch_transformers() put in place; `undo()`, or the end of its `with` block, takes it back."""

    def __init__(self, modules):
        self._before = []  # (module, name, function)
        for module in modules:
            for name in (_SCAN, *_PLAIN):
                if original := vars(module).get(name):  # Zamba has no fused block
                    self._before.append((module, name, original))
                    setattr(module, name, _on_cpu(original, _scan if name == _SCAN else inspect.unwrap(original)))

    def undo(self):
        while self._before:
            setattr(*self._before.pop())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.undo()


def patch_transformers():
    """Let transformers' Mamba, Falcon-Mamba, Jamba and Zamba train and run through kwslib's scan on a CPU.

    For good when called, or for a block of code: `with patch_transformers(): ...`. Raises ImportError without
    transformers, and ValueError for a version whose models are built otherwise (before 5.15.0)."""
    try:
        modules = [import_module(f"transformers.models.{name}.modeling_{name}") for name in MODELS]
    except ModuleNotFoundError as e:
        raise ImportError(f"patch_transformers() needs transformers 5.15 or newer, with its Mamba models: {e}") from e
    for module in modules:
        scan = inspect.unwrap(getattr(module, _SCAN, lambda: None))
        if list(inspect.signature(scan).parameters)[: len(_ARGUMENTS)] != _ARGUMENTS:
            version = metadata.version("transformers")
            raise ValueError(
                f"transformers {version} is built otherwise than those that patch_transformers() knows (5.15 and "
                f"newer; tested with {TESTED}): {module.__name__} has no {_SCAN}({', '.join(_ARGUMENTS)}, ...)"
            )
    return Patch(modules)


def _on_cpu(original, function):
    @functools.wraps(inspect.unwrap(original))
    def chosen(first, *arguments, **options):
        if first.device.type != "cpu":
            return original(first, *arguments, **options)
        if any(options.get(key) is not None for key in ("cu_seqlens", "seq_idx")):
            raise ValueError("packed sequences (cu_seqlens, seq_idx) run into each other on a CPU; put one in each row")
        return function(first, *arguments, **options)

    return chosen


def _scan(u, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False, **_):
    """transformers' mamba_selective_scan; it too starts from zeros, and leaves use_mambapy and its like to others."""
    return selective_scan(u, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
