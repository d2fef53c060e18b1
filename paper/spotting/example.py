"""The shipped example of wake words: `kws wake` with three phrases, from their text alone, judged on real recordings.

    python -m paper.spotting.example --data wake_words.zip --corpus data/spot --out checkpoints/spot/wake_words

No recording of the words trains. Negatives are what a user could have at hand: a packed corpus and a folder of running
speech, here one half of it; the other half judges (results/spot/example.json)."""

import argparse
import tempfile
from pathlib import Path

import soundfile

from kwslib.io import SAMPLE_RATE, cli, write_json
from kwslib.spotter import load
from kwslib.wake import train, voices
from paper.spotting.wake import WORDS, judge, recordings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="wake_words.zip")
    parser.add_argument("--corpus", required=True, help="packed corpus: its training clips are negatives")
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument("--results", default="results/spot/example.json", help="what the recordings say")
    parser.add_argument("--engines", nargs="+", default=["espeak-ng", "flite"])
    parser.add_argument("--steps", type=int, default=600)
    a = parser.parse_args()
    found = {e: v for e, v in voices.engines().items() if e in a.engines}
    with tempfile.TemporaryDirectory() as folder:
        speech = Path(folder, "running_speech")
        speech.mkdir()
        for i, wave in enumerate(recordings(a.data, half=0)[None]):
            soundfile.write(speech / f"{i:04d}.flac", wave, SAMPLE_RATE)
        card = train(WORDS, a.out, negative_paths=[a.corpus, speech], steps=a.steps, found=found)
    takes = recordings(a.data, half=1)
    speech, n = takes.pop(None), {word: len(takes[word]) for word in WORDS}
    result = {"n": n, "engines": list(found), "steps": a.steps}
    result |= {"seconds": card["wake"]["seconds"], "clean": judge(load(a.out), takes, speech)}
    write_json(a.results, result)


if __name__ == "__main__":
    cli(main)
