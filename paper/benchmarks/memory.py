"""Peak memory of a computation."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import torch


def peak_memory(run, device):
    """MB (1e6 bytes) that `run()` takes beyond what is in use before it, or None where that cannot be seen."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would hide growth into it
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    except (OSError, AttributeError, TypeError):  # not Linux with glibc: only what exceeds all before is seen
        before = resident("VmHWM")
    run()
    grown = resident("VmHWM") - before
    return grown if grown > 0 else None


def resident(field):
    """MB of resident memory: now (VmRSS), or at most so far (VmHWM), which is all that systems other than Linux say."""
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return 0.0
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
