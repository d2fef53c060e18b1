"""One packed corpus from any source: waveforms that training maps into memory, an index, a card.

A corpus folder holds `waves.npy` (int16, clips x 16,000, shorter clips padded with zeros; of more than SHARD clips,
`waves-000.npy` and so on), `index.csv` (path, word, speaker, split, samples) with `index.npy` (see columns.py),
`noise.npy` (all background noise end to end) and `card.json` (source, licence, checksums, counts). `pack` decodes every
file once and puts the clips in their places in `<out>.partial/waves*.npy`, in whatever order the source is read, with
one line in a journal per clip; a run that was killed continues after its last line and ends with the same bytes. After
a loss of power, too: a line has a checksum over itself and its row, and what does not agree is packed again."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from tokenize import TokenError

import numpy as np

from kwslib.data.audio import Unreadable
from kwslib.data.columns import COLUMNS, ROW, Column, Field, Shards, WaveFiles, checksum, parse_index
from kwslib.data.fetch import progress
from kwslib.data.folder import Folder, SpeechCommandsArchive
from kwslib.data.manifest import SPLITS, is_manifest
from kwslib.data.recordings import Recordings
from kwslib.data.synthetic import Synthetic
from kwslib.io import (
    BROKEN_TEXT,
    CLIP,
    SAMPLE_RATE,
    KwsError,
    cores,
    locked,
    read_json,
    remedy,
    replacing,
    sync,
    write_csv,
    write_json,
)

PIECE = 128  # clips that a worker takes at a time: 4 MB
HELD = 1 << 26  # bytes of sound files that wait for a worker, where they come from an archive read from its start
BROKEN = (EOFError, SyntaxError, TokenError)  # what else NumPy raises of a damaged file
FOUND = np.dtype([("samples", "<u2"), ("seen", "?"), ("clipped", "?"), ("silent", "?")])  # what is known of a clip


@dataclass
class Corpus:
    """A packed corpus. waves: int16 (clips, 16000), memory-mapped (`Shards` of it where there are several files);
    noise: int16 (n,), perhaps empty; paths, words, speakers, splits: `Column` (clips,), which arrays of str become;
    samples: int64 (clips,), the true length of each clip."""

    root: Path
    card: dict
    waves: np.ndarray
    noise: np.ndarray
    paths: Column
    words: Column
    speakers: Column
    splits: Column
    samples: np.ndarray

    checksum = property(lambda self: self.card["checksum"], doc="SHA-256 over the waves, as one file, and index.csv.")

    def __post_init__(self):
        for key in ("paths", "words", "speakers", "splits"):
            if not isinstance(column := getattr(self, key), Column):
                setattr(self, key, Column.of(column))

    def origin(self):
        """What a checkpoint says of the corpus that it was trained on."""
        return {k: self.card[k] for k in ("name", "source", "synthetic", "licence", "attribution", "checksum")}


def load_corpus(path):
    """Open a packed corpus, at fewer than 100 bytes of memory a clip. Raises KwsError where a file of it is missing or
    the counts disagree."""
    root = Path(path)
    if not os.path.isdir(root):
        raise KwsError(f"corpus {path} does not exist; make it with: kws pack SOURCE {path}")
    card = read_json(root / "card.json", "card")
    try:
        index, counts = _index(root, card), sum(card["clips"].values())
        files = sorted(root.glob("waves-*.npy")) or [root / "waves.npy"]
        parts = [np.load(file, mmap_mode="r") for file in files]
        if len(index) != counts or sum(map(len, parts)) != counts:
            raise ValueError("clips are missing")
        if any(part.shape[1:] != (CLIP,) or part.dtype != np.int16 for part in parts):
            raise ValueError(f"waves are not int16 (clips, {CLIP})")
        noise = np.load(root / "noise.npy")
        if noise.ndim != 1 or noise.dtype != np.int16:
            raise ValueError("noise.npy is not int16 samples")
        text = np.memmap(root / "index.csv", np.uint8, "r")
        names = (Field(text, index["at"], place) for place in range(3))
        codes = (np.arange(counts, dtype=np.int32), index["word"], index["speaker"])
        columns = (*map(Column, names, codes), Column(SPLITS, index["split"]))
        corpus = Corpus(root, card, Shards(parts) if parts[1:] else parts[0], noise, *columns, index["samples"])
        corpus.origin()  # has all its keys
    except (OSError, *BROKEN_TEXT, *BROKEN, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as e:
        again = remedy(e, "delete the folder and pack it again")
        raise KwsError(f"corpus {path} is damaged ({e}); {again}") from None
    return corpus


def _index(root, card):
    """The records of index.csv: those in index.npy, if both are as the card says, else parsed again."""
    files = (root / "index.csv", root / "index.npy")
    if files[1].exists() and card.get("index_crc") == checksum(*files):
        return np.load(files[1], mmap_mode="r").view(np.ndarray)
    return parse_index(files[0])


def pack(source, out, *, words=None, strict=False, workers=None, seed=0, pool=None, **options):
    """Turn a source into a packed corpus in the folder `out`, and open it.

    source: "synthetic" (options speakers, snr; see synthetic.Synthetic), "speech_commands" (downloaded to the folder
    that `out` is in; options url, md5, sha256), a folder, zip or tar of word folders, or a manifest (.csv, .jsonl; see
    kwslib.data.manifest). words: take only these. Options of recordings: only (a manifest: take its paths, in its
    splits) and speaker_from ("parent", "prefix" or a regular expression; see folder.speaker_of).
    strict: refuse unreadable clips, which are otherwise skipped and listed in the card. Returns at once where `out`
    already holds this corpus. pool: what makes an executor of (the source, workers), in place of processes here; its
    `map` and `shutdown` are used (paper/ray_engine.py has one). Raises KwsError."""
    for key, value in {"source": source, "out": out}.items():
        if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
            raise KwsError(f"{key} is {value!r}; give a path" + " or the name of a source" * (key == "source"))
    if not Path(out).name or isinstance(words, str) or not all(isinstance(w, str) for w in words or ()):
        raise KwsError(f"out is {str(out)!r}, words {words!r}; give a folder with a name, and a list of words")
    if workers is not None and not (isinstance(workers, int) and 0 < workers <= 1024):
        raise KwsError(f"workers is {workers!r}; give the number of processes, 1 or more")
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    words = sorted(set(words)) if words else None
    kinds = {"synthetic": (Synthetic, words, seed), "speech_commands": (SpeechCommandsArchive, out.parent, words)}
    kind, *given = kinds.get(source, (Recordings if is_manifest(source) else Folder, source, words))
    try:
        try:
            origin = kind(*given, **options)
        except (TypeError, ValueError) as e:
            if isinstance(e, KwsError):
                raise
            raise KwsError(f"source {source} does not take these options ({e}); leave them out") from None
        identity = {**origin.card, "options": {"words": words, "strict": strict, **origin.options}}
        if out.exists():
            held = read_json(out / "card.json", "card") if out.is_dir() else {}
            if any(held.get(k) != identity[k] for k in ("source", "source_checksum", "options")):
                raise KwsError(f"{out} holds something else; choose another folder or delete it")
            return load_corpus(out)
        partial.mkdir(parents=True, exist_ok=True)
        busy = f"{partial} is being written by another run"
        with locked(out.with_name(f".{out.name}.lock"), busy):
            partial.mkdir(exist_ok=True)  # if another run has just ended
            with open(partial / "journal", "a+b") as journal:
                _pack(origin, identity, partial, journal, workers or cores(), pool or _pool)
            sync(partial)
            os.replace(partial, out)
            sync(out.parent)
    except BrokenProcessPool:
        remedy = "with fewer workers if memory ran out; a script must call pack under if __name__ == '__main__'"
        raise KwsError(f"a worker process died while packing {source}; run again to continue, {remedy}") from None
    except OSError as e:
        remedy = "make room or choose another folder, then run again to continue"
        raise KwsError(f"cannot pack {source} into {out} ({e}); {remedy}") from None
    return load_corpus(out)


def _pack(source, identity, partial, journal, workers, start):
    """Fill the folder `partial` with a whole corpus, continuing after what its journal lists."""
    journal.seek(0)
    lines = [line for line in journal if line.endswith(b"\n")]
    plan = json.dumps({**identity, "journal": 2}).encode() + b"\n"
    if lines[:1] != [plan]:  # new, or the work of another source: from the start
        lines = [plan]
        for stray in set(partial.iterdir()) - {partial / "journal"}:
            stray.unlink()
    source.open()
    found, reasons = np.zeros(len(source.clips), FOUND), {}
    # Written, not mapped: on a full disk a write fails with an error, a mapped page with a signal.
    with ExitStack() as stack:
        rows = WaveFiles(partial, len(found), stack)
        done = _packed(lines[1:], rows, found, reasons)
        journal.truncate(0)  # a half-written last line goes, and what was lost
        journal.writelines(lines[: 1 + done])
        journal.flush()
        bar = stack.enter_context(progress(len(found), f"packing {identity['name']}", done))
        pool = start(source, workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        left = {int(i): source.clips[i].where for i in np.flatnonzero(~found["seen"])}
        for some in _pieces(source.each(left) if hasattr(source, "each") else left.items(), 16 * PIECE * workers):
            with _deaf():  # the workers start here
                clips = [(i, source.clips[i]._replace(where=where)) for i, where in some]
                results = pool.map(_decode, clips, chunksize=PIECE)
            for row, entry in results:
                rows.write(entry["clip"], row)
                journal.write(json.dumps(entry).encode() + b"\n")
                journal.flush()
                _note(entry, found, reasons)
                bar.update()
        if not found["samples"].any():
            first = f"the first, {source.clips[0].path}: {reasons[0]}"
            told = "give wav, flac, ogg or mp3 files"
            raise KwsError(f"source {identity['origin']} has no readable clips ({first}); {told}")
        noises = source.noise()
        skipped = source.skipped + [{"path": source.clips[i].path, "reason": reasons[i]} for i in sorted(reasons)]
        if skipped and identity["options"]["strict"]:
            which = f"clip {skipped[0]['path']} of {identity['origin']}"
            raise KwsError(f"{which} is unusable: {skipped[0]['reason']}; fix it, or pack without strict to skip it")
        digest = rows.close_up(found["samples"] > 0)
    _finish(source, identity, partial, found, noises, skipped, digest)


def _pool(source, workers):
    """Processes that decode clips of a source."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    return ProcessPoolExecutor(workers, spawn, _begin, (source,))


def _pieces(clips, most):
    """Lists of at most `most` of (number, where), and of not much more than HELD bytes: they wait in memory."""
    some, size = [], 0
    for i, where in clips:
        some.append((i, where))
        size += len(where) if isinstance(where, bytes) else 0
        if len(some) == most or size > HELD:
            yield some
            some, size = [], 0
    if some:
        yield some


@contextmanager
def _deaf():
    """Processes that start inside do not hear Ctrl-C: this one does, and stops them."""
    resource_tracker.ensure_running()  # which would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _packed(lines, rows, found, reasons):
    """Note what the journal's lines say of clips whose rows are as they say; how many, up to the first that is not."""
    for done, line in enumerate(lines):
        try:
            entry = json.loads(line)
            row = rows.read(entry["clip"]) if "samples" in entry else b""
            if _checksum(row, entry) != entry["crc"]:
                return done
            _note(entry, found, reasons)
        except (*BROKEN_TEXT, KeyError, TypeError, AttributeError, IndexError):
            return done
    return len(lines)


def _note(entry, found, reasons):
    """Put what the journal says of a clip among what is known."""
    i = entry["clip"]
    if "reason" in entry:
        reasons[i] = entry["reason"]
    found[i] = (entry.get("samples", 0), True, entry.get("clipped", False), entry.get("silent", False))


def _checksum(row, entry):
    """CRC-32 of a clip's row and of what the journal says of it."""
    return zlib.crc32(json.dumps({k: v for k, v in entry.items() if k != "crc"}).encode(), zlib.crc32(row))


def _finish(source, identity, partial, found, noises, skipped, digest):
    """The index, the noise and the card beside the waves; then nothing else is left in the folder."""
    kept = np.flatnonzero(found["samples"]).tolist()
    clips, found = [source.clips[i] for i in kept], found[kept]
    lines = (dict(zip(COLUMNS, (*c[:4], n))) for c, n in zip(clips, found["samples"].tolist()))
    write_csv(partial / "index.csv", lines, COLUMNS)
    for name, array in (("index", None), ("noise", np.concatenate([np.zeros(0, np.int16), *noises]))):
        with replacing(partial / f"{name}.npy") as scratch, open(scratch, "wb") as f:
            np.save(f, parse_index(partial / "index.csv") if array is None else array)
    with open(partial / "index.csv", "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)

    def tally(counts, *key):
        return {split: counts[(*key, split)] for split in SPLITS}

    per_word = Counter((c.word, c.split) for c in clips)
    card = {
        **identity,
        "checksum": digest.hexdigest(),
        "index_crc": checksum(partial / "index.csv", partial / "index.npy"),
        "clips": tally(Counter((c.split,) for c in clips)),
        "words": {word: tally(per_word, word) for word in sorted({word for word, _ in per_word})},
        "speakers": tally(Counter((split,) for _, split in {(c.speaker, c.split) for c in clips})),
        "noise_seconds": round(sum(map(len, noises)) / SAMPLE_RATE, 3),
        "noise_files": [*map(len, noises)],  # samples of each, in the order of their names
        "short": int((found["samples"] < CLIP).sum()),
        **{key: int(found[key].sum()) for key in ("clipped", "silent")},
        "skipped": skipped,
    }
    notes = getattr(source, "notes", [])
    if nameless := sum(not c.named for c in clips):
        how = "SPEAKER_nohash_N.wav, or --speaker-from"
        which = f"{nameless} of {len(clips)} clips have no speaker in their names ({how})"
        notes = [f"{which}; each name counts as a speaker, so a person may be in two splits", *notes]
    if both := sum(n > 1 for n in Counter(speaker for speaker, _ in {(c.speaker, c.split) for c in clips}).values()):
        notes = [*notes, f"{both} speakers are in two splits, so the test says too little of new voices"]
    if notes:
        card["note"] = "; ".join(notes)
        print(f"note: {identity['origin']}: {card['note']}", file=sys.stderr)
    write_json(partial / "card.json", card)
    (partial / "journal").unlink()  # last: until here, a killed run would have to be resumed


def _begin(source):
    """A worker starts: keep the source and one thread; end when the parent does, even when that is killed."""
    global _source
    os.environ["OMP_NUM_THREADS"] = "1"  # for PyTorch, which is imported when a clip must be resampled
    if "torch" in sys.modules:  # the program's main module imported it
        sys.modules["torch"].set_num_threads(1)
    _source = source
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _decode(numbered):
    """One (number, clip), in a worker -> (the bytes of its row, what the journal says of it)."""
    i, clip = numbered
    try:
        wave, clipped = _source.decode(clip)
    except Unreadable as e:
        row, entry = b"", {"clip": i, "reason": str(e)}
    else:
        row = wave.tobytes().ljust(ROW, b"\0")
        entry = {"clip": i, "samples": len(wave), "clipped": clipped, "silent": not wave.any()}
    return row, {**entry, "crc": _checksum(row, entry)}
