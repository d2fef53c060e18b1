"""Files from the network, resumed and verified, and the progress line that long work shows."""

from __future__ import annotations

import http.client
import os
import sys
import time
import urllib.error
import urllib.request

from .io import KwsError, file_hash


def verify(path, checksums):
    """Raise KwsError unless the file at `path` has all of the checksums {kind: hex digest}."""
    for kind, right in checksums.items():
        if (found := file_hash(path, kind)) != right:
            raise KwsError(f"{path} has a wrong {kind} checksum ({found}); delete and fetch it again")


def fetch(url, path, checksums, tries=4):
    """Download `url` to `<path>.part`, going on where an earlier try ended; once verified it is `path`."""
    part = path.with_name(path.name + ".part")
    for attempt in range(1, tries + 1):
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                done = done if reply.status == 206 else 0  # else the server starts over, so do we
                total = done + int(reply.headers.get("Content-Length") or 0)
                bar = Progress(total, f"fetching {path.name}", done, "B")
                with open(part, "ab" if done else "wb") as f:
                    while piece := reply.read(1 << 18):
                        f.write(piece)
                        bar.update(len(piece))
                bar.close()
            if part.stat().st_size >= total:
                break
            problem = "the connection ended early"
        except urllib.error.HTTPError as e:
            if e.code == 416:  # nothing is left to send: whole, or not what it should be
                break
            problem = e
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as e:
            problem = e
        if attempt < tries:
            time.sleep(attempt)
    else:
        raise KwsError(f"cannot fetch {url} ({problem}); check the network and run again to go on")
    try:
        verify(part, checksums)
    except KwsError:
        part.unlink()  # else every later run would go on from it
        raise
    os.replace(part, path)


class Progress:
    """A tqdm bar on a terminal that has it, else a plain line on stderr every 30 seconds."""

    def __init__(self, total, what, done=0, unit="clip"):
        self.total, self.what, self.done, self.last, self.bar = total, what, done, time.monotonic(), None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc=what, initial=done, unit=unit, unit_scale=True)
            except ImportError:
                pass

    def update(self, n):
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() - self.last > 30:
            self.last = time.monotonic()
            print(f"{self.what}: {self.done} of {self.total or '?'}", file=sys.stderr, flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()
