"""The machine: its cores and memory, the device and precision of a run, and its description beside a measurement."""

import contextlib
import ctypes
import os
import platform
import re
from pathlib import Path

import torch

from kwslib.io import KwsError, cores


@contextlib.contextmanager
def threads(count):
    """PyTorch on `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory():
    """Let the C library keep freed memory: a step's activations then cause no page faults, and training on a CPU gains
    a fifth. Only glibc has these switches; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def pick_device(name):
    """auto: CUDA where there is a GPU, else the CPU. Raises KwsError for a device that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise KwsError(f"device {name!r} is not known; set it to auto, cpu, cuda or mps")
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise KwsError("device is cuda but PyTorch sees no GPU here; set device to auto or cpu")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if name == "mps" and not torch.backends.mps.is_available():
        raise KwsError("device is mps but this is no Mac that PyTorch can use; set device to auto or cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise KwsError(f"device {name!r} is not known; set it to auto, cpu, cuda or mps") from None


def pick_precision(name, device):
    """True for bf16 autocast. auto: where the device multiplies bf16 natively."""
    if name != "auto":
        return name == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast_to(device, bf16):
    """The context in which `device` computes in bf16, or one that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def machine():
    """The machine and the versions that a measurement was made with."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "cpu": named[1].strip() if named else platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
