"""A manifest's recordings as a source: whole files, and words cut out of long recordings."""

import hashlib
from pathlib import Path

import numpy as np

from kwslib.data.audio import Unreadable, check_rate, loudest_window, resample, to_int16
from kwslib.data.folder import NOISE, Clip, Folder, rights, source_card, speaker_of, which_set
from kwslib.data.manifest import read_manifest
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, file_hash


class Recordings(Folder):
    """The clips that a manifest names, in its order; see `kwslib.data.manifest` for its columns.

    Without start a clip is cut from its file as Folder does. With start and end it is the second of the recording whose
    middle is theirs, so that what was recorded around the word stays; of a word longer than a second, its loudest
    second; no end means one second from start. Rows of word `_background_noise_` are noise. Without speaker, the path
    says it (`speaker_of`, rule speaker_from); without split, the speaker (`which_set`)."""

    def __init__(self, path, words=None, speaker_from=None):
        self._ask(words, speaker_from)
        self.path, self.archive, files = Path(path), False, {}
        self.clips, self.noises = [], []
        for row in read_manifest(path):
            where = f"manifest {path} line {row.line}"
            word = row.word or Path(row.path).parent.name
            file = Path(path).absolute().parent / row.path
            if not file.is_file():
                raise KwsError(f"{where}: file {file} does not exist; correct the path or delete the line")
            if word.startswith("_") and (word != NOISE or row.start is not None) or not word:
                told = f"{NOISE}, whole files, is the only word that begins with _"
                raise KwsError(f"{where}: word {word!r} cannot be taken; {told}")
            files[row.path] = (file.stat().st_size, file.stat().st_mtime_ns)
            if word == NOISE:
                self.noises.append((row.path, file))
            elif words is None or word in words:
                self.clips.append(self._clip(row, word, file))
        listing = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        checksum, name = {"sha256": file_hash(path), "listing_sha256": listing}, self.path.name
        self.card = source_card(name, "manifest", *rights(name), origin=name, checksum=checksum)

    def _clip(self, row, word, file):
        speaker, named = (row.speaker, True) if row.speaker else speaker_of(row.path, self.rule)
        span = "" if row.start is None else f"#{row.start:.9g}" + ("" if row.end is None else f"-{row.end:.9g}")
        return Clip(row.path + span, word, speaker, row.split or which_set(speaker), (file, row.start, row.end), named)

    def _list(self):
        return self.clips, self.noises

    def decode(self, clip):
        file, start, end = clip.where
        if start is None:
            return super().decode(clip._replace(where=file))
        return to_int16(cut(file, start, end))


def cut(path, start, end=None):
    """One second around what a recording says from start to end, in seconds -> float32 (n,), 16 kHz, n <= 16,000.
    Only that part of the file is decoded. Raises Unreadable."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = check_rate(file.samplerate)
            length = file.frames / rate
            if (end or start) > length + 0.01 or start > length - 0.01:
                raise Unreadable(f"the word at {start:g} s is beyond the recording's end at {length:.2f} s")
            if end is None:
                end = min(start + 1, length)
            elif end - start < 1:
                start = max(0.0, min((start + end) / 2 - 0.5, length - 1))
                end = start + 1
            first = max(0, int(start) - 1)  # whole seconds, one more on each side for the filter that resamples
            file.seek(first * rate)
            block = file.read((int(end) + 2 - first) * rate, dtype="float32", always_2d=True).mean(axis=1)
    except Unreadable:
        raise
    except (OSError, soundfile.SoundFileError, TypeError, ValueError, MemoryError) as e:
        raise Unreadable(f"not audio that libsndfile reads ({getattr(e, 'error_string', e)})") from None
    if not np.isfinite(block).all():
        raise Unreadable("holds NaN or infinite samples")
    begin, size = round((start - first) * SAMPLE_RATE), round((end - start) * SAMPLE_RATE)
    wave = resample(block, rate)[begin : begin + size]
    loudest = loudest_window(wave, CLIP) if len(wave) > CLIP else 0
    return wave[loudest : loudest + CLIP]
