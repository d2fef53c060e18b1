"""Sources of clips: a folder of word folders, a zip or tar of one, Speech Commands itself, or a manifest's recordings.

A source has a `card` (what it is, its licence, its checksum), `open()`, after which `clips` lists all clips and
`skipped` the files that are none, `decode(clip)`, called in worker processes, and `noise()`. Archives are never
unpacked: clips are read from the zip, or from where they are in a tar; of a tar that is compressed, which can only be
read from its start, `each` reads them in its order.
`synthetic.py` is another source."""

import hashlib
import io
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
from kwslib.data.columns import LONGEST
from kwslib.data.fetch import fetch, name_of
from kwslib.data.manifest import SPLIT_NAMES, SPLITS, read_manifest
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, file_hash

NOISE = "_background_noise_"
URL = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
MD5 = "6b74f3901214cb2c2934e98196829835"
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
OLDER = (URL.replace("v0.02", "v0.01"), "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d")
CC_BY = "CC BY 4.0"
ATTRIBUTION = "Speech Commands, Pete Warden, 2018 (arXiv 1804.03209), CC BY 4.0"
TEXTS = (".md", ".txt", ".json", ".csv", ".jsonl", ".csv.gz", ".jsonl.gz")  # beside clips, never clips
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
MOST = 1 << 27  # bytes of a file, also of one in an archive: more would be read into memory
LISTS = tuple(f"{split}_list.txt" for split in SPLITS[1:])
HOUR = 3600  # seconds: the most of a file of noise
_zip = lru_cache(maxsize=2)(zipfile.ZipFile)


class Clip(NamedTuple):
    path: str  # word/file, as in the index
    word: str
    speaker: str
    split: str
    where: Any = None  # how the source finds it again
    named: bool = True  # whether anything says who speaks


def source_card(name, source, licence, attribution, origin, checksum, synthetic=False):
    """The card of a source, which becomes the first part of its corpus' card."""
    card = dict(name=name, source=source, synthetic=synthetic, licence=licence, attribution=attribution, origin=origin)
    return {**card, "source_checksum": checksum}


def which_set(speaker):
    """The split of a speaker by the published rule (Warden 2018, section 6; `which_set` in its README):
    SHA-1 of the file name up to `_nohash_`, 10 % validation, 10 % testing."""
    share = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * (100 / (2**27 - 1))
    return "validation" if share < 10 else "testing" if share < 20 else "training"


def rights(name):
    """(licence, attribution) of a source, by its name."""
    return (CC_BY, ATTRIBUTION) if "speech_commands" in name.lower() else ("unknown: that of the source", None)


def speaker_of(path, rule=None):
    """(The speaker of a clip by its path, whether the path says it). Raises KwsError.

    rule: "parent", the folder that holds the file; "prefix", its name up to the first _ or -; a regular expression,
    what its first group finds in the path; or None, the name up to `_nohash_`, without which it is the whole name."""
    folder, _, name = os.path.splitext(path)[0].rpartition("/")
    if rule is None:
        return re.sub("_nohash_.*$", "", name), "_nohash_" in name
    if rule == "parent":
        speaker = folder.rpartition("/")[2]
    elif rule == "prefix":
        speaker = re.split("[_-]", name, maxsplit=1)[0]
    else:
        found = re.search(rule, path)
        speaker = found and found[1 if found.re.groups else 0]
    if not speaker:
        raise KwsError(f"speaker_from {rule!r} finds no speaker in {path}; correct the rule or rename the file")
    return speaker, True


def _split_folders(names, depth):
    """Whether the folders above the word folders are splits, two of them at least."""
    found = [k for k in names if NOISE not in k[:2]]
    tops, depths = {k[0].lower() for k in found}, {len(k) for k in found}
    return len(tops) > 1 and tops <= SPLIT_NAMES.keys() and depth + 1 in depths and depth not in depths


def _unreadable(error):
    name, why = error.filename, error.strerror
    raise KwsError(f"{name} cannot be read ({why}); see to it that you may read it, or take it out") from None


class Folder:
    """`<word>/<clip>` in a folder, a zip or a tar, with or without one folder around it all. A clip longer than one
    second is cut to its loudest second (as Speech Commands itself was), a shorter one padded with zeros at its end.
    Speaker: as `speaker_of` says; with "parent" clips are `<word>/<speaker>/<clip>`. Split: the folder around the word
    folders where those are train, validation and test; else validation_list.txt and testing_list.txt where present,
    else `which_set`. only: a manifest; its paths (whatever their endings) are taken, in the splits that it gives."""

    def __init__(self, path, words=None, speaker_from=None, only=None):
        self._ask(words, speaker_from, only)
        self.path = Path(path or "")
        if not (path and os.path.exists(path)):
            raise KwsError(f"source {path} does not exist; give a folder, a zip or a tar of word folders")
        self.archive, name = self.path.is_file(), self.path.name
        if self.archive:
            kind, checksum = "archive", {"sha256": file_hash(self.path)}
        else:
            listing = repr(sorted(self._files().items())).encode()
            kind, checksum = "folder", {"listing_sha256": hashlib.sha256(listing).hexdigest()}
        self.card = source_card(name, kind, *rights(name), origin=name, checksum=checksum)

    def _ask(self, words, speaker_from=None, only=None):
        """Keep what is asked for. options: what decides, beside words, which corpus this is."""
        self.words, self.rule, self.skipped, self.notes, self.options = words, speaker_from, [], [], {}
        self.tar = None  # of a tar, where its files are
        if speaker_from is not None:
            try:
                re.compile(speaker_from)
            except (re.error, TypeError) as e:
                told = "give parent, prefix or a regular expression"
                raise KwsError(f"speaker_from {speaker_from!r} cannot be used ({e}); {told}") from None
            self.options["speaker_from"] = speaker_from
        self.only = None
        if only is not None:
            rows = read_manifest(only)
            if cut := next((r for r in rows if r.start is not None or r.speaker), None):
                raise KwsError(f"manifest {only} line {cut.line} has a speaker or a start; only takes path and split")
            self.only = {os.path.splitext(r.path)[0]: r for r in rows}
            self.options["only"] = {"name": Path(only).name, "sha256": file_hash(only)}

    def _files(self):
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
            if zipfile.is_zipfile(self.path):
                found = {i.filename: i for i in _zip(self.path).infolist() if not i.filename.endswith("/")}
                links = {name for name, i in found.items() if stat.S_ISLNK(i.external_attr >> 16)}
            else:
                found, links = self._tar(), {name for name, place in self.tar.items() if place is None}
        except (*BROKEN, OSError, ValueError, RuntimeError, OverflowError) as e:
            if getattr(e, "errno", None):  # the disk's fault, not the archive's
                raise
            raise KwsError(f"archive {self.path} is broken, or neither zip nor tar; get it again") from None
        for name in found:
            if name in links or name.startswith("/") or ".." in PurePosixPath(name).parts:
                why = "is a link" if name in links else "leaves its folder"
                raise KwsError(f"archive {self.path} is refused: member {name!r} {why}; leave that out")
        return found

    def _tar(self):
        """{name: (its first byte, its bytes)} of a tar's files, None for links; keeps the lists of splits."""
        self.tar, self.lists = {}, {}
        with tarfile.open(self.path, errors="replace") as tar:
            self.compressed = not isinstance(tar.fileobj, io.BufferedReader)
            for member in tar:
                if not member.isdir():
                    self.tar[member.name] = (member.offset_data, member.size) if member.isreg() else None
                    self.compressed |= member.issparse()
                    if member.isreg() and member.name.endswith(LISTS):
                        self.lists[member.name] = tar.extractfile(member).read(MOST + 1)
        return self.tar

    def each(self, wanted):
        """{key: where} of files -> (key, where) of each, in the order in which they are read the fastest. Of a
        compressed tar, `where` is then the file's bytes."""
        if self.tar is None or not self.compressed:
            yield from wanted.items()
            return
        keys = {self.tar[name]: key for key, name in wanted.items()}
        try:
            with tarfile.open(self.path, errors="replace") as tar:
                for member in tar:
                    if keys and (key := keys.pop((member.offset_data, member.size), None)) is not None:
                        yield key, tar.extractfile(member).read(MOST + 1)
                    tar.members.clear()  # or it would keep all of them
        except BROKEN as e:
            raise KwsError(f"archive {self.path} is broken ({e}); get it again") from None

    def open(self):
        """List the clips. Raises KwsError."""
        self.clips, self.noises = self._list()
        if self.only is not None:
            self._take_only()
        if not self.clips:
            raise KwsError(f"source {self.path} holds no clips; it must hold a folder of clips per word")
        if missing := sorted(set(self.words or ()) - {c.word for c in self.clips}):
            raise KwsError(f"source {self.path} has no word {', '.join(missing)}; leave it out of words")

    def _list(self):
        """([Clip], [(path, name)] of the noise), both in the order of their paths."""
        names = {PurePosixPath(name).parts: name for name in self._files()}
        names = {k: name for k, name in names.items() if k and not any(p.startswith((".", "__MACOSX")) for p in k)}
        depth = 3 if self.rule == "parent" else 2
        if len({parts[0] for parts in names}) == 1 and any(len(parts) > depth for parts in names):
            names = {parts[1:]: name for parts, name in names.items()}
        lists = {}
        for split in SPLITS[1:]:
            if (f"{split}_list.txt",) in names:
                try:
                    lines = self._read(names[f"{split}_list.txt",]).decode("utf-8-sig").splitlines()
                except ValueError as e:
                    raise KwsError(f"{split}_list.txt of {self.path} is not a list of clips ({e}); fix it") from None
                lines = [line.strip() for line in lines if line.strip()]
                if odd := [line for line in lines if line.count("/") != 1 or not line.isprintable()]:
                    raise KwsError(f"{split}_list.txt of {self.path} has a line {odd[0]!r:.80}; it lists <word>/<clip>")
                lists.update({os.path.splitext(line)[0]: split for line in lines})
        names = {k: v for k, v in names.items() if len(k) > 1 and not v.lower().endswith(TEXTS)}
        inside = _split_folders(names, depth)
        clips, noises = [], []
        for parts, name in sorted(names.items()):
            path, stem = "/".join(parts), os.path.splitext("/".join(parts))[0]
            word, *rest = parts[1:] if inside else parts
            if NOISE in (parts[0], word):
                noises.append((path, name))
            elif len(rest) != depth - 1 or word.startswith("_") or not path.isprintable() or len(path) > LONGEST:
                wanted = "<word>/<clip>" if depth == 2 else "<word>/<speaker>/<clip>"
                name = ascii(path)[1 : LONGEST + 1].rstrip("'")
                self.skipped.append({"path": name, "reason": f"not a file {wanted}"})
            elif self.words is None or word in self.words:
                speaker, named = speaker_of(path, self.rule)
                split = SPLIT_NAMES[parts[0].lower()] if inside else lists.get(stem, SPLITS[0]) if lists else None
                speaker = speaker if named or not inside else f"{parts[0]}/{speaker}"  # 1.wav here is not 1.wav there
                clips.append(Clip(path, word, speaker, split or which_set(speaker), name, named))
        return clips, noises

    def _take_only(self):
        """Keep the clips of `only`, in its splits; list those that are not here."""
        wanted = {k: row for k, row in self.only.items() if self.words is None or k.split("/")[0] in self.words}
        held = {os.path.splitext(c.path)[0]: c for c in self.clips}
        held.update(self._elsewhere(wanted.keys() - held.keys()))
        clips = [c._replace(split=wanted[k].split or c.split) for k, c in held.items() if k in wanted]
        self.clips = sorted(clips, key=lambda c: c.path.split("/"))
        missing = [row.path for k, row in wanted.items() if k not in held]
        self.skipped += [{"path": path, "reason": f"not in {self.path.name}"} for path in missing]
        if missing:
            of = f"{len(missing)} of {len(wanted)} clips of {self.options['only']['name']}"
            self.notes.append(f"{of} are not in {self.path.name}, such as {missing[0]}")

    def _elsewhere(self, stems):
        """{stem: Clip} of clips that this source finds in another place."""
        return {}

    def _read(self, name):
        """The bytes of one file of the source. Raises Unreadable."""
        try:
            if self.tar is not None and name in self.lists:
                name = self.lists[name]
            if isinstance(name, bytes):  # read already, as far as MOST + 1
                size = len(name)
            elif self.tar is not None:
                start, size = self.tar[name]
            else:
                size = _zip(self.path).getinfo(name).file_size if self.archive else (self.path / name).stat().st_size
            if size > MOST:
                raise Unreadable(f"of {size / 1e6:.0f} MB, more than {MOST / 1e6:.0f}; cut it into shorter files")
            if isinstance(name, bytes):
                return name
            if self.tar is not None:
                with open(self.path, "rb") as f:
                    f.seek(start)
                    return f.read(size)
            return _zip(self.path).read(name) if self.archive else (self.path / name).read_bytes()
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
        waves = {}
        for path, name in self.each(dict(self.noises)):
            try:
                wave = decode(self._read(name), seconds=HOUR + 1)
                if len(wave) > HOUR * SAMPLE_RATE:
                    raise Unreadable("longer than an hour; cut it into shorter files")
                waves[path] = to_int16(wave)[0]
            except Unreadable as e:
                waves[path] = str(e)
        found = [(path, waves[path]) for path, _ in self.noises]
        self.skipped += [{"path": path, "reason": wave} for path, wave in found if isinstance(wave, str)]
        return [wave for _, wave in found if not isinstance(wave, str)]


class SpeechCommandsArchive(Folder):
    """Speech Commands v0.02 as published: fetched once, kept beside the corpus, verified, read as a tar.

    only: a manifest, as for Folder. Clips of it that v0.02 does not hold come from v0.01, older: (url, sha256), which
    is fetched where there are any; None leaves them out."""

    def __init__(self, beside, words=None, url=URL, md5=MD5, sha256=SHA256, only=None, older=OLDER):
        self._ask(words, only=only)
        self.archive, self.older = True, older
        self.path = Path(beside) / name_of(url)
        checksum = {"md5": md5, "sha256": sha256} if md5 else {"sha256": sha256}
        self.card = source_card("Speech Commands v0.02", "speech_commands", CC_BY, ATTRIBUTION, url, checksum)
        if only and older:
            self.options["older"] = list(older)

    def _list(self):
        fetch(self.card["origin"], self.path, self.card["source_checksum"])
        return super()._list()

    def _elsewhere(self, stems):
        if not (stems and self.older):
            return {}
        self.older = SpeechCommandsArchive(self.path.parent, None, self.older[0], None, self.older[1])
        found = {os.path.splitext(c.path)[0]: c for c in self.older._list()[0]}
        return {k: found[k]._replace(where=(found[k].where,)) for k in stems & found.keys()}

    def each(self, wanted):
        older = {key: name[0] for key, name in wanted.items() if isinstance(name, tuple)}
        yield from super().each({key: name for key, name in wanted.items() if key not in older})
        if older:
            yield from ((key, w if isinstance(w, bytes) else (w,)) for key, w in self.older.each(older))

    def _read(self, name):
        return self.older._read(*name) if isinstance(name, tuple) else super()._read(name)
