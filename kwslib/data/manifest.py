"""Manifests: tables that name clips, as CSV with a header or as JSON lines (one object a line), gzipped or not.

Columns: path (from the manifest's folder), word (else the folder that holds the file), speaker, split, and start and
end in seconds for a word within a longer recording. All but path may be missing or empty; others are ignored.
`kws pack MANIFEST` packs what a manifest names, `kws pack SOURCE --only MANIFEST` takes its paths from a source."""

import csv
import difflib
import gzip
import json
import math
from pathlib import Path
from typing import NamedTuple

from kwslib.io import KwsError

SPLITS = ("training", "validation", "testing")
SPLIT_NAMES = dict(zip(SPLITS, SPLITS)) | {"train": SPLITS[0], "test": SPLITS[2]}
SPLIT_NAMES |= dict.fromkeys(("valid", "val", "dev"), SPLITS[1])
ENDINGS = (".csv", ".jsonl", ".csv.gz", ".jsonl.gz")


class Row(NamedTuple):
    path: str
    word: str | None = None
    speaker: str | None = None
    split: str | None = None
    start: float | None = None  # seconds
    end: float | None = None
    line: int = 0  # of the manifest


def is_manifest(source):
    """Whether a source of pack is a manifest, by its name."""
    return str(source).lower().endswith(ENDINGS)


def read_manifest(path):
    """Read a manifest -> a list of Row, in its order. Raises KwsError, which names the line."""
    try:
        with (gzip.open if str(path).lower().endswith(".gz") else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as f:
            entries = [*(_csv if ".csv" in Path(path).name.lower() else _jsonl)(path, f)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as e:
        raise KwsError(f"manifest {path} cannot be read ({e}); give CSV or JSON lines in UTF-8") from None
    if not entries:
        raise KwsError(f"manifest {path} names no clips; give a line for each")
    rows, seen = [_row(f"manifest {path} line {line}", line, entry) for line, entry in entries], {}
    for row in rows:
        if (first := seen.setdefault(row[:1] + row[4:6], row.line)) != row.line:
            raise KwsError(f"manifest {path} line {row.line} repeats line {first}; delete one of them")
    return rows


def _csv(path, file):
    reader = csv.DictReader(file, strict=True)
    _check_columns(f"manifest {path} line 1", reader.fieldnames or [])
    for entry in reader:
        if None in entry or None in entry.values():
            raise KwsError(
                f"manifest {path} line {reader.line_num} has another number of columns than line 1; quote a value that "
                "holds a comma"
            )
        yield reader.line_num, entry


def _jsonl(path, file):
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                entry = json.loads(text)
            except ValueError as e:
                raise KwsError(f"manifest {path} line {line} is not JSON ({e}); give one object a line") from None
            if not isinstance(entry, dict):
                raise KwsError(f'manifest {path} line {line} is no object; give {{"path": …, "word": …}}')
            _check_columns(f"manifest {path} line {line}", entry)
            yield line, entry


def _check_columns(where, names):
    """path must be there; a name that is nearly one of ours is a slip, any other is somebody else's."""
    columns = Row._fields[:-1]
    for name in set(names) - set(columns):
        if close := difflib.get_close_matches(str(name).strip().lower(), columns, 1, 0.8):
            raise KwsError(f"{where}: column {name!r} is not known; did you mean {close[0]}?")
    if "path" not in names:
        raise KwsError(f"{where} has no column path; columns are {', '.join(columns)}, with commas between")


def _row(where, line, entry):
    text = {k: str(entry[k]).strip() for k in Row._fields[:-1] if entry.get(k) is not None}
    text = {k: v for k, v in text.items() if v}
    if "path" not in text or not all(map(str.isprintable, text.values())):
        raise KwsError(f"{where}: path is empty, or a value holds what cannot be printed; correct the line")
    split = SPLIT_NAMES.get(text.get("split", "").lower())
    if "split" in text and split is None:
        raise KwsError(f"{where}: split {text['split']!r} is not known; give {', '.join(SPLITS)} or leave it empty")
    try:
        start, end = (float(text[k]) if k in text else None for k in ("start", "end"))
        begin, finish = start or 0.0, end if end is not None else math.inf
        if (start is None) > (end is None) or not 0 <= begin < finish or begin == math.inf or end == math.inf:
            raise ValueError
    except ValueError:
        given = f"start {text.get('start')}, end {text.get('end')}"
        raise KwsError(f"{where}: {given}; give seconds, 0 <= start < end, or leave both empty") from None
    return Row(text["path"], text.get("word"), text.get("speaker"), split, start, end, line)
