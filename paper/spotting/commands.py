"""A detector of eight commands with reject.

    python -m paper.spotting.commands --corpus data/spot --speech wake_words.zip --seed 0

Several trainings, each with its own seed, are one detector: the mean of their scores (`together`). One sigmoid for each
command, trained by the loop of `kws wake` from Mamba-Light's shipped weights, with the rows of its own head for these
words. Positives are the real training clips, cut to the word; negatives, drawn anew for every window: the other words
of the corpus, half of the running speech, near and common words and sentences by synthetic voices, and what the model
itself takes for a command (see kwslib/wake). What is held out for what: see `parts`."""

import argparse
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import V2_35, noise_of
from kwslib.io import SAMPLE_RATE, cli
from kwslib.models.ensemble import Ensemble
from kwslib.spotter import KeywordSpotter
from kwslib.wake import loop, negatives, voices
from kwslib.wake.pronunciation import ALONE
from paper.spotting.streams import kept
from paper.spotting.wake import recordings

START = "mamba_light"  # the shipped weights that training starts from
COMMANDS = ["down", "go", "left", "no", "right", "stop", "up", "yes"]
HELD_WORDS = {"validation": ["bed", "five"], "testing": ["on", "off"]}  # of the corpus; the rare ones are for testing
PAST_S = 3.0  # heard before a window: the detector learns to carry its state, too
ENGINES = ("espeak-ng", "flite", "piper")  # those of them that are at hand
HELD_FLITE = "rms"  # this recorded speaker says the test sentences only


def words_for(split, holding=False):
    """The common words of a split: none that is a word of the corpus or sounds like one, so that no voice says in
    training what is told of there as left out, nor in ordinary speech what real clips have trained. Of those for
    validation and testing, the ones whose sounds hold a whole command ("gold": "go") are no ordinary speech but
    confusable words: `holding`."""
    place = {0: "validation", 5: "testing"}
    sounds = dict(zip(negatives.COMMON, voices.phonemes(negatives.COMMON)))
    corpus, own, found = set(voices.phonemes(V2_35)), voices.phonemes(COMMANDS), []
    for word, ipa in sounds.items():
        if word in V2_35 or ipa in corpus or place.get(zlib.crc32(word.encode()) % 10, "training") != split:
            continue
        if split == "training" or any(c in ipa for c in own) == holding:
            found.append(word)
    return found


def near_words(words, count, seed=0, held=False):
    """{command: [near words]} by their phonemes, of `words` and of spellings, of which one in five is `held` out. None
    is a word of the corpus or sounds like one."""
    rng = np.random.default_rng(seed)
    spellings = [[s for s in negatives.candidates(c, rng, 400) if negatives.held(s) == held] for c in COMMANDS]
    spellings = [sorted({*own, *words} - {*V2_35}) for own in spellings]
    sounds = iter(voices.phonemes([*COMMANDS, *(s for own in spellings for s in own)]))
    targets, corpus, found = [next(sounds) for _ in COMMANDS], set(voices.phonemes(V2_35)), {}
    for command, own, target in zip(COMMANDS, spellings, targets):
        other = [(s, ipa) for s in own if (ipa := next(sounds)) not in corpus]
        found[command] = list(negatives.near(*zip(*other), target, count))
    return found


def speak(clips=500, seed=0, workers=1):
    """The synthetic negatives that train: a dict as `kwslib.wake.loop.fit` takes it."""
    found = {e: [v for v in names if v != HELD_FLITE] for e, names in voices.engines().items() if e in ENGINES}
    words = words_for("training")
    near = near_words(words, max(4, clips // 12), seed)
    wanted = {
        "near": voices.jobs(sorted({s for group in near.values() for s in group}), 2, found, seed + 2, pace=ALONE),
        "word": voices.jobs(words, 2, found, seed + 3, pace=ALONE),
        "sentences": voices.jobs(negatives.sentences(words, clips, seed + 4), 1, found, seed + 4),
    }
    made = loop.spoken(wanted | {"positives": []}, [], workers)
    place = {word: i for i, word in enumerate(words)}
    made["word_of"] = [place[text] for text, _ in made["word"]]
    return made | {k: [wave for _, wave in made[k]] for k in wanted} | {"near_words": near, "engines": found}


def spoken(out, clips, seed):
    """What `speak` gives, or the file in the folder `out` that an earlier run left."""
    return kept(Path(out) / f"spoken-{clips}-{seed}.pickle", lambda: speak(clips, seed))


def parts(corpus, speech):
    """What trains and what chooses thresholds, int16 waves: positives, train, held, noise.

    Of the corpus its own splits; no clip of a HELD_WORDS word trains, nor of one that has less than 100 training clips.
    Of the running speech's two halves the second judges (false_alarms.py); of the first, one file in five is for
    validation. Of the noise files, the training ones."""
    training = corpus.splits == "training"
    own = [np.flatnonzero(training & (corpus.words == c)) for c in COMMANDS]
    names, counts = np.unique(corpus.words[training], return_counts=True)
    kept = set(names[counts >= 100]) - {*COMMANDS, *HELD_WORDS["validation"], *HELD_WORDS["testing"]}
    others = np.flatnonzero(training & np.isin(corpus.words, sorted(kept)))
    first = recordings(speech, half=0)[None]
    return {
        "positives": [[trimmed(corpus.waves[i, : corpus.samples[i]]) for i in rows] for rows in own],
        "train": [corpus.waves[i, : corpus.samples[i]] for i in others]
        + [w for i, w in enumerate(first) if i % 5 != 4],
        "held": first[4::5],
        "noise": [noise_of(corpus, "training").flatten()],
        "words": sorted(kept),
    }


def trimmed(wave):
    """A clip without what is before and after its word, int16."""
    start, end = span(wave)
    return wave[max(0, start - 960) : end + 1600]


def span(wave, bridge=15):
    """(start, end) of the word in a clip, in samples: around the loudest 10 ms all that is 8 dB above the quietest
    tenth and at most 30 dB below the loudest, over pauses of up to `bridge` x 10 ms. The clip where that is too short
    for a word."""
    step = SAMPLE_RATE // 100
    frames = wave[: len(wave) // step * step].astype(np.float64).reshape(-1, step)
    power = np.convolve(np.square(frames).mean(1), np.ones(3) / 3, "same") + 1
    loud = np.flatnonzero(power > max(10**0.8 * np.quantile(power, 0.1), 1e-3 * power.max()))
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > bridge) + 1)
    best = max(groups, key=lambda g: power[g].sum())
    return (best[0] * step, (best[-1] + 1) * step) if len(best) >= 10 else (0, len(wave))


def start():
    """A spotter with Mamba-Light's shipped weights, and its head's rows for the commands."""
    spotter, (weights, card) = loop.fresh(COMMANDS, loop.LISTEN, START), read_checkpoint(START)
    rows = [card["labels"].index(c) for c in COMMANDS]
    with torch.no_grad():
        spotter.model.head.classify[-1].weight.copy_(weights["head.classify.4.weight"][rows])
    return spotter


def train(corpus, speech, out, steps=1000, batch=64, clips=500, lr=1e-3, seed=0):
    """Train and save the detector; thresholds come later, from validation. Returns its card."""
    begun, corpus = time.time(), load_corpus(corpus)
    material, mine = spoken(out, clips, seed), parts(corpus, speech)
    material |= {"positives": mine["positives"], "real": mine}
    spoken_s = time.time() - begun
    spotter = loop.fit(COMMANDS, material, [[] for _ in COMMANDS], steps, batch, lr, seed, start(), PAST_S)
    sources = [corpus.origin(), {"name": Path(speech).name, "licence": "Apache 2.0"}]
    spotter.card["wake"] = {
        "engines": voices.names(material["engines"]),
        "clips": {c: len(w) for c, w in zip(COMMANDS, mine["positives"])},
        "near_words": material["near_words"], "other_words": mine["words"], "real_speech": sources,
        "steps": steps, "batch": batch, "seed": seed, "speaking_s": round(spoken_s),
        "seconds": round(time.time() - begun - spoken_s),
    }  # fmt: skip
    spotter.card["corpus"] = corpus.origin()
    save_checkpoint(Path(out) / "model.safetensors", spotter.model.state_dict(), spotter.card)
    return spotter.card


def together(spotters):
    """One KeywordSpotter of several that differ in their training's seed: an ensemble, with a card for all."""
    first, cards = spotters[0], [s.card["wake"] for s in spotters]
    if len(spotters) == 1:
        return first
    recipe = first.card["recipe"] | {"model_options": {"members": len(spotters)}}
    wake = cards[0] | {key: sum(c[key] for c in cards) for key in ("seconds", "speaking_s")}
    wake["seed"] = [c["seed"] for c in cards]
    wake["near_words"] = {c: sorted({w for own in cards for w in own["near_words"][c]}) for c in COMMANDS}
    return KeywordSpotter(Ensemble([s.model for s in spotters]), first.card | {"recipe": recipe, "wake": wake})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--speech", required=True, help="wake_words.zip")
    parser.add_argument("--out", default="checkpoints/spot/commands", help="folder of the checkpoint")
    for key, value in dict(steps=1000, batch=64, clips=500, seed=0).items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--only-speak", action="store_true", help="speak the negatives, and end")
    a = parser.parse_args()
    if a.only_speak:
        spoken(a.out, a.clips, a.seed)
        return 0
    train(a.corpus, a.speech, a.out, a.steps, a.batch, a.clips, a.lr, a.seed)
    return 0


if __name__ == "__main__":
    cli(main)
