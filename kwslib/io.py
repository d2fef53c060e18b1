"""Errors in one sentence, and files that are never half-written.

Whatever a person can get wrong ends in a `KwsError`, which `cli` prints as one line on stderr (as it does a full disk
or a folder that is not writable). Every file is written through `replacing`, so that it is whole or absent."""

import csv
import errno
import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

SAMPLE_RATE = 16_000  # Hz, everywhere in kwslib
CLIP = 16_000  # samples in a packed clip: one second
UNWRITABLE = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)


def cores():
    """How many cores this process may use (not every system can say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class KwsError(ValueError):
    """A mistake that the user can fix: the message names the file or key and the remedy."""


@contextmanager
def replacing(path):
    """Yield a scratch file beside `path`, empty; it becomes `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))  # with the mode that the umask leaves
        yield scratch
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
        raise KwsError(f"{what} {path} cannot be read as JSON ({e}); make it again") from None


def write_csv(path, rows, columns=None):
    """Write a list of dicts as CSV, atomically. columns: their keys, needed where the list may be empty."""
    with replacing(path) as scratch, open(scratch, "w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(columns or rows[0]), lineterminator="\n")
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


def cli(main):
    """Run `main()` as a program: one sentence and exit status 2 for what the user can fix, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except KwsError as e:
        message = e
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and e.errno != errno.EROFS and not isinstance(e, UNWRITABLE):
            raise
        remedy = "free some space" if full else "choose a folder you may write to"
        message = f"cannot write {e.filename or 'the output'}: {e.strerror}; {remedy}"
    except KeyboardInterrupt:
        print("stopped before the end; the same command continues or starts again", file=sys.stderr)
        sys.exit(130)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
