"""One packed corpus from any source: waveforms that training maps into memory, an index, a card.

A corpus folder holds `waves.npy` (int16, clips x 16,000, shorter clips padded with zeros), `index.csv` (path, word,
speaker, split, samples), `noise.npy` (all background noise end to end) and `card.json` (source, licence, checksums,
counts). `pack` decodes every file once and appends the clips in order to `<out>.partial/waves.npy`, with one line in a
journal per clip; a run that was killed continues after its last line and ends with the same bytes. After a loss of
power, too: a line has a checksum over itself and its row, and what does not agree is packed again."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from tokenize import TokenError

import numpy as np

from kwslib.data.audio import Unreadable
from kwslib.data.fetch import progress
from kwslib.data.folder import LONGEST, Folder, SpeechCommandsArchive
from kwslib.data.manifest import SPLITS, is_manifest
from kwslib.data.recordings import Recordings
from kwslib.data.synthetic import Synthetic
from kwslib.io import (
    BROKEN_TEXT,
    CLIP,
    SAMPLE_RATE,
    KwsError,
    cores,
    file_hash,
    locked,
    read_csv,
    read_json,
    remedy,
    replacing,
    sync,
    write_csv,
    write_json,
)

PIECE = 128  # clips that a worker takes at a time: 4 MB
BROKEN = (EOFError, SyntaxError, TokenError)  # what else NumPy raises of a damaged file
HEADER = 128  # bytes before the samples in waves.npy


@dataclass
class Corpus:
    """A packed corpus. waves: int16 (clips, 16000), memory-mapped; noise: int16 (n,), perhaps empty;
    paths, words, speakers, splits: str (clips,); samples: int64 (clips,), the true length of each clip."""

    root: Path
    card: dict
    waves: np.ndarray
    noise: np.ndarray
    paths: np.ndarray
    words: np.ndarray
    speakers: np.ndarray
    splits: np.ndarray
    samples: np.ndarray

    checksum = property(lambda self: self.card["checksum"], doc="SHA-256 over waves.npy and index.csv.")

    def origin(self):
        """What a checkpoint says of the corpus that it was trained on."""
        return {k: self.card[k] for k in ("name", "source", "synthetic", "licence", "attribution", "checksum")}


def load_corpus(path):
    """Open a packed corpus. Raises KwsError where a file of it is missing or the counts disagree."""
    root = Path(path)
    if not os.path.isdir(root):
        raise KwsError(f"corpus {path} does not exist; make it with: kws pack SOURCE {path}")
    card = read_json(root / "card.json", "card")
    try:
        rows = read_csv(root / "index.csv")
        waves, noise = (np.load(root / f"{name}.npy", mmap_mode="r") for name in ("waves", "noise"))
        if (longest := max((len(text) for row in rows for text in row.values()), default=0)) > LONGEST:
            raise ValueError(f"a name of {longest} characters")  # each takes as much memory as the longest
        if any(None in row for row in rows):
            raise ValueError("a line of index.csv has too many columns")
        columns = [np.array([r[k] for r in rows]) for k in ("path", "word", "speaker", "split")]
        samples, counts = np.array([int(r["samples"]) for r in rows]), sum(card["clips"].values())
        if waves.shape != (len(rows), CLIP) or waves.dtype != np.int16 or len(rows) != counts:
            raise ValueError("clips are missing")
        if not (set(columns[3]) <= set(SPLITS) and (samples > 0).all() and (samples <= CLIP).all()):
            raise ValueError("a clip's split or length in index.csv cannot be")
        if noise.ndim != 1 or noise.dtype != np.int16:
            raise ValueError("noise.npy is not int16 samples")
        corpus = Corpus(root, card, waves, np.array(noise), *columns, samples)
        corpus.origin()  # has all its keys
    except (OSError, *BROKEN_TEXT, *BROKEN, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as e:
        again = remedy(e, "delete the folder and pack it again")
        raise KwsError(f"corpus {path} is damaged ({e}); {again}") from None
    return corpus


def pack(source, out, *, words=None, strict=False, workers=None, seed=0, **options):
    """Turn a source into a packed corpus in the folder `out`, and open it.

    source: "synthetic" (options speakers, snr; see synthetic.Synthetic), "speech_commands" (downloaded to the folder
    that `out` is in; options url, md5, sha256), a folder, zip or tar of word folders, or a manifest (.csv, .jsonl; see
    kwslib.data.manifest). words: take only these. Options of recordings: only (a manifest: take its paths, in its
    splits) and speaker_from ("parent", "prefix" or a regular expression; see folder.speaker_of).
    strict: refuse unreadable clips, which are otherwise skipped and listed in the card. Returns at once where `out`
    already holds this corpus. Raises KwsError."""
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
                _pack(origin, identity, partial, journal, workers or cores())
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


def _pack(source, identity, partial, journal, workers):
    """Fill the folder `partial` with a whole corpus, continuing after what its journal lists."""
    journal.seek(0)
    lines = [line for line in journal if line.endswith(b"\n")]
    plan = json.dumps(identity).encode() + b"\n"
    if lines[:1] != [plan]:  # new, or the work of another source: from the start
        lines = [plan]
        for stray in set(partial.iterdir()) - {partial / "journal"}:
            stray.unlink()
    done = _packed(lines[1:], partial / "waves.npy")
    journal.truncate(0)  # a half-written last line goes, and what was lost
    journal.writelines(lines[: 1 + len(done)])
    journal.flush()
    source.open(partial)
    at_once = 16 * PIECE * workers
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    # Written, not mapped: on a full disk a write fails with an error, a mapped page with a signal.
    with (
        open(partial / "waves.npy", "ab") as f,
        ProcessPoolExecutor(workers, spawn, _begin, (source,)) as pool,
        progress(len(source.clips), f"packing {identity['name']}", len(done)) as bar,
    ):
        f.truncate(HEADER + sum("samples" in d for d in done) * CLIP * 2)
        try:
            for start in range(len(done), len(source.clips), at_once):  # not all: they wait in memory
                with _deaf():  # the workers start here
                    found = pool.map(_decode, source.clips[start : start + at_once], chunksize=PIECE)
                for wave, entry in found:
                    f.write(wave)
                    f.flush()
                    journal.write(json.dumps(entry).encode() + b"\n")
                    journal.flush()
                    done.append(entry)
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    _finish(source, identity, partial, list(zip(source.clips, done)))


@contextmanager
def _deaf():
    """Processes that start inside do not hear Ctrl-C: this one does, and stops them."""
    resource_tracker.ensure_running()  # which would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _packed(lines, waves):
    """What the journal says of the clips that are in `waves` as it says, up to the first that is not."""
    done = []
    with open(waves, "a+b") as f:
        f.seek(HEADER)
        for line in lines:
            try:
                entry = json.loads(line)
                if _checksum(f.read(2 * CLIP) if "samples" in entry else b"", entry) != entry["crc"]:
                    break
            except (*BROKEN_TEXT, KeyError, TypeError, AttributeError):
                break
            done.append(entry)
    return done


def _checksum(row, entry):
    """CRC-32 of a clip's row and of what the journal says of it."""
    return zlib.crc32(json.dumps({k: v for k, v in entry.items() if k != "crc"}).encode(), zlib.crc32(row))


def _finish(source, identity, partial, done):
    """The header of waves.npy, the index, the noise and the card; then nothing else is left in the folder."""
    noises = source.noise()
    skipped = source.skipped + [{"path": c.path, "reason": d["reason"]} for c, d in done if "reason" in d]
    kept = [(c, d) for c, d in done if "samples" in d]
    clips = [c for c, _ in kept]
    if skipped and identity["options"]["strict"]:
        which = f"clip {skipped[0]['path']} of {identity['origin']}"
        raise KwsError(f"{which} is unusable: {skipped[0]['reason']}; fix it, or pack without strict to skip it")
    if not clips:
        first = f"the first, {done[0][0].path}: {done[0][1]['reason']}"
        raise KwsError(f"source {identity['origin']} has no readable clips ({first}); give wav, flac, ogg or mp3 files")
    with open(partial / "waves.npy", "r+b") as f:
        shape = {"descr": "<i2", "fortran_order": False, "shape": (len(clips), CLIP)}
        np.lib.format.write_array_header_1_0(f, shape)  # HEADER bytes
        f.flush()
        os.fsync(f.fileno())
    columns = ("path", "word", "speaker", "split")
    write_csv(partial / "index.csv", [dict(zip(columns, c), samples=d["samples"]) for c, d in kept])
    with replacing(partial / "noise.npy") as scratch, open(scratch, "wb") as f:
        np.save(f, np.concatenate([np.zeros(0, np.int16), *noises]))

    def tally(splits):
        return dict.fromkeys(SPLITS, 0) | Counter(splits)

    card = {
        **identity,
        "checksum": file_hash(partial / "waves.npy", partial / "index.csv"),
        "clips": tally(c.split for c in clips),
        "words": {w: tally(c.split for c in clips if c.word == w) for w in sorted({c.word for c in clips})},
        "speakers": tally(split for _, split in {(c.speaker, c.split) for c in clips}),
        "noise_seconds": round(sum(map(len, noises)) / SAMPLE_RATE, 3),
        "noise_files": [*map(len, noises)],  # samples of each, in the order of their names
        "short": sum(d["samples"] < CLIP for _, d in kept),
        **{key: sum(d[key] for _, d in kept) for key in ("clipped", "silent")},
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
    for copy in partial.glob("*.zip"):  # of tars
        copy.unlink()
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


def _decode(clip):
    """One clip, in a worker -> (the bytes of its row in waves.npy, what the journal says of it)."""
    try:
        wave, clipped = _source.decode(clip)
    except Unreadable as e:
        row, entry = b"", {"reason": str(e)}
    else:
        row = wave.tobytes().ljust(2 * CLIP, b"\0")
        entry = {"samples": len(wave), "clipped": clipped, "silent": not wave.any()}
    return row, {**entry, "crc": _checksum(row, entry)}
