"""The spotter in an application: audio arrives in pieces, and a callback is called for each word.

    python examples/spotter_in_an_application.py "my recording.wav"

A stream takes samples of any rate, as a microphone gives them, and decides ten times a second. The shipped models know
only their own words: choose the threshold on recordings of your own. docs/listening.md says more.
"""

import sys

import soundfile

import kwslib


def on_word(word, seconds, score):
    print(f"{seconds:6.1f} s  {word}  log-odds {score:.1f}")


def main(path):
    stream = kwslib.load("mamba_light").stream(threshold=1.5)
    with soundfile.SoundFile(path) as file:
        for piece in file.blocks(round(0.08 * file.samplerate), dtype="float32", always_2d=True):  # 80 ms
            for event in stream.feed(piece.mean(1), file.samplerate):
                on_word(*event)
    for event in stream.finish():
        on_word(*event)


if __name__ == "__main__":
    main(sys.argv[1])
