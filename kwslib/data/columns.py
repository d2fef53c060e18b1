"""What a packed corpus holds, without reading it: text as numbers, and rows of waves in one file or in many.

`index.csv` is the index that anyone can read. `index.npy` is the same, parsed, as one record a clip: where its line
begins, its length, its split, and which clip was the first of its word and of its speaker. A `Column` is such numbers;
its text is read from the line that they name when somebody asks for it. Both files are mapped: 25 bytes a clip on the
disk, and few in memory. (Parquet would ask for pyarrow, 150 MB, for one table.)"""

import csv
import hashlib
import io
import mmap
import os
import zlib
from bisect import bisect_right

import numpy as np

from kwslib.data.manifest import SPLITS
from kwslib.io import CLIP, KwsError

COLUMNS = ("path", "word", "speaker", "split", "samples")
RECORD = np.dtype([("at", "<i8"), ("samples", "<i8"), ("word", "<i4"), ("speaker", "<i4"), ("split", "<i1")])
LONGEST = 512  # characters of a name
AT_ONCE = 4096  # strings
SHARD = 62_000  # clips of the source in one file of waves: just under 2 GB
HEADER, ROW = 128, 2 * CLIP  # bytes before the samples in a file of waves, and of one clip


def parse_index(path):
    """index.csv -> RECORD (clips,), in one pass. Raises ValueError or csv.Error where it is damaged."""
    with open(path, "rb") as file:
        return np.fromiter(_records(file), RECORD)


def _records(file):
    at, words, speakers, i = 0, {}, {}, 0

    def lines():
        nonlocal at
        for line in file:
            at += len(line)
            yield line.decode()

    reader = csv.reader(lines())
    if tuple(next(reader, ())) != COLUMNS:
        raise ValueError(f"index.csv does not begin with {','.join(COLUMNS)}")
    start = at
    for row in reader:
        if row:
            if (longest := max(map(len, row))) > LONGEST:
                raise ValueError(f"a name of {longest} characters")
            if len(row) != len(COLUMNS):
                raise ValueError(f"a line of index.csv has {len(row)} columns")
            _, word, speaker, split, samples = row
            if split not in SPLITS or not 0 < int(samples) <= CLIP:
                raise ValueError("a clip's split or length in index.csv cannot be")
            first = words.setdefault(word, i), speakers.setdefault(speaker, i)
            yield start, int(samples), *first, SPLITS.index(split)
            i += 1
        start = at


def checksum(*paths):
    """CRC-32 of files, end to end."""
    crc = 0
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                crc = zlib.crc32(piece, crc)
    return crc


class Field:
    """Column number `place` of a mapped index.csv whose lines begin at `starts`: field[i] is a str."""

    def __init__(self, text, starts, place):
        self.text, self.starts, self.place = text, starts, place

    def __getitem__(self, i):
        end = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.text)
        line = self.text[self.starts[i] : end].tobytes().decode()
        return next(csv.reader(io.StringIO(line, newline="")))[self.place]


class Column:
    """Strings (n,) as numbers: row i is names[codes[i]], or more[~code] where that is negative. It reads as an array of
    str does: indexed by arrays (which gives one), compared with a str, turned into an array or a list."""

    def __init__(self, names, codes, more=()):
        self.names, self.codes, self.more = names, codes, more

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, key):
        codes = self.codes[key]
        if np.ndim(codes) == 0:
            return self._name(codes)
        used, inverse = np.unique(codes, return_inverse=True)
        return np.array([*map(self._name, used.tolist())], str)[inverse]

    def _name(self, code):
        return str(self.names[code] if code >= 0 else self.more[~code])

    def __iter__(self):
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE].tolist()

    def __array__(self, dtype=None, copy=None):
        return self[:] if dtype is None else self[:].astype(dtype)

    def tolist(self):
        return self[:].tolist()

    def __eq__(self, other):
        if isinstance(other, str):
            return self.numbered({other: 1}) == 1
        return np.asarray(self) == np.asarray(other)

    def __ne__(self, other):
        return ~(self == other)

    def used(self):
        """The codes that occur, sorted; in linear time."""
        if not len(self):
            return np.zeros(0, int)
        least = int(self.codes.min())
        found = np.zeros(int(self.codes.max()) - least + 1, bool)
        found[self.codes - least if least else self.codes] = True
        return np.flatnonzero(found) + least

    def distinct(self):
        """The strings that occur, sorted."""
        return sorted({*map(self._name, self.used().tolist())})

    def numbered(self, numbers, otherwise=0):
        """{str: int} -> int64 (n,): the number of each row's string, `otherwise` where it has none."""
        used = self.used()
        given = np.array([numbers.get(self._name(code), otherwise) for code in used.tolist()], np.int64)
        if not len(used):
            return given
        table = np.zeros(int(used[-1] - used[0]) + 1, np.int64)
        table[used - used[0]] = given
        return table[self.codes - used[0] if used[0] else self.codes]

    def take(self, rows, more=()):
        """The Column of these rows, and of the strings `more` after them."""
        return Column(self.names, np.concatenate([self.codes[rows], ~np.arange(len(more))]), more)

    @classmethod
    def of(cls, strings):
        """The Column of an array of str."""
        names, codes = np.unique(np.asarray(strings, str), return_inverse=True)
        return cls(names, codes)


class Shards:
    """Arrays (n_k, CLIP) that follow each other, read as one (n, CLIP): by a row's number, or by what gives several."""

    ndim, dtype = 2, np.dtype(np.int16)

    def __init__(self, parts):
        self.parts = [*parts]
        self.starts = [0, *np.cumsum([len(p) for p in parts]).tolist()]
        self.shape = (self.starts[-1], CLIP)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        key, *inner = key if isinstance(key, tuple) else (key,)
        if isinstance(key, (int, np.integer)):
            i = range(len(self))[key]
            k = bisect_right(self.starts, i) - 1
            row = self.parts[k][i - self.starts[k]]
            return row[tuple(inner)] if inner else row
        rows = np.stack([self[i] for i in np.arange(len(self))[key].tolist()] or [np.zeros((0, CLIP), np.int16)])
        return rows[(slice(None), *inner)] if inner else rows

    def __iter__(self):
        for part in self.parts:
            yield from part

    def __array__(self, dtype=None, copy=None):
        return np.concatenate(self.parts).astype(dtype or self.dtype)


class Reader:
    """read(i, out) puts row i of mapped waves into out, int16 (CLIP,), from many threads at once. It reads the files:
    the maps would bring as much as 2 MB around each row, and count as this process's memory."""

    def __init__(self, waves):
        self.waves, self.files = waves, []
        self.parts, self.starts = getattr(waves, "parts", [waves]), getattr(waves, "starts", [0])
        if hasattr(os, "preadv") and all(isinstance(getattr(p, "base", None), mmap.mmap) for p in self.parts):
            self.files = [os.open(p.filename, os.O_RDONLY) for p in self.parts]

    def __del__(self):
        for file in self.files:
            os.close(file)

    def __call__(self, i, out):
        if not self.files:  # waves in memory, or a system that cannot
            out[:] = self.waves[i]
            return
        k = bisect_right(self.starts, i) - 1
        if os.preadv(self.files[k], [out], self.parts[k].offset + (i - self.starts[k]) * ROW) != ROW:
            raise KwsError(f"{self.parts[k].filename} has become shorter; pack the corpus again")


class WaveFiles:
    """The files of waves under way, open in an ExitStack: clip i of the source has row i % SHARD of file i // SHARD."""

    def __init__(self, folder, clips, stack):
        self.clips, count = clips, -(-clips // SHARD)
        self.paths = [folder / (f"waves-{k:03}.npy" if count > 1 else "waves.npy") for k in range(count)]
        for path in self.paths:
            path.touch()
        self.files = [stack.enter_context(open(path, "r+b")) for path in self.paths]

    def read(self, i):
        self.files[i // SHARD].seek(HEADER + i % SHARD * ROW)
        return self.files[i // SHARD].read(ROW)

    def write(self, i, row):
        """The bytes of clip i, on their way to the disk; none where it is unreadable."""
        if row:
            self.files[i // SHARD].seek(HEADER + i % SHARD * ROW)
            self.files[i // SHARD].write(row)
            self.files[i // SHARD].flush()

    def close_up(self, kept):
        """Leave out the rows that are not kept, write the headers -> the SHA-256 of all, as if it were one file.

        A run that is killed here finds rows that disagree with the journal, and packs those again."""
        digest = hashlib.sha256(header(int(kept.sum())))
        for k, file in enumerate(self.files):
            rows = np.flatnonzero(kept[k * SHARD : (k + 1) * SHARD]).tolist()
            for to, i in enumerate(rows):
                row = self.read(k * SHARD + i)
                if to != i:
                    self.write(k * SHARD + to, row)
                digest.update(row)
            file.truncate(HEADER + len(rows) * ROW)
            file.seek(0)
            file.write(header(len(rows)))
            file.flush()
            os.fsync(file.fileno())
        return digest


def header(clips):
    """The first HEADER bytes of an .npy file of so many clips."""
    np.lib.format.write_array_header_1_0(
        out := io.BytesIO(), {"descr": "<i2", "fortran_order": False, "shape": (clips, CLIP)}
    )
    return out.getvalue()
