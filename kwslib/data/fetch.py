"""Files from the network, resumed and verified, and the progress bar that long work shows."""

import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from tqdm import tqdm

from kwslib.io import KwsError, file_hash, locked

KINDS = ("md5", "sha1", "sha256", "sha512")  # of checksums


def progress(total, what, done=0, unit="clip"):
    """A progress bar; in a log or a notebook, where it cannot be redrawn, a line every half minute."""
    pause = 0.1 if sys.stderr.isatty() else 30  # seconds
    redrawn = dict(delay=pause, mininterval=pause, maxinterval=pause)
    return tqdm(total=total, desc=what, initial=done, unit=unit, unit_scale=True, **redrawn)


def name_of(url):
    """The name of the file that a URL is of. Raises KwsError for what is no such URL."""
    try:
        parts = urlsplit(url)
        name = PurePosixPath(parts.path).name
        if parts.scheme in ("http", "https") and parts.hostname and name.strip(".") and name.isprintable():
            return name
    except (ValueError, TypeError, AttributeError):
        pass
    raise KwsError(f"url is {url!r:.200}; give that of a file, as in https://example.org/clips.tar.gz")


def fetch(url, path, checksums):
    """Download `url` to `path` unless it is there already; verify it either way. Raises KwsError.

    checksums: {kind: hex digest}. Until it is verified, the file is called `<path>.part`."""
    if odd := [kind for kind in checksums if kind not in KINDS]:
        raise KwsError(f"checksum {odd[0]!r} is not known; give {', '.join(KINDS)}")
    if path.exists():
        return verify(path, path, checksums)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), f"{path} is being fetched by another run"):
        verify(path if path.exists() else download(url, path.with_name(path.name + ".part")), path, checksums)


def verify(part, path, checksums):
    """Compare the file `part` with its checksums; if they agree, it becomes `path`. Raises KwsError."""
    for kind, right in checksums.items():
        if (found := file_hash(part, kind=kind)) != right:
            if part != path:
                part.unlink()  # or every later run would continue it
            raise KwsError(f"{path} has a wrong {kind} checksum ({found}); delete it and fetch it again")
    os.replace(part, path)


def download(url, part, tries=4):
    """Download `url` to the file `part`, continuing where an earlier try ended. Raises KwsError."""
    for attempt in range(tries):
        time.sleep(attempt)
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                done = done if reply.status == 206 else 0  # or the server starts again, and so do we
                total = done + int(reply.headers.get("Content-Length") or 0)
                bar = progress(total, f"fetching {part.stem}", done, "B")
                with bar, open(part, "ab" if done else "wb") as f:
                    while piece := reply.read(1 << 18):
                        bar.update(f.write(piece))
            if part.stat().st_size >= total:
                return part
            problem = "the connection ended early"
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, ValueError) as e:
            if getattr(e, "code", None) == 416 and done:  # nothing is left to send: the checksum decides
                return part
            problem = e
    raise KwsError(f"cannot fetch {url} ({problem}); check the network and run again to continue")
