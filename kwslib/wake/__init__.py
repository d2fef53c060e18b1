"""Wake words of one's own: a detector for any phrase, from its text alone or with a few recordings.

voices.py     synthetic speakers, whatever text-to-speech is installed
negatives.py  what is not the phrase: near words, common words, sentences, real speech
windows.py    windows drawn from both, in rooms, with noise
train.py      the loop
report.py     misses against false alarms, thresholds, the card"""

from kwslib.wake.train import train as train
