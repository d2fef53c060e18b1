"""Errors in one sentence, and files that are never half-written.

Everything that a person can get wrong ends in a `KwsError`, which `cli` turns (as it does a full disk or a
folder that is not writable) into one line on stderr. Everything is written through `replacing`, so that a
file either has its final name and is whole, or is not there.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import sys
from contextlib import contextmanager
from pathlib import Path

SAMPLE_RATE = 16_000  # Hz, everywhere in kwslib
CLIP = 16_000  # samples in a packed clip: one second
_UMASK = os.umask(0)
os.umask(_UMASK)


class KwsError(Exception):
    """A mistake the user can mend: the message names the file or key and the mend."""


@contextmanager
def replacing(path):
    """Yield a scratch path beside `path`; move it to `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        os.chmod(scratch, 0o666 & ~_UMASK)  # some writers create files for the owner alone
        with open(scratch, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path, value):
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path, what="file"):
    """Read JSON. Raises KwsError, naming `what` and the path, where it is absent or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise KwsError(f"{what} {path} does not exist") from None
    except (OSError, ValueError) as e:
        raise KwsError(f"{what} {path} cannot be read as JSON ({e}); make it anew") from None


def write_csv(path, rows):
    """Write a non-empty list of dicts as CSV, atomically."""
    with replacing(path) as scratch, open(scratch, "w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """Read a CSV as a list of dicts of strings."""
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def file_hash(*paths, kind="sha256"):
    """Hex digest of one or more files, end to end."""
    digest = hashlib.new(kind)
    for path in paths:
        with open(path, "rb") as f:
            while piece := f.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def cores():
    """How many cores this process may use (not every system can say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def keep_memory():
    """Let the C library keep freed memory instead of returning it: a step's activations then cause no page faults.

    Training on a processor gains a fifth. Only glibc has these switches; elsewhere nothing happens.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def machine():
    """The machine and the versions that a measurement was made with."""
    import torch

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


def cli(main):
    """Run `main()` as a program: one sentence and exit status 2 for what the user can mend."""
    try:
        sys.exit(main())
    except KwsError as e:
        message = str(e)
    except OSError as e:
        if e.errno not in (
            errno.ENOSPC,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.EDQUOT,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
        ):
            raise
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some space" if full else "choose a folder you may write to"
        message = f"cannot write {e.filename or 'the output'}: {e.strerror}; {mend}"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
