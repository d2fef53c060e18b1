"""How a phrase is said alone: slower than in a sentence, and often with its unstressed vowels in full ("com-pu-tar").

Text-to-speech reduces an unstressed vowel to a schwa, as people do in fluent speech. To a machine people speak more
clearly, and those whose first language is another one often keep the vowel that is spelled. A share of the clips is
therefore said from phonemes with full vowels in the place of the reduced ones, drawn for each clip."""

import re
from typing import NamedTuple


class Pace(NamedTuple):
    """Ranges of tempo. words: espeak-ng's words a minute; stretch: how long the others make each sound."""

    words: tuple
    stretch: tuple


FLUENT = Pace((110, 230), (0.75, 1.35))  # in sentences
ALONE = Pace((85, 200), (0.85, 1.7))  # a word, or a phrase, and nothing else

SHARE = 0.4  # of what is said alone has full vowels
EACH = 0.75  # of its reduced vowels are made full

# espeak-ng's mnemonics: long ones first, so that the schwa of a diphthong is none; stress marks stand before a vowel.
MNEMONIC = re.compile(r"aI@|aU@|oU@|[AOeEiIuU]@|@2|@L|I2|a#|t#|@|3:|3|.", re.DOTALL)
FULL = {
    "@": ["O", "a", "E", "V", "A:"], "@2": ["O", "a", "E", "V", "A:"], "a#": ["a", "A:", "V", "eI"],
    "3": ["A@", "3:", "E@"], "I2": ["I", "i:", "E"], "@L": ["al", "Ol"], "t#": ["t"],
}  # fmt: skip
# flite's phones
FULL_FLITE = {"ax": ["aa", "ae", "ah", "ao", "eh"], "er": ["aa r", "er", "eh r"]}


def full_vowels(mnemonics, rng):
    """espeak-ng's mnemonics of a text -> the same with most reduced vowels in full and stressed, in [[brackets]]."""
    said = []
    for symbol in MNEMONIC.findall(mnemonics):
        if symbol in FULL and rng.uniform() < EACH:
            stress = "" if symbol == "t#" else ","  # a secondary one
            symbol = stress + str(rng.choice(FULL[symbol]))
        said.append(symbol)
    return f"[[{''.join(said)}]]"


def full_phones(phones, rng):
    """flite's phones of a text, as `flite -ps` prints them -> the same with most reduced vowels in full."""
    return " ".join(
        str(rng.choice(FULL_FLITE[p])) if p in FULL_FLITE and rng.uniform() < EACH else p for p in phones.split()
    )
