"""Name the keyword in sound files:  python -m kwslib.predict CHECKPOINT FILE…"""

from __future__ import annotations

import argparse

from kwslib.io import cli
from kwslib.spotter import load


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="checkpoint file, or the folder that holds model.safetensors")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="recordings: wav, flac, ogg or mp3, any rate, any length"
    )
    parser.add_argument("--top", type=int, default=3, help="how many labels to print (default 3)")
    a = parser.parse_args()
    spotter = load(a.checkpoint)
    for file in a.files:
        answers = "  ".join(f"{label} {p:.1%}" for label, p in spotter.predict(file)[: a.top])
        print(f"{file}: {answers}")
    return 0


if __name__ == "__main__":
    cli(main)
