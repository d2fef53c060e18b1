"""Every implementation of the selective scan that the benchmarks compare, each in the layout that it is written for.

A maker takes a scan's arguments by name, of its own layout (CHANNELS_FIRST or "bld"), and returns a function that runs
the scan. Those that need a C++ compiler: scan_peers.cpp, and what `torch.compile` makes of three of the others.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from kwslib.scan import selective_scan

STATE = 16
CHANNELS_FIRST = ("mamba_ssm", "transformers", "mamba_ssm_cuda")  # their sequences are (batch, channels, length)


def inputs(batch, length, channels, state=STATE, grad=False, device="cpu", dtype=torch.float32):
    """Arguments of a scan by name, in layout "bld", of the size that a fresh Mamba gives them.

    dtype: that of the sequences; the rest is float32, as autocast leaves it.
    """
    g = torch.Generator().manual_seed(0)
    made = {k: torch.randn(batch, length, channels, generator=g) for k in ("u", "delta", "z")}
    made |= {k: torch.randn(batch, length, state, generator=g) for k in ("B", "C")}
    made = {k: v.to(dtype) for k, v in made.items()}
    made["A"] = -torch.arange(1, state + 1.0).repeat(channels, 1)
    made |= {"D": torch.ones(channels), "delta_bias": torch.rand(channels, generator=g) - 4}
    return {k: v.to(device).requires_grad_(grad) for k, v in made.items()}


def channels_first(t):
    """The same arguments with sequences (batch, channels, length), each in memory of its own."""
    return {k: v.detach().mT.contiguous().requires_grad_(v.requires_grad) if v.dim() == 3 else v for k, v in t.items()}


def kwslib_scan(t, backend=None):
    return partial(selective_scan, **t, delta_softplus=True, layout="bld", backend=backend)


def plain_loop(t):
    return lambda: selective_scan(**t, delta_softplus=True, layout="bld", backend="reference")


def cpp_scan(t):
    """scan_peers.cpp: built on the first call."""
    scan, given = cpp_extension()[0].scan, [t[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    return lambda: scan(*given)


@functools.cache
def cpp_extension():
    """The extension, built for this processor, and the seconds that it took. Raises RuntimeError without a compiler."""
    from torch.utils.cpp_extension import load_inline

    if not compiler():
        raise RuntimeError("no compiler")
    source, started = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8"), time.perf_counter()
    flags = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        built = load_inline(
            "scan_peers", source, functions=["scan"], build_directory=folder,
            extra_cflags=flags, extra_ldflags=["-fopenmp"],
        )  # fmt: skip
    return built, time.perf_counter() - started


def compiler():
    """Path of the C++ compiler that PyTorch would call, or None."""
    return shutil.which(os.environ.get("CXX", "g++").split()[-1])


def mamba_ssm_reference(t):
    """mamba_ssm's plain PyTorch; its package asks for its CUDA extension when imported. Where it is not installed, a
    stand-in answers."""
    extension = "selective_scan_cuda"
    standing_in = extension not in sys.modules and importlib.util.find_spec(extension) is None
    if standing_in:
        sys.modules[extension] = ModuleType(extension)
    try:
        scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    finally:
        if standing_in:
            del sys.modules[extension]
    return partial(scan, **t, delta_softplus=True)


def mamba_ssm_cuda(t):
    """The authors' CUDA kernel."""
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return partial(scan, **t, delta_softplus=True)


def transformers_scan(t):
    """transformers' loop, from under the wrapper that looks for CUDA kernels."""
    scan = inspect.unwrap(importlib.import_module("transformers.models.mamba.modeling_mamba").mamba_selective_scan)
    rest = {k: v for k, v in t.items() if k not in ("u", "delta")}
    return partial(scan, t["u"], t["delta"], **rest, delta_softplus=True)


def mambapy_scan(t):
    """mambapy's parallel scan, with the softplus before it and the gate behind it as its block has them."""
    scan = partial(importlib.import_module("mambapy.mamba").MambaBlock.selective_scan, None)

    def run():
        delta = F.softplus(t["delta"] + t["delta_bias"])
        return scan(t["u"], delta, t["A"], t["B"], t["C"], t["D"]) * F.silu(t["z"])

    return run


def torch_associative_scan(t):
    """PyTorch's own prefix scan over pairs (decay, input), whose composition is h -> a2 (a1 h + b1) + b2."""
    scan = importlib.import_module("torch._higher_order_ops").associative_scan

    def compose(first, then):
        return first[0] * then[0], then[0] * first[1] + then[1]

    def run():
        delta = F.softplus(t["delta"] + t["delta_bias"])
        pairs = torch.exp(delta[..., None] * t["A"]), (delta * t["u"])[..., None] * t["B"][:, :, None]
        h = scan(compose, pairs, 1, combine_mode="generic")[1]  # (b, l, d, n)
        return ((h * t["C"][:, :, None]).sum(-1) + t["D"] * t["u"]) * F.silu(t["z"])

    return run


def compiled(make):
    """The maker of what `torch.compile` makes of a maker's scan, for its shapes alone."""
    return lambda t: torch.compile(make(t), fullgraph=True, dynamic=False)


def fresh_compiler():
    """Forget what was compiled, and keep no copy on disk: compile times are those of a first time."""
    import torch._inductor.config as config

    torch._dynamo.reset()
    # in this process: a pool's work would be taken for that of others
    config.force_disable_caches, config.compile_threads = True, 1


# name -> maker; kwslib first, whose results the others' are compared with
SCANS = {
    "kwslib": kwslib_scan,
    "cpp": cpp_scan,
    "mambapy": mambapy_scan,
    "mamba_ssm": mamba_ssm_reference,
    "transformers": transformers_scan,
    "associative_scan": torch_associative_scan,
}
SOURCES = {"loop": plain_loop, "mambapy": mambapy_scan, "associative_scan": torch_associative_scan}
COMPILED = {f"compiled_{name}": compiled(make) for name, make in SOURCES.items()}


def available(scans, given):
    """Those that run on these arguments, and for the others the reason. What would be compiled is tried as it is."""
    works, missing = {}, {}
    for name, make in scans.items():
        try:
            if name in COMPILED and not compiler():
                raise RuntimeError("no compiler")
            attempt = SOURCES[name.removeprefix("compiled_")] if name in COMPILED else make
            attempt(channels_first(given) if name in CHANNELS_FIRST else given)()
            works[name] = make
        except (ImportError, AttributeError, TypeError, RuntimeError) as e:
            missing[name] = reason(e)
    return works, missing


def reason(error):
    """An exception in one line."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return text if text == "no compiler" else f"{type(error).__name__}: {text}"
