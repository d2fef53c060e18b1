"""One packed corpus from any source: waveforms that training can map into memory, an index, a card.

A corpus folder holds `waves.npy` (int16, clips x 16,000, shorter clips padded with zeros),
`index.csv` (path, word, speaker, split, samples), `noise.npy` (all background noise end to end)
and `card.json` (source, licence, checksums, counts). `pack` decodes every file once, in worker
processes, and appends the pieces in order to `<out>.partial/waves.npy`, with one line in a journal per
piece; a run that was killed goes on after its last journal line and ends with the same bytes.

    python -m kwslib.corpus ../speech_commands_subset.zip data/subset
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .fetch import Progress
from .io import CLIP, KwsError, cli, read_csv, read_json, replacing, write_csv, write_json
from .sources import SPLITS, Folder, SpeechCommands, Unreadable
from .synthetic import Synthetic

PIECE = 128  # clips per piece of work: 4 MB
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

    @property
    def checksum(self):
        """SHA-256 over waves.npy and index.csv, as the card has it."""
        return self.card["checksum"]


def load_corpus(path):
    """Open a packed corpus. Raises KwsError where a file of it is missing or the counts disagree."""
    root = Path(path)
    if not root.is_dir():
        raise KwsError(f"corpus {path} does not exist; make it with: python -m kwslib.corpus SOURCE {path}")
    card = read_json(root / "card.json", "card")
    try:
        rows = read_csv(root / "index.csv")
        waves = np.load(root / "waves.npy", mmap_mode="r")
        noise = np.load(root / "noise.npy")
        columns = {k: np.array([r[k] for r in rows]) for k in ("path", "word", "speaker", "split", "samples")}
        samples, counts = columns["samples"].astype(np.int64), sum(card["clips"].values())
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as e:
        raise KwsError(f"corpus {path} is damaged ({e}); delete the folder and pack it again") from None
    if waves.shape != (len(rows), CLIP) or waves.dtype != np.int16 or len(rows) != counts:
        raise KwsError(f"corpus {path} is damaged (waves.npy {waves.shape}, index.csv {len(rows)} and "
                       f"card.json {counts} clips); delete the folder and pack it again")
    return Corpus(root, card, waves, noise, columns["path"], columns["word"], columns["speaker"],
                  columns["split"], samples)


def pack(source, out, *, words=None, strict=False, workers=None, seed=0, **options):
    """Turn a source into a packed corpus in the folder `out`, and open it.

    source: "synthetic" (options speakers, snr; see synthetic.Synthetic), "speech_commands" (downloaded to
    the folder that `out` is in; options url, md5, sha256), or a folder, zip or tar of word folders.
    words: take only these. strict: refuse unreadable clips, which are otherwise skipped and listed in the
    card. Returns at once where `out` already holds this corpus. Raises KwsError.
    """
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    words = sorted(set(words)) if words else None
    if workers is not None and workers < 1:
        raise KwsError(f"workers is {workers}; give one or more")
    try:
        if source == "synthetic":
            origin = Synthetic(words, seed=seed, **options)
        elif source == "speech_commands":
            origin = SpeechCommands(out.parent, words, **options)
        else:
            origin = Folder(source, words, **options)
    except TypeError as e:
        raise KwsError(f"source {source} does not take these options ({e}); leave them out") from None
    options = {"words": words, "strict": strict, **getattr(origin, "options", {})}
    identity = json.loads(json.dumps({**origin.card, "options": options}))
    if out.exists():
        held = read_json(out / "card.json", "card") if out.is_dir() else {}
        if any(held.get(k) != identity[k] for k in ("source", "source_checksum", "options")):
            raise KwsError(f"{out} holds something else; choose another folder or delete it")
        return load_corpus(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with open(partial / "journal", "a+b") as journal:
            _pack(origin, identity, partial, journal, workers or len(os.sched_getaffinity(0)))
            os.replace(partial, out)
    except BrokenProcessPool:
        raise KwsError(f"a worker process died while packing {source}; run again (it goes on where it was), "
                       "with fewer workers if memory ran out; a script must call pack under if __name__ == "
                       "'__main__'") from None
    except OSError as e:
        raise KwsError(f"cannot write {out} ({e.strerror or e}); make room or choose another folder, then "
                       "run again, it goes on where it was") from None
    return load_corpus(out)


def _pack(source, identity, partial, journal, workers):
    """Fill the folder `partial` with a whole corpus, going on from what its journal says is there."""
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KwsError(f"{partial} is being written by another run; wait for it") from None
    journal.seek(0)
    lines = [json.loads(line) for line in journal if line.endswith(b"\n")]
    plan = {**identity, "piece": PIECE}
    if lines[:1] != [plan]:  # new, or the work of another source: from the start
        lines = [plan]
        for stray in set(partial.iterdir()) - {partial / "journal"}:
            stray.unlink()
    _rewrite(journal, lines)
    source.open(partial)
    pieces = [source.clips[i:i + PIECE] for i in range(0, len(source.clips), PIECE)]
    done = lines[1:]
    count = sum(len(d["samples"]) for d in done)
    progress = Progress(len(source.clips), f"packing {identity['name']}", sum(map(len, pieces[: len(done)])))
    # Written, not mapped: on a full disk a write fails with an error, a mapped page with a signal.
    with open(partial / "waves.npy", "ab") as f:
        f.truncate(HEADER + count * CLIP * 2)
        f.seek(0, os.SEEK_END)
        for piece, (waves, entry) in zip(pieces[len(done):], _decoded(source, pieces[len(done):], workers)):
            _check(identity, entry["skipped"])
            f.write(waves.tobytes())
            f.flush()
            journal.write(json.dumps(entry).encode() + b"\n")
            journal.flush()
            done.append(entry)
            progress.update(len(piece))
    progress.close()
    _finish(source, identity, partial, done)


def _check(identity, skipped):
    if identity["options"]["strict"] and skipped:
        raise KwsError(f"clip {skipped[0]['path']} of {identity['origin']} is unusable: "
                       f"{skipped[0]['reason']}; mend it, or pack without strict to skip it")


def _rewrite(journal, lines):
    journal.seek(0)
    journal.truncate()
    journal.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    journal.flush()


def _finish(source, identity, partial, done):
    """The header of waves.npy, the index, the noise and the card; then nothing else is left in the folder."""
    skipped = [s for d in done for s in d["skipped"]]
    bad = {s["path"] for s in skipped}
    clips = [c for c in source.clips if c.path not in bad]
    if not clips:
        raise KwsError(f"source {identity['origin']} has no readable clips (the first, {skipped[0]['path']}: "
                       f"{skipped[0]['reason']}); give sound files that libsndfile reads")
    samples = [n for d in done for n in d["samples"]]
    with open(partial / "waves.npy", "r+b") as f:
        head = f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({len(clips)}, {CLIP}), }}"
        f.write(b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little"))
        f.write(head.ljust(HEADER - 11).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())
    write_csv(partial / "index.csv", [{"path": c.path, "word": c.word, "speaker": c.speaker, "split": c.split,
                                       "samples": n} for c, n in zip(clips, samples)])
    noise = source.noise()
    _check(identity, source.skipped)
    with replacing(partial / "noise.npy") as scratch, open(scratch, "wb") as f:
        np.save(f, noise)
    checksum = hashlib.sha256()
    for name in ("waves.npy", "index.csv"):
        with open(partial / name, "rb") as f:
            while part := f.read(1 << 22):
                checksum.update(part)
    count = Counter(c.split for c in clips)
    per_word = Counter((c.word, c.split) for c in clips)
    per_speaker = Counter(split for _, split in {(c.speaker, c.split) for c in clips})
    write_json(partial / "card.json", {
        **identity,
        "checksum": checksum.hexdigest(),
        "clips": {s: count[s] for s in SPLITS},
        "words": {w: {s: per_word[w, s] for s in SPLITS} for w in sorted({c.word for c in clips})},
        "speakers": {s: per_speaker[s] for s in SPLITS},
        "noise_seconds": round(len(noise) / CLIP, 3),
        "short": sum(n < CLIP for n in samples),
        "clipped": sum(d["clipped"] for d in done),
        "silent": sum(d["silent"] for d in done),
        "skipped": source.skipped + skipped,
    })
    (partial / "archive.tar").unlink(missing_ok=True)
    (partial / "journal").unlink()  # last: until here, a killed run would have to be resumed


def _decoded(source, pieces, workers):
    """Yield the decoded pieces in order, a few of them in the works at any time."""
    if not pieces:
        return
    # Spawned, not forked: a fork of a process that has run torch may hang.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(pieces)), spawn, _begin, (source,))
    try:
        waiting, rest = deque(), iter(pieces)
        while True:
            while len(waiting) < 2 * workers and (piece := next(rest, None)):
                waiting.append(pool.submit(_piece, piece))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise KwsError("the workers that decode clips could not start or were killed; in a script, call pack under "
                       "`if __name__ == '__main__':`, and mind the memory") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(source):
    """A worker starts: keep the source; end when the parent does, even when that is killed."""
    global _source
    _source = source
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _piece(clips):
    """Decode some clips in a worker -> (int16 (readable, 16000), what the journal says of them)."""
    waves, entry = [], {"samples": [], "clipped": 0, "silent": 0, "skipped": []}
    for clip in clips:
        try:
            wave, clipped = _source.decode(clip)
        except Unreadable as e:
            entry["skipped"].append({"path": clip.path, "reason": str(e)})
            continue
        waves.append(np.pad(wave, (0, CLIP - len(wave))))
        entry["samples"].append(len(wave))
        entry["clipped"] += clipped
        entry["silent"] += not wave.any()
    return np.array(waves, np.int16).reshape(-1, CLIP), entry


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m kwslib.corpus", description="Pack a corpus.")
    parser.add_argument("source", help="synthetic, speech_commands, or a folder, zip or tar")
    parser.add_argument("out", help="folder of the packed corpus")
    parser.add_argument("--words", type=lambda text: text.split(","), help="only these, with commas between")
    parser.add_argument("--strict", action="store_true", help="refuse unreadable clips")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic corpus")
    parser.add_argument("--speakers", type=int, nargs=3, metavar="N", help="synthetic: for each split")
    parser.add_argument("--snr", type=float, nargs=2, metavar="DB", help="synthetic: range of the SNR")
    args = parser.parse_args(argv)
    options = {k: tuple(v) for k in ("speakers", "snr") if (v := getattr(args, k))}
    kept = {k: getattr(args, k) for k in ("words", "strict", "workers", "seed")}
    card = pack(args.source, args.out, **kept, **options).card
    print(f"{args.out}: {card['name']}, licence: {card['licence']}")
    for split in SPLITS:
        print(f"  {split:10} {card['clips'][split]:6} clips, {card['speakers'][split]} speakers")
    print(f"  {len(card['words'])} words; {card['noise_seconds']} s of noise; {card['short']} clips short, "
          f"{card['clipped']} clipped, {card['silent']} silent; {len(card['skipped'])} files skipped")
    print(f"  checksum {card['checksum']}")


if __name__ == "__main__":
    cli(main)
