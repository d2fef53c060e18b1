"""The encoder that `kws wake` starts from: it names some five hundred words in many voices.

    python -m paper.spotting.encoder --corpus data/spot --speech wake_words.zip --out checkpoints/spot/encoder

One softmax over the common words of kwslib/wake/words.txt (less the fifth that estimates hold out) in synthetic voices,
formants and recorded ones (those of CLIPS that are at hand), and the words of the corpus in real ones, drawn by
`Windows` as wake words are. A word that sounds alike in all voices is what a detector needs that hears its own phrase
in synthetic voices alone. It starts from Mamba-Light's shipped weights. One half of the running speech stands beside
words; the other half judges detectors."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import halved, save_checkpoint
from kwslib.data.augment import SpecMask, TimeWarp
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, cli, write_json
from kwslib.machine import autocast_to, keep_memory, pick_precision
from kwslib.wake import loop, negatives, voices
from kwslib.wake.pronunciation import ALONE
from kwslib.wake.windows import Windows
from paper.spotting.commands import HELD_FLITE, START, trimmed
from paper.spotting.wake import recordings

CLIPS = {"espeak-ng": 10, "flite": 3, "piper": 4}  # of each word: espeak-ng's in variants drawn anew, others' by voice
SHARE = 3  # a word with real clips is drawn so many times as often


def speak(words, seed=0, workers=1):
    """({word: int16 waves}, waves of 300 sentences, {engine: voices})."""
    found = {e: [v for v in names if v != HELD_FLITE] for e, names in voices.engines().items() if e in CLIPS}
    jobs = [
        voices.Job(text, engine, voice, False, 1_000_003 * (seed + 1) + 1009 * i + 97 * j + k, ALONE)
        for i, text in enumerate(words)
        for j, (engine, voice) in enumerate([("espeak-ng", None), *((e, v) for e in found for v in found[e])])
        for k in range(CLIPS[engine])
    ]
    jobs += voices.jobs(negatives.sentences(words, 300, seed + 4), 1, found, seed + 17)
    said, sentences = {w: [] for w in words}, []
    for job, wave in zip(jobs, voices.speak(jobs, workers=workers)):
        if wave is not None:
            (said[job.text] if job.pace == ALONE else sentences).append(wave)
    return said, sentences, found


def material(corpus, speech, seed=0, workers=1):
    """(words, a list of waves for each, Windows, which word each of its positives is, voices): all that trains."""
    kept = [w for w in negatives.COMMON if not negatives.held(w)]
    said, sentences, found = speak(kept, seed, workers)
    training, real = corpus.splits == "training", {}
    for word in np.unique(corpus.words[training]):
        rows = np.flatnonzero(training & (corpus.words == word))
        real[str(word)] = [trimmed(corpus.waves[i, : corpus.samples[i]]) for i in rows] if len(rows) > 50 else []
    words = sorted({*kept, *(w for w, clips in real.items() if clips)})
    groups = [said.get(w, []) + real.get(w, [])[: 4 * max(50, len(said.get(w, [])))] for w in words]
    which = [i for i, w in enumerate(words) for _ in range(SHARE if real.get(w) else 1)]
    others = [corpus.waves[i, : corpus.samples[i]] for i in beside(corpus)]
    pools = {"near": [], "word": [w for own in groups for w in own[:2]], "sentence": sentences}
    pools |= {"long": recordings(speech, half=0)[None], "clip": others}
    size, noise = round(loop.LISTEN["window_s"] * SAMPLE_RATE), [noise_of(corpus, "training").flatten()]
    windows = Windows([groups[i] for i in which], pools, [0], noise, size, seed, shares={"phrase": 1.0})
    return words, windows, torch.tensor(which), found


def beside(corpus):
    """The rows of a corpus that stand beside words, without a label: every tenth of its training clips, of any word."""
    return np.flatnonzero(corpus.splits == "training")[::10]


def begin(words, corpus):
    """A KeywordSpotter of these words with Mamba-Light's weights, on features scaled to what those have learned."""
    spotter = loop.fresh(words, loop.LISTEN, START)
    spotter.card["corpus"] = corpus.origin()
    del spotter.card["detector"]
    torch.nn.init.zeros_(spotter.model.head.classify[-1].bias)
    return spotter


def fit(spotter, windows, which, steps, batch=64, lr=2e-3):
    """Cross-entropy over the words; ends with the running average of the weights in the spotter."""
    model, device, warp, mask = spotter.model, torch.device("cpu"), TimeWarp(), SpecMask((1, 8), (1, 13))
    descent, bf16, total = loop.Descent(model, [], lr, steps), pick_precision("auto", device), 0.0
    for step in range(steps):
        model.train()
        waves, targets, _ = windows.draw(batch)
        with autocast_to(device, bf16):
            logits, _ = loop.logits_of(model, mask(warp(spotter.normalise(spotter.frontend(waves)))))
            loss = F.cross_entropy(logits.float(), which[targets.argmax(1)], label_smoothing=0.05)
        descent.step(loss)
        total += loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}/{steps}  loss {total / 50:.3f}", flush=True)
            total = 0.0
    spotter.model = descent.average.of(model).eval()


def right(spotter, corpus):
    """{accuracy, n} over all its words on the real validation clips, each in the middle of a window."""
    rows = np.flatnonzero((corpus.splits == "validation") & np.isin(corpus.words, spotter.labels))
    waves = torch.from_numpy(np.stack([corpus.waves[i] for i in rows]).astype(np.float32) / 32768)
    beside = round((loop.LISTEN["window_s"] * SAMPLE_RATE - waves.shape[1]) / 2)
    with torch.no_grad():
        answers = torch.cat([spotter.logits(F.pad(w, (beside, beside))).argmax(1) for w in waves.split(256)])
    truth = torch.tensor([spotter.labels.index(w) for w in corpus.words[rows]])
    return {"accuracy": float((answers == truth).float().mean()), "n": len(rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--speech", required=True, help="wake_words.zip")
    parser.add_argument("--out", default="checkpoints/spot/encoder", help="folder of the checkpoint, in half precision")
    parser.add_argument("--results", default="results/spot/encoder.json", help="what it names rightly")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    a, begun = parser.parse_args(), time.time()
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    keep_memory()
    corpus = load_corpus(a.corpus)
    words, windows, which, found = material(corpus, a.speech, a.seed)
    spoken, spotter = time.time() - begun, begin(words, corpus)
    fit(spotter, windows, which, a.steps)
    result = {"words": len(words), "steps": a.steps, "seed": a.seed, "validation": right(spotter, corpus)}
    result["engines"] = voices.names(found)
    result |= {"speaking_s": round(spoken), "training_s": round(time.time() - begun - spoken)}
    weights = halved(spotter.model.state_dict())
    save_checkpoint(Path(a.out) / "model.safetensors", weights, spotter.card | {"run": result})
    write_json(a.results, result)
    print(result)


if __name__ == "__main__":
    cli(main)
