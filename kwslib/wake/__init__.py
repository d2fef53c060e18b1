"""Wake words of one's own: a detector for any phrase, from its text alone or with a few recordings: `train`.

voices.py         synthetic speakers, whatever text-to-speech is installed
pronunciation.py  how a phrase is said alone: slower, and with unstressed vowels in full
negatives.py      what is not the phrase: near words, common words, sentences, real speech
windows.py        windows drawn from both, in rooms, with noise
loop.py           the training
encoder.*         weights that training starts from: they know many words (paper/spotting/encoder.py)
report.py         misses against false alarms, thresholds"""

import lazy_loader

# when first used: the processes that speak need no PyTorch
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"loop": ["train"]})
