"""Errors in one sentence, and files that are never half-written.

Whatever a person can get wrong ends in a `KwsError`, which `cli` prints as one line on stderr (as it does a full disk
or a folder that is not writable). Every file is written through `replacing`, so that it is whole or absent."""

import csv
import errno
import glob
import hashlib
import json
import os
import platform
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, nothing stops two runs in one folder
    fcntl = None

SAMPLE_RATE = 16_000  # Hz, everywhere in kwslib
CLIP = 16_000  # samples in a packed clip: one second
UNWRITABLE = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)
BROKEN_TEXT = (ValueError, RecursionError, csv.Error)  # what JSON and CSV raise that are none


def cores():
    """How many cores this process may use (not every system can say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class KwsError(ValueError):
    """A mistake that the user can fix: the message, one line, names the file or key and the remedy."""

    def __init__(self, message):  # what it quotes may have lines, or be very long
        super().__init__(" ".join(str(message)[:3000].splitlines()))


def remedy(error, otherwise):
    """What to do about a file that could not be read: one that may not be read is not to be deleted."""
    return "see to it that you may read it" if isinstance(error, PermissionError) else otherwise


def _ours(file):
    """Whether no other process holds the lock of this open file; it is then ours, until the file is closed."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextmanager
def locked(path, busy):
    """Hold the lock file `path`, which names this process. Raises KwsError, `busy` and the process that holds it."""
    while True:  # until the file that we have locked is the one that is there: its last holder deletes it
        file = open(path, "a+")
        if not _ours(file):
            file.seek(0)
            raise KwsError(f"{busy}: {file.read() or 'another process'}; wait until it ends")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(path)


@contextmanager
def replacing(path):
    """Yield a scratch file beside `path`, empty; it becomes `path` only if the block succeeds. Scratch files of
    processes that were killed go."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stray in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError), open(stray, "rb") as file:
                if stray != scratch and _ours(file):
                    stray.unlink()
        # with the mode that the umask leaves
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb") as held:
            _ours(held)
            yield scratch
            sync(scratch)
            os.replace(scratch, path)
    except OSError as e:
        if e.errno and (e.filename is None or str(e.filename) == str(scratch)):  # name what the user knows
            raise OSError(e.errno, e.strerror, str(path)) from None
        raise
    finally:
        with suppress(OSError):
            scratch.unlink()


def sync(path):
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    except (OSError, *BROKEN_TEXT) as e:
        raise KwsError(f"{what} {path} cannot be read as JSON ({e}); {remedy(e, 'make it again')}") from None


def write_csv(path, rows, columns=None):
    """Write a list of dicts as CSV, atomically. columns: their keys, needed where the list may be empty."""
    with replacing(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(columns or rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """Read a CSV as a list of dicts of strings."""
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def file_hash(*paths, kind="sha256"):
    """Hex digest of one or more files, end to end."""
    digest = hashlib.new(kind)
    for path in paths:
        with open(path, "rb") as f:
            while piece := f.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def cli(main):
    """Run `main()` as a program: one sentence and exit status 2 for what the user can fix, 130 for Ctrl-C. Of several
    processes on one machine (torchrun) the first alone says it."""
    try:
        sys.exit(main())
    except KwsError as e:
        message = e
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full and e.errno != errno.EROFS and not isinstance(e, UNWRITABLE):
            raise
        remedy = "free some space" if full else "choose a folder you may write to"
        message = f"cannot write {e.filename or 'the output'}: {e.strerror}; {remedy}"
    except KeyboardInterrupt:
        print("stopped before the end; the same command continues or starts again", file=sys.stderr)
        sys.exit(130)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
