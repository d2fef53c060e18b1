"""Where clips come from: a folder of word folders, a zip or tar of one, or Speech Commands itself.

A source has a `card` (what it is, its licence, its checksum), `open(scratch)`, after which
`clips` lists what there is, `decode(clip)`, called in worker processes, and `noise()`.
Archives are never unpacked: members are read where they lie (a compressed tar, which has
no random access, is first inflated to one plain tar). `synthetic.py` is one more source.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .fetch import fetch, verify
from .io import CLIP, SAMPLE_RATE, KwsError, file_hash, replacing

SPLITS = ("training", "validation", "testing")
NOISE = "_background_noise_"
URL = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
CHECKSUMS = {
    "md5": "6b74f3901214cb2c2934e98196829835",
    "sha256": "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
}
CC_BY = "CC BY 4.0"
ATTRIBUTION = "Speech Commands, Pete Warden, 2018 (arXiv 1804.03209), CC BY 4.0"
LARGEST = 1 << 28  # bytes of one clip or noise file; more is taken for a mistake
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class Clip(NamedTuple):
    path: str  # word/file, as it stands in the index
    word: str
    speaker: str
    split: str
    where: Any = None  # how the source finds it again


class Unreadable(Exception):
    """One clip cannot be used; the message says why."""


def which_set(speaker):
    """The split of a speaker by the published rule (Warden 2018, section 6; `which_set` in its README):
    SHA-1 of the file name up to `_nohash_`, 10 % validation, 10 % testing."""
    largest = 2**27 - 1
    share = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (largest + 1) * (100 / largest)
    return "validation" if share < 10 else "testing" if share < 20 else "training"


def to_int16(wave):
    """Float samples in [-1, 1) -> (int16 samples, whether any had to be clipped). Exact for 16-bit input."""
    scaled = np.rint(wave * 32768.0)
    return np.clip(scaled, -32768, 32767).astype(np.int16), bool(np.abs(wave).max(initial=0) > 1)


def resample(wave, rate):
    """Float samples (n,) at `rate` Hz -> float32 (n',) at 16 kHz."""
    if rate == SAMPLE_RATE:
        return wave
    if not 4000 <= rate <= 192_000 or SAMPLE_RATE // np.gcd(rate, SAMPLE_RATE) > 3200:
        raise Unreadable(f"its rate of {rate} Hz cannot be resampled to {SAMPLE_RATE} Hz")
    import torch  # workers that need no resampling start without it
    from torchaudio.functional import resample as convert

    torch.set_num_threads(1)
    return convert(torch.from_numpy(np.ascontiguousarray(wave, np.float32)), rate, SAMPLE_RATE).numpy()


def decode_audio(data, seconds=None):
    """Bytes of a sound file -> float32 (n,), mono, 16 kHz; at most its first `seconds`. Raises Unreadable."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as f:
            frames = min(f.frames, int(seconds * f.samplerate)) if seconds else f.frames
            wave, rate = f.read(frames, dtype="float32", always_2d=True).mean(axis=1), f.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as e:
        raise Unreadable(f"not audio that libsndfile reads ({str(e).splitlines()[0][-60:]})") from None
    # A file that was cut off: libsndfile is silent about it in WAV (where the header promises more
    # bytes than there are) and in Ogg (whose last page must say that it is the last, and be whole).
    promised = int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0
    cut = len(wave) < frames or (8 < promised < 0xFFFFFFFF and promised > len(data))
    if data[:4] == b"OggS":
        last = data[data.rfind(b"OggS"):]
        sizes = last[27 : 27 + last[26]] if len(last) > 26 else b""
        cut = cut or not sizes or not last[5] & 4 or len(last) < 27 + last[26] + sum(sizes)
    if cut:
        raise Unreadable("truncated: it ends before its header says")
    if not len(wave):
        raise Unreadable("holds no samples")
    if not np.isfinite(wave).all():
        raise Unreadable("holds NaN or infinite samples")
    return resample(wave, rate)


@lru_cache(maxsize=1)
def _zip(path):
    return zipfile.ZipFile(path)


class Folder:
    """`<word>/<clip>` in a folder, a zip or a tar, with or without one folder around it all.

    Any format, rate and number of channels that libsndfile reads. A clip longer than one second
    is cut to its loudest second (as the corpus itself was made), a shorter one padded with zeros at its
    end. Speaker: the file name up to `_nohash_`. Split: validation_list.txt and testing_list.txt
    where present, else `which_set`.
    """

    def __init__(self, path, words=None):
        self.path, self.words, self.skipped = Path(path), words, []
        if not self.path.exists():
            raise KwsError(f"source {path} does not exist; give a folder, a zip or a tar of word folders")
        self.archive = self.path.is_file()
        self.card = {"name": self.path.name, "source": "archive" if self.archive else "folder",
                     "synthetic": False, "licence": "unknown: that of the source", "attribution": None,
                     "origin": self.path.name}
        if "speech_commands" in self.path.name.lower():
            self.card.update(licence=CC_BY, attribution=ATTRIBUTION)
        if self.archive:
            self.card["source_checksum"] = {"sha256": file_hash(self.path)}
        else:
            listing = repr(sorted(self._files(None).items()))  # names, sizes and times of change
            self.card["source_checksum"] = {"listing_sha256": hashlib.sha256(listing.encode()).hexdigest()}

    def _files(self, scratch):
        """{name: (bytes, offset in a tar)} of all files; refuses links and paths that leave the archive."""
        if not self.archive:
            paths = [Path(root) / f for root, _, files in os.walk(self.path) for f in files]
            known = {p.relative_to(self.path).as_posix(): p.stat() for p in paths if p.is_file()}
            return {name: (s.st_size, s.st_mtime_ns) for name, s in known.items()}
        try:
            if zipfile.is_zipfile(self.path):
                found = [(i.filename, i.is_dir(), stat.S_ISLNK(i.external_attr >> 16), (i.file_size, None))
                         for i in _zip(self.path).infolist()]
            else:
                with tarfile.open(self._plain_tar(scratch), "r:") as tar:
                    found = [(m.name, m.isdir(), not (m.isdir() or m.isreg()) or m.sparse,
                              (m.size, m.offset_data)) for m in tar]
        except BROKEN as e:
            raise KwsError(f"archive {self.path} is broken or of no known kind ({e}); get it anew") from None
        for name, _, is_link, _ in found:
            if is_link or name.startswith("/") or ".." in PurePosixPath(name).parts:
                kind = "is a link" if is_link else "leaves its folder"
                raise KwsError(f"archive {self.path} is refused: member {name!r} {kind}; leave that out")
        return {name: where for name, is_folder, _, where in found if not is_folder}

    def _plain_tar(self, scratch):
        """The archive itself where it is a plain tar, else its inflated copy in the scratch folder."""
        with open(self.path, "rb") as f:
            start = f.read(2)
        module = {b"\x1f\x8b": gzip, b"BZ": bz2, b"\xfd7": lzma}.get(start)
        self.tar = scratch / "archive.tar" if module else self.path
        if not self.tar.exists():  # a resumed run finds it whole
            try:
                with module.open(self.path) as packed, replacing(self.tar) as part, open(part, "wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
            except OSError as e:
                if e.errno is None:  # so bz2 says that its data are bad
                    raise tarfile.ReadError(str(e)) from None
                raise
        return self.tar

    def open(self, scratch):
        """List the clips. `scratch` is a folder for an inflated tar. Raises KwsError."""
        names = {}
        for name, where in self._files(scratch).items():
            parts = [p for p in PurePosixPath(name).parts if p != "."]
            if parts and not any(p.startswith((".", "__MACOSX")) for p in parts):
                names[tuple(parts)] = (name, where)
        tops = {parts[0] for parts in names}
        if len(tops) == 1 and any(len(parts) > 2 for parts in names):
            names = {parts[1:]: where for parts, where in names.items()}
        lists = {}
        for split in SPLITS[1:]:
            if (f"{split}_list.txt",) in names:
                lines = self._read(*names[f"{split}_list.txt",]).decode("utf8", "replace").split()
                lists.update({os.path.splitext(line)[0]: split for line in lines})
        self.clips, self.noises = [], []
        for parts, where in sorted(names.items()):
            path = "/".join(parts)
            if len(parts) == 1 or parts[-1].lower().endswith((".md", ".txt", ".json", ".csv")):
                continue
            if parts[0] == NOISE:
                self.noises.append((path, where))
            elif len(parts) > 2 or parts[0].startswith("_") or not path.isprintable():
                self.skipped.append({"path": ascii(path)[1:-1], "reason": "not a file <word>/<clip>"})
            elif self.words is None or parts[0] in self.words:
                stem = os.path.splitext(path)[0]
                speaker = re.sub("_nohash_.*$", "", stem.split("/", 1)[1])
                split = lists.get(stem, "training") if lists else which_set(speaker)
                self.clips.append(Clip(path, parts[0], speaker, split, where))
        if not self.clips:
            raise KwsError(f"source {self.path} holds no clips; it must hold a folder of clips per word")
        missing = sorted(set(self.words or ()) - {c.word for c in self.clips})
        if missing:
            raise KwsError(f"source {self.path} has no word {', '.join(missing)}; leave it out of words")

    def _read(self, name, where):
        """The bytes of one file of the source."""
        size, offset = where
        if size > LARGEST:
            raise Unreadable("too large for a clip")
        if not self.archive:
            return (self.path / name).read_bytes()
        if offset is None:
            return _zip(self.path).read(name)
        with open(self.tar, "rb") as f:
            f.seek(offset)
            return f.read(size)

    def _audio(self, where, seconds=None):
        try:
            return decode_audio(self._read(*where), seconds)
        except (OSError, RuntimeError, NotImplementedError, *BROKEN) as e:
            raise Unreadable(f"cannot be read from its source ({e})") from None

    def decode(self, clip):
        """One clip -> (int16 (n,) with n <= 16,000, whether it was clipped). Raises Unreadable."""
        wave = self._audio(clip.where, seconds=60)
        if len(wave) > CLIP:
            energy = np.cumsum(np.concatenate([[0.0], wave.astype(np.float64) ** 2]))
            start = int(np.argmax(energy[CLIP:] - energy[:-CLIP]))
            wave = wave[start:start + CLIP]
        return to_int16(wave)

    def noise(self):
        """All background noise, laid end to end: int16 (n,)."""
        waves = [np.zeros(0, np.int16)]
        for path, where in self.noises:
            try:
                waves.append(to_int16(self._audio(where))[0])
            except Unreadable as e:
                self.skipped.append({"path": path, "reason": str(e)})
        return np.concatenate(waves)


class SpeechCommands(Folder):
    """Speech Commands v0.02 as published: fetched once, kept beside the corpus, verified, read as a tar."""

    def __init__(self, beside, words=None, url=URL, md5=CHECKSUMS["md5"], sha256=CHECKSUMS["sha256"]):
        self.words, self.skipped, self.archive = words, [], True
        self.url, self.checksums = url, {"md5": md5, "sha256": sha256}
        self.path = Path(beside) / url.rsplit("/", 1)[-1]
        self.card = {"name": "Speech Commands v0.02", "source": "speech_commands", "synthetic": False,
                     "licence": CC_BY, "attribution": ATTRIBUTION, "origin": url,
                     "source_checksum": self.checksums}

    def open(self, scratch):
        if self.path.exists():
            verify(self.path, self.checksums)
        else:
            fetch(self.url, self.path, self.checksums)
        super().open(scratch)
