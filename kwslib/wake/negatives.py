"""What is not the phrase: words near it by phonemes, common words, sentences, and real speech at hand."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from kwslib.data.audio import Unreadable, decode, to_int16
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, KwsError

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")
VOWELS = set("aeiouyæɐɑɒɔəɚɛɜɪʊʌᵻøɵɨʉ")
ALIKE = [set(pair) for pair in ("tdɾ", "pb", "kɡ", "sz", "fv", "θð", "ʃʒ", "nm", "nŋ", "lɫ", "rɹ")]  # in some accents
COMMON = Path(__file__).with_name("words.txt").read_text().split()
LONG = 60 * SAMPLE_RATE  # samples of a piece of a recording that is longer than two such
ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr r s sh sl sm sn sp st t th tr v w y z".split()
CODAS = "b ck d f g l m n nd ng nt p r rt s st t th x z".split()


def held(word):
    """Whether a word (a file's name, …) is kept for the estimates, not trained on: one in five, by its checksum."""
    return zlib.crc32(word.encode()) % 5 == 0


def distance(a, b):
    """How far two strings of IPA are apart: edits, of which those that an accent does count 0.4: between vowels, or
    between consonants of one place."""
    row = np.cumsum([0.0, *(_weight(y) for y in b)])
    for x in a:
        before, row = row, [row[0] + _weight(x)]
        for j, y in enumerate(b):
            swap = 0 if x == y else 0.4 if {x, y} <= VOWELS or any({x, y} <= pair for pair in ALIKE) else 1
            row.append(min(before[j] + swap, before[j + 1] + _weight(x), row[j] + _weight(y)))
    return float(row[-1])


def _weight(sound):
    return 0.6 if sound in VOWELS else 1.0


def candidates(phrase, rng, count=600):
    """Spellings near the phrase, and parts of it: other consonants, a part lost, another word beside one of its own."""
    words, made = phrase.split(), set()
    for _ in range(3 * count):  # a short phrase has fewer
        if len(made) >= count:
            break
        spelled, i = list(words), int(rng.integers(len(words)))
        word, kind = words[i], rng.integers(4)
        groups = _groups(word)
        if kind == 0 and len(words) > 1:
            spelled[i] = str(rng.choice(COMMON))
        elif kind == 1 and len(word) > 4:
            cut = int(rng.integers(2, len(word) - 1))
            spelled[i] = word[:cut] if rng.uniform() < 0.5 else word[cut:]
        elif kind == 2 and len(words) > 1:
            spelled = [word] if rng.uniform() < 0.5 else words[::-1]
        else:
            for _ in range(int(rng.integers(1, 3))):
                j = int(rng.integers(len(groups)))
                if groups[j][0] not in "aeiouy":
                    groups[j] = str(rng.choice(ONSETS if j == 0 else CODAS if j == len(groups) - 1 else ONSETS + CODAS))
            spelled[i] = "".join(groups)
        made.add(" ".join(spelled))
    return sorted(made - {phrase})


def _groups(word):
    """The runs of vowels and consonants of a spelled word."""
    groups = [word[0]]
    for letter in word[1:]:
        if (letter in "aeiouy") == (groups[-1][-1] in "aeiouy"):
            groups[-1] += letter
        else:
            groups.append(letter)
    return groups


def near(spellings, sounds, target, count, phrases=()):
    """`count` of the spellings that are another word, half of them the nearest: {spelling: distance}; none near a short
    phrase.

    At least 1.6 from the `target` and from all `phrases`, IPA too, so that no accent of one is among them, nor what
    holds all of it."""
    found = {}
    for spelling, ipa in zip(spellings, sounds):
        d, others = distance(ipa, target), {target, *phrases}
        if d > 0.67 * len(target) or ipa in {v[1] for v in found.values()}:
            continue
        if not any(other in ipa or distance(ipa, other) < 1.6 for other in others):
            found[spelling] = (d, ipa)
    order = sorted(found, key=lambda s: found[s][0])
    rest = order[count // 2 :]
    return {s: found[s][0] for s in order[: count // 2] + rest[:: max(1, 2 * len(rest) // count)]}


def sentences(words, count, seed):
    """`count` sequences of 3 to 8 of the words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, int(rng.integers(3, 9)))) for _ in range(count)]


def real(paths, phrases):
    """Real speech without the phrases, from packed corpora, folders and zips: a dict of lists of int16 waves.

    train, held (one file in five, the last fifth of one of more than two minutes, or a corpus' validation split; never
    its test split), noise (a corpus' background noise for training), sources (names). Clips of a corpus whose word is a
    phrase, or in one, are left out."""
    found = {"train": [], "held": [], "noise": [], "sources": []}
    own = {word for phrase in phrases for word in phrase.split()}
    for path in map(Path, paths):
        found["sources"].append({"name": path.name})
        if (path / "index.csv").exists():
            corpus = load_corpus(path)
            found["sources"][-1] = corpus.origin()
            others = ~np.isin(corpus.words, sorted(own))
            for split, kept in (("training", "train"), ("validation", "held")):
                rows = np.flatnonzero(others & (corpus.splits == split))
                found[kept] += [corpus.waves[i, : corpus.samples[i]] for i in rows]
            if len(corpus.noise) >= 10 * SAMPLE_RATE:
                found["noise"].append(noise_of(corpus, "training").flatten())
            continue
        for name, wave in recordings(path):
            if len(wave) <= 2 * LONG:
                found["held" if held(name) else "train"].append(wave)
                continue
            end = len(wave) - len(wave) // 5
            for kept, part in (("train", wave[:end]), ("held", wave[end:])):
                found[kept] += np.split(part, range(LONG, len(part), LONG))
    return found


def recordings(path):
    """(name, int16 wave) of every readable audio file under a folder or in a zip. Raises KwsError for none."""
    path, count = Path(path), 0
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        files = {n: (lambda n=n: archive.read(n)) for n in sorted(archive.namelist())}
    else:
        files = {str(p.relative_to(path)): (lambda p=p: p) for p in sorted(path.rglob("*")) if p.is_file()}
    for name, source in files.items():
        if name.lower().endswith(AUDIO):
            try:
                wave = decode(source())
            except Unreadable:
                continue
            # damaged, behind a password, or packed in another way
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as e:
                raise KwsError(f"{path}: {name} cannot be unpacked ({e}); unpack it, and give its folder") from None
            count += 1
            yield name, to_int16(wave)[0]
    if not count:
        raise KwsError(f"{path} does not exist, or holds no wav, flac, ogg or mp3 files that can be read")
