"""The spotter in an application: audio arrives in pieces, and a callback hears of words.

    python examples/spotter_in_an_application.py "my recording.wav"

The last second is classified ten times a second. A word counts when its probability, averaged over three decisions, is
above the threshold; after it, the ear rests for a second, so that one word is heard once. The shipped models know only
their own words: choose the threshold on recordings of your own.
"""

import sys
from collections import deque

import torch

import kwslib
from kwslib.data.audio import decode

RATE, HOP = 16_000, 1_600


class Ear:
    """feed(samples) takes float samples at 16 kHz, in pieces of any length, and calls on_word(word, seconds,
    probability).
    """

    def __init__(self, spotter, on_word, threshold=0.8):
        self.spotter, self.on_word, self.threshold = spotter, on_word, threshold
        self.second, self.fresh, self.heard, self.quiet_until = torch.zeros(RATE), 0, 0, 0
        self.recent = deque(maxlen=3)

    def feed(self, samples):
        for piece in torch.as_tensor(samples).split(HOP):
            self.second = torch.cat([self.second, piece])[-RATE:]
            self.heard, self.fresh = self.heard + len(piece), self.fresh + len(piece)
            if self.fresh >= HOP:
                self.fresh -= HOP
                self.decide()

    def decide(self):
        self.recent.append(self.spotter.logits(self.second[None]).softmax(1)[0])
        probability, place = torch.stack(list(self.recent)).mean(0).max(0)
        if len(self.recent) == 3 and probability > self.threshold and self.heard >= self.quiet_until:
            self.quiet_until = self.heard + RATE
            self.on_word(self.spotter.labels[place], self.heard / RATE, float(probability))


def main(path, chunk=1_280):
    ear = Ear(kwslib.load("mamba_light"), lambda word, at, p: print(f"{at:6.1f} s  {word}  {p:.0%}"))
    for piece in torch.as_tensor(decode(path)).split(chunk):  # a microphone would give such pieces: 80 ms
        ear.feed(piece)


if __name__ == "__main__":
    main(sys.argv[1])
