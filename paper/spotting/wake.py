"""Wake words, judged on real recordings: `python -m paper.spotting.wake RUN`, each a JSON file in results/wake.

The recordings are of three words (see docs/wake_words.md); half of the 45 minutes of running speech, orders of coffee,
trains; the other half gives the false alarms. A run trains one detector for all three words by the recipe of
`kws wake`, or judges the one that `kws wake --out CACHE/RUN` has trained."""

import argparse
import functools
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import save_checkpoint
from kwslib.data.audio import decode, mix_at_snr, to_int16
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import noise_of
from kwslib.io import SAMPLE_RATE, KwsError, cli, write_json
from kwslib.spotter import load
from kwslib.wake import negatives, report, voices
from kwslib.wake.loop import fit, speak
from paper.spotting.streams import joined, kept

WORDS = ["computer", "snowboy", "view glass"]
ALARMS = (0, 1, 2, 3, 5, 7)
NEVER = -1e9  # the score of an engine that says nothing


def recordings(path, half=None):
    """{word: int16 waves} of the zip, the running speech under None: all, or one half (0, 1) of it."""
    archive, found = zipfile.ZipFile(path), {}
    for folder in ("computer", "snowboy", "view_glass", "_speech_"):
        names = sorted(n for n in archive.namelist() if f"/{folder}/" in n and n.endswith(".opus"))
        names = names[half::2] if folder == "_speech_" and half is not None else names
        key = None if folder == "_speech_" else folder.replace("_", " ")
        found[key] = [to_int16(decode(archive.read(n)))[0] for n in names]
    return found


def judge(spotter, takes, speech):
    """Misses of each word at 0, 1, … false alarms of that word in the speech, whose files are heard one after the
    other, as far as there are that many; at_card_thresholds, where the card has thresholds of `kws wake`: what they
    give, {rate: {word: {misses, alarms}}}."""
    _, events = report.score_all(spotter, joined(speech))
    events = [[e for e in own if e > NEVER] for own in events]
    hours, rows, limits = sum(map(len, speech)) / SAMPLE_RATE / 3600, {}, spotter.card["detector"].get("thresholds", {})
    at_limits = {rate: {} for rate in limits}
    for label, word in enumerate(spotter.labels):
        best = report.score_all(spotter, takes[word])[0][:, label]
        rows[word] = [row for row in report.curve(best, events[label], hours) if row["alarms"] in ALARMS]
        for rate, limit in limits.items():
            alarms = sum(e >= limit[word] for e in events[label])
            at_limits[rate][word] = {"misses": float((best < limit[word]).mean()), "alarms": alarms}
    found = {"hours": hours, "words": rows, "mean_misses": mean_of(rows)}
    return found | ({"at_card_thresholds": at_limits} if limits else {})


def mean_of(words):
    """{alarms: mean misses of the words}, as far as the word with the fewest false alarms has them."""
    return {own[0]["alarms"]: float(np.mean([row["misses"] for row in own])) for own in zip(*words.values())}


def noisy(waves, noise, snr=10.0, seed=0):
    """Each wave with a random piece of the noise, `snr` dB below it."""
    rng, out = np.random.default_rng(seed), []
    for wave in waves:
        piece = np.resize(noise, max(len(noise), 2 * len(wave)))
        start = rng.integers(len(piece) - len(wave))
        pair = (torch.from_numpy(np.float32(x)[None] / 32768) for x in (wave, piece[start : start + len(wave)]))
        out.append(to_int16(mix_at_snr(*pair, snr)[0].numpy())[0])
    return out


def speakers(engines, variants):
    """{engine: voices} of those asked for, all where none are; of espeak-ng so many variants, all where 0."""
    found = voices.engines()
    if absent := set(engines or ()) - found.keys():
        raise KwsError(f"engine {min(absent)} is not installed here; docs/wake_words.md says how to get it")
    found = {e: v for e, v in found.items() if not engines or e in engines}
    return found | ({"espeak-ng": voices.variants()[:variants]} if variants else {})


def gather(phrases, found, clips, seed, corpus=None, speech=(), bank=None):
    """What `fit` needs: what the engines `found` say, perhaps kept in the file `bank`; a corpus' clips and running
    speech are its negatives."""
    empty = {"train": [], "held": [], "noise": [], "sources": []}
    made = functools.partial(speak, phrases, found, empty, clips, seed, 1)
    material = kept(bank, made) if bank else made()
    material["real"] = negatives.real([corpus] if corpus else [], phrases)
    material["real"]["train"] += speech
    return material


def recipe_options(parser):
    """Those of the recipe, as `kws wake` has them."""
    for key, value in dict(steps=600, batch=64, clips=450, seed=0).items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the run, and of its file in results/wake")
    parser.add_argument("--data", required=True, help="wake_words.zip")
    parser.add_argument("--corpus", required=True, help="packed corpus: its training clips are negatives")
    parser.add_argument("--cache", default="data/wake", help="folder for what was spoken and trained")
    parser.add_argument("--engines", nargs="+", help="default: all at hand")
    parser.add_argument("--variants", type=int, default=0, help="so many voices of espeak-ng, each clip in one of them")
    parser.add_argument("--start", help="a run whose detector goes on, with recordings")
    parser.add_argument("--takes", type=int, default=0, help="real recordings of each word that train")
    parser.add_argument("--no-speech", action="store_true", help="no real speech trains, as in `kws wake` without any")
    parser.add_argument("--noise", action="store_true", help="judge in kitchen noise at 10 dB, too")
    parser.add_argument("--every", type=int, default=1, help="judge on every n-th recording only")
    recipe_options(parser)
    a, started = parser.parse_args(), time.time()
    torch.set_num_threads(1)  # so that a run gives the same numbers alone and beside others
    cache = Path(a.cache)
    cache.mkdir(parents=True, exist_ok=True)
    found = speakers(a.engines, a.variants)
    bank = cache / f"{'-'.join(found)}-{a.variants}-{a.clips}-{a.seed}.pickle"  # of several runs
    real = () if a.no_speech else (a.corpus, recordings(a.data, half=0)[None])
    material = gather(WORDS, found, a.clips, a.seed, *real, bank=bank)
    takes = recordings(a.data, half=1)
    speech, chosen = takes.pop(None), {}
    if a.takes:
        chosen = {w: np.random.default_rng(a.seed).permutation(len(t))[: a.takes] for w, t in takes.items()}
    own = [[takes[w][i] for i in chosen.get(w, [])] for w in WORDS]
    result = {"run": a.name, "options": {k: v for k, v in vars(a).items() if k not in ("data", "corpus", "cache")}}
    model, result["engines"] = cache / a.name / "model.safetensors", list(found)
    if not model.exists():
        spoken_s = time.time() - started
        begun, formants = load(cache / a.start) if a.start else None, voices.only_formants(found)
        spotter = fit(WORDS, material, own, a.steps, a.batch, a.lr, a.seed, begun, formants=formants)
        spotter.card["seconds"] = {"speaking_s": round(spoken_s), "training_s": round(time.time() - started - spoken_s)}
        save_checkpoint(model, spotter.model.state_dict(), spotter.card)
    spotter = load(model)
    result |= spotter.card.get("seconds") or {"training_s": spotter.card["wake"]["seconds"]}
    judged = {w: [x for i, x in enumerate(t) if i not in set(chosen.get(w, []))][:: a.every] for w, t in takes.items()}
    result["n"] = {w: len(t) for w, t in judged.items()}
    result["clean"] = judge(spotter, judged, speech)
    write_json(f"results/wake/{a.name}.json", result)
    if a.noise:
        kitchen = noise_of(load_corpus(a.corpus), "testing").flatten()
        judged = {w: noisy(t, kitchen) for w, t in judged.items()}
        result["kitchen_10db"] = judge(spotter, judged, noisy(speech, kitchen))
        write_json(f"results/wake/{a.name}.json", result)
    for kind in {"clean", "kitchen_10db"} & result.keys():
        print(kind, {w: [round(100 * r["misses"], 1) for r in rows] for w, rows in result[kind]["words"].items()})
        print(kind, "mean", {k: round(100 * v, 1) for k, v in result[kind]["mean_misses"].items()})


if __name__ == "__main__":
    cli(main)
