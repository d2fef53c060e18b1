"""Real clips, to whose training split synthetic speech of the same words is added: the corpus of one trial of a search.

    python -m paper.added profiles/search/added.yaml data/search_added

Validation and test clips, and the noise, are those of the archive alone."""

from __future__ import annotations

import argparse
import os
import tempfile
import zipfile
from pathlib import Path

import soundfile

from kwslib.data.corpus import pack
from kwslib.data.manifest import Row
from kwslib.io import SAMPLE_RATE, KwsError, cli, write_csv
from kwslib.wake.negatives import AUDIO
from paper.profile import Profile

OLD = (946_684_800,) * 2  # of every file: a packed corpus remembers when its files were written


def add_synthetic(archive, words, out, speakers=200, seed=0):
    """Pack the word folders of a zip, and `words` said by so many voices of espeak-ng, all for training; returns the
    corpus. Raises KwsError where there is no such zip."""
    if not zipfile.is_zipfile(archive):
        raise KwsError(f"{archive} is no zip, or does not exist; give a zip of word folders")
    with tempfile.TemporaryDirectory() as folder:
        folder, rows = Path(folder), []
        zipfile.ZipFile(archive).extractall(folder)
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO):
            rows.append({"path": path.relative_to(folder).as_posix(), "word": path.parent.name})
        spoken = pack("synthetic", folder / "spoken", words=words, speakers=(speakers, 1, 1), seed=seed)
        for i in (spoken.splits == "training").nonzero()[0]:
            name = f"synthetic/{spoken.words[i]}/{spoken.speakers[i]}_nohash_0.wav"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name, spoken.waves[i, : spoken.samples[i]], SAMPLE_RATE)
            rows.append({"path": name, "word": spoken.words[i], "speaker": spoken.speakers[i], "split": "training"})
        write_csv(folder / "manifest.csv", rows, Row._fields[:4])
        for path in folder.rglob("*"):
            os.utime(path, OLD)
        return pack(folder / "manifest.csv", out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("params", help="parameter file, whose corpus.source is a zip of word folders")
    parser.add_argument("out", help="folder for the packed corpus")
    a = parser.parse_args()
    profile = Profile(a.params)
    card = add_synthetic(profile.corpus_path(), profile.task, a.out, **profile.corpus["options"]).card
    print(f"{a.out}: {card['clips']}")
    return 0


if __name__ == "__main__":
    cli(main)
