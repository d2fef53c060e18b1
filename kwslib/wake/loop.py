"""Train a detector of one's own phrases: `kws wake PHRASE… --out DIR`."""

import math
import sys
import time
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.data.audio import loudest_window
from kwslib.data.augment import SpecMask, TimeWarp
from kwslib.data.features import Normalise, WaveToSpec
from kwslib.io import SAMPLE_RATE, KwsError
from kwslib.machine import autocast_to, keep_memory, pick_precision
from kwslib.models.ensemble import Ensemble, members_of
from kwslib.models.registry import build
from kwslib.spotter import KeywordSpotter
from kwslib.training.optim import Average, Schedule, parameter_groups
from kwslib.wake import negatives, report, voices
from kwslib.wake.pronunciation import ALONE
from kwslib.wake.windows import Windows

# Training starts from an encoder of many words in many voices (paper/spotting/encoder.py). Where formants are all there
# is, the front-end and so many of its blocks stay as they are.
ENCODER, STILL = Path(__file__).with_name("encoder.safetensors"), 4
MEMBERS = 2  # of an ensemble: which false alarm is the worst, and which speaker is missed, is chance of a training
GO_ON = 220 / 600  # steps with the user's recordings, after those of the text, as a share of these; at half the rate
DB = 10 / math.log(10)  # of a natural logarithm of power
LONGEST = 5.0  # s of a window
LISTEN = {"window_s": 1.5, "hop_s": 0.1, "smooth": 3, "refractory_s": 1.0}


def train(
    phrases, out, recordings=(), negative_paths=(), steps=600, batch=64, clips=450, lr=1e-3, seed=0, workers=None,
    found=None, estimate=True, alarms_per_hour=1.0,
):  # fmt: skip
    """Train one detector for all `phrases` and write it to the folder `out`. Returns the card.

    recordings: folders of the user's takes, one for each phrase: FOLDER/<phrase>/…, or the folder itself for a single
    phrase. negative_paths: folders, zips or packed corpora of speech without the phrases. steps of `batch` windows for
    each member of the model; clips: how many synthetic ones of each phrase. found: the engines to use (see
    voices.engines). estimate: measure the curve and thresholds; alarms_per_hour: a rate that gets a threshold, beside
    those of report.RATES. Raises KwsError."""
    phrases, out, started = [clean(p) for p in phrases], Path(out), time.time()
    if len(set(phrases)) < len(phrases) or not phrases:
        raise KwsError("phrases must be one or more different ones; say each once")
    for a, b in permutations(phrases, 2):
        if f" {a} " in f" {b} ":
            raise KwsError(f"phrase {b!r} holds {a!r}, which would be heard in it; take phrases that hold no other")
    if not 0 < alarms_per_hour < math.inf:
        raise KwsError(f"alarms_per_hour is {alarms_per_hour:g}; give a rate above 0, such as 0.5")
    for name, value, least in (("steps", steps, 1), ("batch", batch, 1), ("clips", clips, 1), ("seed", seed, 0)):
        if value < least:
            raise KwsError(f"{name} is {value}; give {least} or more")
    out.mkdir(parents=True, exist_ok=True)
    takes = own_takes(recordings, phrases)
    found = found or voices.engines()
    material = speak(phrases, found, negatives.real(negative_paths, phrases), clips, seed, workers)
    formants = voices.only_formants(found)
    spotter = fit(phrases, material, [[] for _ in phrases], steps, batch, lr, seed, formants=formants)
    if any(takes):
        print("your recordings join", file=sys.stderr, flush=True)
        more = max(1, round(GO_ON * steps))
        spotter = fit(phrases, material, takes, more, batch, lr / 2, seed, spotter, formants=formants)
    card = spotter.card
    card["wake"] = {
        "engines": voices.names(found),
        "voice_licences": {e: voices.LICENCES[e] for e in found},
        "clips": {p: len(w) for p, w in zip(phrases, material["positives"])},
        "recordings": {p: len(t) for p, t in zip(phrases, takes)}, "near_words": material["near_words"],
        "real_speech": material["real"]["sources"], "steps": steps, "batch": batch, "seed": seed,
    }  # fmt: skip
    warnings = report.bad_choices(phrases, material["sounds"])
    if estimate:
        near = {word for group in material["near_words"].values() for spelling in group for word in spelling.split()}
        held = speak_held(phrases, found, clips, seed, workers, near)
        more, rows = report.estimate(spotter, held, material["real"]["held"], alarms_per_hour)
        warnings += more
    card["wake"] |= {"warnings": warnings, "seconds": round(time.time() - started)}
    save_checkpoint(out / "model.safetensors", spotter.model.state_dict(), card)
    if estimate:
        report.write_curve(rows, out)
    for warning in warnings:
        print(f"note: {warning}")
    return card


def spelled(name):
    """A phrase, or the name of a folder for it, in small letters and without underscores and apostrophes."""
    return " ".join(name.lower().replace("_", " ").replace("'", "").split())


def clean(phrase):
    """The phrase as `spelled`. Raises KwsError for what a voice cannot say."""
    text = spelled(phrase)
    if not text.replace(" ", "").isascii() or not text.replace(" ", "").isalpha():
        raise KwsError(f"phrase {phrase!r} is not words of the letters a to z; spell it as it is spoken")
    return text


def own_takes(folders, phrases):
    """The user's takes of each phrase, int16 waves, untrimmed. Raises KwsError for a folder of another name."""
    takes = {p: [] for p in phrases}
    for folder in map(Path, folders):
        inside = {spelled(p.name): p for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else {}
        named = {p: inside[p] for p in phrases if p in inside}
        if not named and spelled(folder.name) in phrases:
            named = {spelled(folder.name): folder}
        if not named and len(phrases) == 1:
            named = {phrases[0]: folder}
        if not named:
            raise KwsError(f"recordings {folder} has no folder named as a phrase ({', '.join(phrases)}); rename it")
        for phrase, path in named.items():
            takes[phrase] += [wave for _, wave in negatives.recordings(path)]
    return list(takes.values())


def speak(phrases, found, real, clips, seed=0, workers=None):
    """All sound that training needs: a dict (see its end)."""
    rng = np.random.default_rng(seed)
    kept = [w for w in negatives.COMMON if not negatives.held(w) and w not in phrases][: 2 * clips]
    spellings = [sorted({*negatives.candidates(p, rng), *kept}) for p in phrases]
    sounds = voices.phonemes([*phrases, *(s for group in spellings for s in group)])
    target, rest = sounds[: len(phrases)], iter(sounds[len(phrases) :])
    most = min(60, clips)
    close = [negatives.near(s, [next(rest) for _ in s], ipa, most, target) for s, ipa in zip(spellings, target)]
    count = max(2, clips // 150)  # of each word
    wanted = {
        "positives": voices.jobs(phrases, clips, found, seed + 1, pace=ALONE),
        "near": voices.jobs([s for group in close for s in group], count, found, seed + 2, pace=ALONE),
        "word": voices.jobs(kept, count, found, seed + 3, pace=ALONE),
        "sentences": voices.jobs(negatives.sentences(kept, clips, seed + 4), 1, found, seed + 4),
    }
    made = spoken(wanted, phrases, workers)
    place = {word: i for i, word in enumerate(kept)}
    made["word_of"] = [place[text] for text, _ in made["word"]]
    for name in ("near", "word", "sentences"):
        made[name] = [wave for _, wave in made[name]]
    return made | {"near_words": dict(zip(phrases, close)), "sounds": dict(zip(phrases, target)), "real": real}


def spoken(wanted, phrases, workers):
    """Jobs by name -> (text, wave) of what was said, by name; `positives` as a list of waves for each phrase."""
    waves = iter(voices.speak([job for group in wanted.values() for job in group], workers=workers))
    made = {n: [(j.text, w) for j, w in zip(group, waves) if w is not None] for n, group in wanted.items()}
    made["positives"] = [[wave for text, wave in made["positives"] if text == phrase] for phrase in phrases]
    if silent := [p for p, w in zip(phrases, made["positives"]) if not w]:
        raise KwsError(f"no voice at hand says {silent[0]!r}; spell it as it is spoken")
    return made


def speak_held(phrases, found, clips, seed=0, workers=None, near=()):
    """The phrases, and sentences of words that training never meets, in voices that it never meets: with the usual
    `clips` two and a half hours of them, so that a threshold for one false alarm an hour is one that was counted.
    near: words that training meets in near phrases."""
    words = [w for w in negatives.COMMON if negatives.held(w) and w not in phrases and w not in near]
    return spoken({
        "positives": voices.jobs(phrases, max(8, clips // 6), found, seed + 5, held=True, pace=ALONE),
        "sentences": voices.jobs(negatives.sentences(words, 4 * clips, seed + 6), 1, found, seed + 6, held=True),
    }, phrases, workers)  # fmt: skip


def fit(phrases, material, takes, steps, batch, lr, seed, spotter=None, past_s=0.0, formants=False):
    """The trained KeywordSpotter; each member of its model is trained by itself, on windows of its own. spotter: one
    that goes on, or None to start from the encoder, MEMBERS times. past_s: seconds heard before the window in half
    of the batches, for a detector that carries its state from window to window. formants: no other voices speak."""
    torch.manual_seed(seed)
    keep_memory()
    longest = np.quantile([len(w) for group in material["positives"] for w in group], 0.9) / SAMPLE_RATE
    listen = LISTEN | {"window_s": round(max(LISTEN["window_s"], 1.1 * longest + 0.2), 1)}
    if listen["window_s"] > LONGEST:
        raise KwsError(f"the longest phrase takes {longest:.1f} s to say; take one of at most {LONGEST / 1.1:.0f} s")
    listen |= {"modes": ["windows", "carried"] if past_s else ["windows"]}
    size, real = round(listen["window_s"] * SAMPLE_RATE), material["real"]
    pools = {"near": material["near"], "word": material["word"], "sentence": material["sentences"]}
    pools["long"] = [w for w in real["train"] if len(w) > 1.2 * size]
    pools["clip"] = [w for w in real["train"] if len(w) <= 1.2 * size]
    windows = Windows(
        material["positives"], pools, material["word_of"], real["noise"], size, seed, round(past_s * SAMPLE_RATE)
    )
    spotter = spotter or fresh(phrases, listen, members=MEMBERS)
    windows.own = [[loudest(take, spoken) for take in group] for group, spoken in zip(takes, material["positives"])]
    members = members_of(spotter.model)
    for i, member in enumerate(members):
        if len(members) > 1:
            print(f"model {i + 1} of {len(members)}", file=sys.stderr, flush=True)
        one = KeywordSpotter(member, spotter.card)
        loop(one, windows, material, steps, batch, lr, STILL if formants else 0)
        members[i] = one.model
    spotter.model = Ensemble(members).eval() if len(members) > 1 else members[0]
    return spotter


def loudest(take, spoken):
    """The part of a take with the word in it: the loudest stretch as long as most synthetic voices need."""
    size = int(np.quantile([len(w) for w in spoken], 0.8))
    start = loudest_window(take, size) if len(take) > size else 0
    return take[start : start + size]


def fresh(phrases, listen, start=ENCODER, members=1):
    """A KeywordSpotter with the weights of `start`, a checkpoint or a shipped name, and a new head; with several
    `members`, each has them. Its features are ln(power + 1e-6), without a floor of the clip's own, so that they do not
    depend on the window; scaled, they are what the weights have learned to read."""
    weights, origin = read_checkpoint(start)
    unit = 1 if origin["features"]["scale"] == "log" else DB
    norm = {k: v / unit for k, v in origin["normalisation"].items()}
    card = {"model": origin["model"], "labels": list(phrases), "corpus": origin["corpus"], "licence": "MIT"}
    card |= {"features": WaveToSpec(**origin["features"] | {"scale": "log"}).options}
    card |= {"normalisation": Normalise(**norm).options, "detector": dict(listen)}
    card |= {"recipe": {"model": origin["model"], "init": Path(start).stem, "model_options": {"members": members}}}
    model, last = build(card["model"], len(phrases), members), "head.classify.4"
    for member in members_of(model):
        member.load_state_dict({k: v for k, v in weights.items() if not k.startswith(last)}, strict=False)
        torch.nn.init.constant_(member.head.classify[-1].bias, -3.0)  # most windows hold no phrase
    return KeywordSpotter(model, card)


def loop(spotter, windows, material, steps, batch, lr, still=0):
    """`steps` of AdamW on freshly drawn windows; at 40 % and 70 % the worst false alarms join the negatives. Ends with
    the running average of the weights in the spotter.

    still: how many blocks are not trained, nor the front-end; 0: all weights are. With formant voices alone a whole
    model would learn to tell them from people: all positives are synthetic, and all real speech is a negative."""
    model, device = spotter.model, torch.device("cpu")
    kept = [model.frontend, *model.blocks[:still]] if still else []
    for part in kept:
        part.requires_grad_(False)
    warp, mask = TimeWarp(), SpecMask((1, 8), (1, 13))  # a band of up to 7 mels, and 12 frames
    windows.mined = []
    words = torch.nn.Linear(model.head.norm.normalized_shape[0], max(windows.word_of) + 1)
    descent = Descent(model, [words], lr, steps)
    bf16, total, started = pick_precision("auto", device), 0.0, time.time()
    for step in range(steps):
        if step in (steps * 2 // 5, steps * 7 // 10) and steps >= 100:
            spotter.model = descent.average.of(model).eval()
            windows.mined = mine(spotter, material)
            print(f"  {len(windows.mined)} false alarms join the negatives", file=sys.stderr, flush=True)
            spotter.model = model
        model.train()
        for part in kept:
            part.eval()
        waves, targets, lone = windows.draw(batch)
        with autocast_to(device, bf16):
            features, inside = spotter.normalise(spotter.frontend(waves)), windows.size / waves.shape[1]
            cut = features.shape[1] - round(inside * features.shape[1])  # what was heard before stays as it is
            features = torch.cat([features[:, :cut], warp(features[:, cut:])], 1)
            logits, pooled = logits_of(model, mask(features), inside)
            loss = loss_of(logits, targets, pooled, lone, words)
        descent.step(loss)
        total += loss.item()
        if step % 50 == 49:
            left = (time.time() - started) / (step + 1) * (steps - step - 1) / 60
            print(f"step {step + 1}/{steps}  loss {total / 50:.4f}  {left:.1f} min left", file=sys.stderr, flush=True)
            total = 0.0
    if not math.isfinite(loss.item()):
        raise KwsError("the loss is not a number; train with a lower lr")
    spotter.model = descent.average.of(model).eval().requires_grad_(True)


def loss_of(logits, targets, pooled, lone, words):
    """Binary cross-entropy of all phrases' logits (B, phrases), summed over the phrases and averaged over the windows,
    without smoothing: a smoothed target would cap the score. A tenth of a cross-entropy joins it where windows hold a
    `lone` common word (B,), -1 for none, which `words` is to name from what is pooled (B, d): so the encoder goes on
    hearing many words."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(targets)
    if (lone >= 0).any():
        loss = loss + 0.1 * F.cross_entropy(words(pooled[lone >= 0]).float(), lone[lone >= 0])
    return loss


class Descent:
    """`steps` of AdamW, with a warm-up and a cosine to 1 % of the rate, on gradients clipped at a norm of 1; `average`:
    the running average of the model's weights. parts: modules that are trained beside the model."""

    def __init__(self, model, parts, lr, steps):
        groups = [group for part in (model, *parts) for group in parameter_groups(part, 0.02)]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
        recipe = SimpleNamespace(schedule="cosine", lr=lr, final_lr=0.01, horizon=1, epochs=1, warmup=0.1)
        self.rate, self.done = Schedule(recipe, steps), 0
        self.model, self.average = model, Average(model, 0.998)

    def step(self, loss):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model)
        self.done += 1


def frames_of(model, inputs):
    """What a SequenceKWS would pool, normalised: (B, frames, d)."""
    x, _ = model.frontend(inputs, None)
    for block in model.blocks:
        x = block(x)
    return model.head.norm(x)


def logits_of(model, inputs, share=1.0):
    """(logits (B, phrases), pooled features (B, d)) of a SequenceKWS, pooled over the last `share` of its frames."""
    frames = frames_of(model, inputs)
    pooled = frames[:, -round(share * frames.shape[1]) :].mean(1)
    return model.head.classify(pooled), pooled


def mine(spotter, material, most=600, budget=3600):
    """The training streams' windows of the highest scores, one of each stream: int16 waves.

    Long ones come first; all in all `budget` seconds are heard."""
    size = round(spotter.card["detector"]["window_s"] * SAMPLE_RATE)
    pool, rng = material["sentences"] + material["real"]["train"], np.random.default_rng(0)
    order = sorted(rng.permutation(len(pool)), key=lambda i: len(pool[i]) < 2 * SAMPLE_RATE)
    found, left = [], budget * SAMPLE_RATE
    for wave in (pool[i] for i in order):
        if (left := left - len(wave)) < 0:
            break
        times, scores = spotter.scores(wave, SAMPLE_RATE)
        best, end = scores.max(1), round(times[scores.max(1).argmax()] * SAMPLE_RATE)
        window = wave[max(0, end - size) : end]
        found.append((float(best.max()), np.pad(window, (0, size - len(window)))))
    found.sort(key=lambda pair: -pair[0])
    return [window for score, window in found[:most] if score > -5]
