"""The list of a packed corpus' clips, by which others pack the same from Speech Commands' own archives.

    python -m paper.manifest data/subset --out profiles/subset/clips.csv.gz

path is that of the official archive, whose clips are WAV; split the corpus'. The same corpus gives the same bytes."""

import argparse
import gzip
import os

from kwslib.data.corpus import load_corpus
from kwslib.io import cli, replacing


def write_manifest(corpus, out):
    """Write the paths and splits of a packed corpus as gzipped CSV."""
    lines = [f"{os.path.splitext(path)[0]}.wav,{split}\n" for path, split in zip(corpus.paths, corpus.splits)]
    with replacing(out) as scratch:
        scratch.write_bytes(gzip.compress("".join(["path,split\n", *lines]).encode(), 9, mtime=0))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m paper.manifest", description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="folder of the packed corpus")
    parser.add_argument("--out", required=True, help="the manifest, .csv.gz")
    arguments = parser.parse_args(argv)
    write_manifest(load_corpus(arguments.corpus), arguments.out)


if __name__ == "__main__":
    cli(main)
