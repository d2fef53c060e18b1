"""Sources of clips: a folder of word folders, a zip or tar of one, or Speech Commands itself.

A source has a `card` (what it is, its licence, its checksum), `open(scratch)`, after which `clips` lists all clips and
`skipped` the files that are none, `decode(clip)`, called in worker processes, and `noise()`. Archives are never
unpacked: clips are read from the zip (a tar, which has no random access when it is compressed, is first copied to one).
`synthetic.py` is another source."""

import hashlib
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from kwslib.data.audio import Unreadable, decode, loudest_window, to_int16
from kwslib.data.fetch import fetch, name_of
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, file_hash, replacing

SPLITS = ("training", "validation", "testing")
NOISE = "_background_noise_"
URL = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
MD5 = "6b74f3901214cb2c2934e98196829835"
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
CC_BY = "CC BY 4.0"
ATTRIBUTION = "Speech Commands, Pete Warden, 2018 (arXiv 1804.03209), CC BY 4.0"
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
LONGEST = 512  # characters of a clip's name
MOST = 1 << 27  # bytes of a file, also of one in an archive: more would be read into memory
HOUR = 3600  # seconds: the most of a file of noise
_zip = lru_cache(maxsize=1)(zipfile.ZipFile)


class Clip(NamedTuple):
    path: str  # word/file, as in the index
    word: str
    speaker: str
    split: str
    where: Any = None  # how the source finds it again


def source_card(name, source, licence, attribution, origin, checksum, synthetic=False):
    """The card of a source, which becomes the first part of its corpus' card."""
    card = dict(name=name, source=source, synthetic=synthetic, licence=licence, attribution=attribution, origin=origin)
    return {**card, "source_checksum": checksum}


def which_set(speaker):
    """The split of a speaker by the published rule (Warden 2018, section 6; `which_set` in its README):
    SHA-1 of the file name up to `_nohash_`, 10 % validation, 10 % testing."""
    share = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * (100 / (2**27 - 1))
    return "validation" if share < 10 else "testing" if share < 20 else "training"


def _unreadable(error):
    name, why = error.filename, error.strerror
    raise KwsError(f"{name} cannot be read ({why}); see to it that you may read it, or take it out") from None


class Folder:
    """`<word>/<clip>` in a folder, a zip or a tar, with or without one folder around it all. A clip longer than one
    second is cut to its loudest second (as Speech Commands itself was), a shorter one padded with zeros at its end.
    Speaker: the file name up to `_nohash_`, the whole name where that is missing. Split: validation_list.txt and
    testing_list.txt where present, else `which_set`."""

    options = {}  # what decides, beside words, which corpus this is

    def __init__(self, path, words=None):
        self.path, self.words, self.skipped = Path(path), words, []
        if not (path and os.path.exists(path)):
            raise KwsError(f"source {path} does not exist; give a folder, a zip or a tar of word folders")
        self.archive, name = self.path.is_file(), self.path.name
        if self.archive:
            kind, checksum = "archive", {"sha256": file_hash(self.path)}
        else:
            listing = repr(sorted(self._files(None).items())).encode()
            kind, checksum = "folder", {"listing_sha256": hashlib.sha256(listing).hexdigest()}
        known = "speech_commands" in name.lower()
        rights = (CC_BY, ATTRIBUTION) if known else ("unknown: that of the source", None)
        self.card = source_card(name, kind, *rights, origin=name, checksum=checksum)

    def _files(self, scratch):
        """All files: {name: size and time of change}. Raises KwsError for folders that cannot be read, and for an
        archive's links and escaping paths."""
        if not self.archive:
            try:
                walk = os.walk(self.path, onerror=_unreadable)
                paths = [Path(folder, name) for folder, _, names in walk for name in names]
                found = {p.relative_to(self.path): p.stat() for p in paths if p.is_file()}
            except OSError as e:
                _unreadable(e)
            return {p.as_posix(): (s.st_size, s.st_mtime_ns) for p, s in found.items()}
        _zip.cache_clear()  # the file may be another than the last of this name
        try:
            self.zip = self.path if zipfile.is_zipfile(self.path) else self._as_zip(scratch / "archive.zip")
            found = {i.filename: i for i in _zip(self.zip).infolist() if not i.filename.endswith("/")}
        except (*BROKEN, OSError, ValueError, RuntimeError, OverflowError) as e:
            if getattr(e, "errno", None):  # the disk's fault, not the archive's
                raise
            raise KwsError(f"archive {self.path} is broken, or neither zip nor tar; get it again") from None
        for name, i in found.items():
            is_link = stat.S_ISLNK(i.external_attr >> 16)
            if is_link or name.startswith("/") or ".." in PurePosixPath(name).parts:
                why = "is a link" if is_link else "leaves its folder"
                raise KwsError(f"archive {self.path} is refused: member {name!r} {why}; leave that out")
        return found

    def _as_zip(self, copy):
        """Copy the tar, whatever its compression, to a zip that keeps the bytes as they are."""
        if not copy.exists():  # a resumed run finds it whole
            tar = tarfile.open(self.path, errors="replace")
            with tar, replacing(copy) as part, zipfile.ZipFile(part, "w") as out:
                for member in tar:
                    info, whole = zipfile.ZipInfo(member.name), member.isreg()
                    info.external_attr = (stat.S_IFREG if whole else stat.S_IFLNK) << 16
                    if not member.isdir():
                        out.writestr(info, tar.extractfile(member).read(MOST + 1) if whole else b"")
        return copy

    def open(self, scratch):
        """List the clips. `scratch` is a folder for the copy of a tar. Raises KwsError."""
        names = {PurePosixPath(name).parts: name for name in self._files(scratch)}
        names = {k: name for k, name in names.items() if k and not any(p.startswith((".", "__MACOSX")) for p in k)}
        if len({parts[0] for parts in names}) == 1 and any(len(parts) > 2 for parts in names):
            names = {parts[1:]: name for parts, name in names.items()}
        lists = {}
        for split in SPLITS[1:]:
            if (f"{split}_list.txt",) in names:
                try:
                    lines = self._read(names[f"{split}_list.txt",]).decode("utf-8-sig").splitlines()
                except ValueError as e:
                    raise KwsError(f"{split}_list.txt of {self.path} is no list of clips ({e}); mend it") from None
                lines = [line.strip() for line in lines if line.strip()]
                if odd := [line for line in lines if line.count("/") != 1 or not line.isprintable()]:
                    raise KwsError(f"{split}_list.txt of {self.path} has a line {odd[0]!r:.80}; it lists <word>/<clip>")
                lists.update({os.path.splitext(line)[0]: split for line in lines})
        self.clips, self.noises = [], []
        for parts, name in sorted(names.items()):
            path = "/".join(parts)
            if len(parts) == 1 or path.lower().endswith((".md", ".txt", ".json", ".csv")):
                continue
            if parts[0] == NOISE:
                self.noises.append((path, name))
            elif len(parts) > 2 or parts[0].startswith("_") or not path.isprintable() or len(path) > LONGEST:
                self.skipped.append(
                    {"path": ascii(path)[1 : LONGEST + 1].rstrip("'"), "reason": "not a file <word>/<clip>"}
                )
            elif self.words is None or parts[0] in self.words:
                stem = os.path.splitext(path)[0]
                speaker = re.sub("_nohash_.*$", "", stem.split("/", 1)[1])
                split = lists.get(stem, "training") if lists else which_set(speaker)
                self.clips.append(Clip(path, parts[0], speaker, split, name))
        if not self.clips:
            raise KwsError(f"source {self.path} holds no clips; it must hold a folder of clips per word")
        if missing := sorted(set(self.words or ()) - {c.word for c in self.clips}):
            raise KwsError(f"source {self.path} has no word {', '.join(missing)}; leave it out of words")

    def _read(self, name):
        """The bytes of one file of the source. Raises Unreadable."""
        try:
            size = _zip(self.zip).getinfo(name).file_size if self.archive else (self.path / name).stat().st_size
            if size > MOST:
                raise Unreadable(f"of {size / 1e6:.0f} MB, more than {MOST / 1e6:.0f}; cut it into shorter files")
            return _zip(self.zip).read(name) if self.archive else (self.path / name).read_bytes()
        except Unreadable:
            raise
        except (OSError, RuntimeError, ValueError, OverflowError, *BROKEN) as e:  # RuntimeError: an encrypted member
            raise Unreadable(f"cannot be read from {self.path.name} ({e})") from None

    def decode(self, clip):
        """One clip -> (int16 (n,) with n <= 16,000, whether it was clipped). Raises Unreadable."""
        wave = decode(self._read(clip.where), seconds=60)
        start = loudest_window(wave, CLIP) if len(wave) > CLIP else 0
        return to_int16(wave[start : start + CLIP])

    def noise(self):
        """The files of background noise in the order of their names: a list of int16 (n,)."""
        waves = []
        for path, name in self.noises:
            try:
                wave = decode(self._read(name), seconds=HOUR + 1)
                if len(wave) > HOUR * SAMPLE_RATE:
                    raise Unreadable("longer than an hour; cut it into shorter files")
                waves.append(to_int16(wave)[0])
            except Unreadable as e:
                self.skipped.append({"path": path, "reason": str(e)})
        return waves


class SpeechCommandsArchive(Folder):
    """Speech Commands v0.02 as published: fetched once, kept beside the corpus, verified, read as a tar."""

    def __init__(self, beside, words=None, url=URL, md5=MD5, sha256=SHA256):
        self.words, self.skipped, self.archive = words, [], True
        self.path = Path(beside) / name_of(url)
        checksum = {"md5": md5, "sha256": sha256}
        self.card = source_card("Speech Commands v0.02", "speech_commands", CC_BY, ATTRIBUTION, url, checksum)

    def open(self, scratch):
        fetch(self.card["origin"], self.path, self.card["source_checksum"])
        super().open(scratch)
