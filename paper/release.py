"""A trained model to give away: half-precision weights and a model card, after a check that the accuracy does not move.

    python -m paper.release checkpoints/subset/mamba_light-0 --results results/subset --corpus data/subset --out shipped

writes shipped/mamba_light.safetensors, .json and .md; `kwslib.load("shipped/mamba_light.safetensors")` reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from scipy.stats import binomtest

from kwslib.checkpoint import halved, read_checkpoint, save_checkpoint
from kwslib.data.audio import to_float
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.io import KwsError, cli, read_json, replacing
from kwslib.spotter import load
from paper.spotting.counts import confused

MOST = 0.001  # change of validation accuracy that half precision may make
MOST_ODDS = 0.1  # and of a detector's score


def card_text(card, run, kept):
    """The model card in Markdown: words, data, licence, recipe, metrics, limits; numbers are from `run` and `kept`."""
    test, corpus, low_high = run["test"], run["corpus"], "–".join(f"{100 * v:.2f}" for v in run["test"]["interval"])
    weak = sorted(test["per_word"].items(), key=lambda w: w[1]["recall"])[:3]
    weak = ", ".join(f"{word} ({100 * s['recall']:.0f} % of {s['n']})" for word, s in weak)
    recipe = ", ".join(f"{k} {v}" for k, v in card["recipe"].items() if k not in ("model", "task", "seed"))
    return f"""# {run["model"]}, seed {run["seed"]}

A keyword spotter of kwslib: `kwslib.load("{run["model"]}.safetensors").predict("a.wav")`. {run["parameters"]:,} parameters,
{run["macs"] / 1e6:.1f} M multiply-accumulates a second of audio, float16 on disk, float32 in use.

**Words.** {", ".join(card["labels"])}. It has no class for other words or silence: whatever it hears, it names one of these.

**Data and licence.** Trained on {card["training"]["clips"]:,} clips of {corpus["name"]}: {corpus["attribution"].rstrip(".")}.
Licence of the data: {corpus["licence"]}. Code and weights: MIT. Corpus checksum {corpus["checksum"][:16]}.

**Recipe.** {recipe}. Trained in {card["training"]["precision"]}; the epoch was selected on validation ({100 * run["validation"]["accuracy"]:.2f} %, epoch {run["validation"]["epoch"]}).

**Test, after the selection.** Accuracy {100 * test["accuracy"]:.2f} % (95 % interval over speakers {low_high}; n = {test["n"]:,} clips of
{test["speakers"]:,} speakers), macro-F1 {100 * test["macro_f1"]:.2f} %. Weakest words: {weak}.
In half precision the accuracy on validation is {100 * kept["half"]:.2f} %, in full {100 * kept["full"]:.2f} %.

**Limits.** English words, of volunteers at their own microphones, one second, mostly clean; no claim is made for children,
accents that the corpus lacks, far microphones, or any use where a mistake does harm. This is one seed of one recipe.
"""  # noqa: E501


def detector_text(name, card, largest):
    """The model card of a detector (paper/spotting/false_alarms.py) in Markdown, with its curve."""
    wake, spotting, speech = card["wake"], card["spotting"], card["wake"]["real_speech"][-1]
    clean, ordinary, near = (spotting[k] for k in ("clean", "ordinary", "confusable"))
    state, alarms = spotting["carried"]["0.5"], spotting["ordinary_carried"]["all"]["0.5"]
    rows = [f"| {p['per_hour']:.2f} | {100 * p['misses']:.1f} |" for p in spotting["curve"]]
    points = [
        f"| {float(r):g} | {100 * p['misses']:.1f} [{100 * p['interval'][0]:.1f}–{100 * p['interval'][1]:.1f}] | "
        f"{p['delay_s']:.2f} | {ordinary['all'][r]['per_hour']:.2f} [{ordinary['all'][r]['interval'][0]:.2f}–"
        f"{ordinary['all'][r]['interval'][1]:.2f}] | {confused(near, r)[0]:.0f} |"
        for r, p in clean.items()
    ]
    return f"""# {name}

A detector of eight commands with reject: `kwslib.load("{name}").spot("a.wav", alarms_per_hour=1)`, or `.stream()`. The mean
of {card["recipe"]["model_options"]["members"]} models, each Mamba-Light's encoder with one sigmoid for each word, over {card["detector"]["window_s"]:g} s: what is no command gives no
event. float16 on disk, float32 in use.

**Words.** {", ".join(card["labels"])}.

**Data and licence.** {sum(wake["clips"].values()):,} clips of {card["corpus"]["name"]} ({card["corpus"]["attribution"]}), its other words
({", ".join(wake["other_words"])}) as negatives; running speech of {speech["name"]} (Picovoice's speech-to-intent-benchmark, {speech["licence"]});
synthetic words and sentences by {", ".join(wake["engines"])}. Licence of the data: {card["corpus"]["licence"]} and {speech["licence"]}. Code and weights: MIT.

**Recipe.** From the shipped mamba_light; {wake["steps"]:,} steps of {wake["batch"]} windows for each model, {wake["seconds"] / 60:.0f} minutes of a core
of a shared machine in all, seeds {" and ".join(map(str, wake["seed"]))}: `python -m paper.spotting.commands`. Thresholds from validation: {card["validation"]["hours"]:.1f} h without commands, of which
most are synthetic sentences.

**Test.** Clean keywords of {clean["1.0"]["speakers"]} test speakers (n = {clean["1.0"]["n"]:,}), at the thresholds for 0.5, 1 and 2 false alarms an hour of all
words together; intervals of 95 %, over speakers and Poisson; false alarms over {ordinary["all"]["1.0"]["hours"]:.1f} h of real running speech, synthetic
sentences and noise; confusable words are isolated ones, real and synthetic.

| threshold for | missed (%) | median delay (s) | false alarms an hour | of 1,000 confusable words |
|---|---|---|---|---|
{chr(10).join(points)}

| false alarms an hour | missed (%) |
|---|---|
{chr(10).join(rows)}

With carried state (`mode="carried"`), at thresholds, a smoothing and a rest of its own for 0.5 false alarms an hour, {100 * state["misses"]:.1f} % are
missed, with {alarms["per_hour"]:.2f} false alarms an hour.

{f"In half precision no score moves by more than {largest:.3f} of log-odds." if largest > 1e-4 else "Measured in half precision, as it ships."}

**Limits.** English words, of volunteers at their own microphones. Quiet speech in noise is missed far more often (chapter 8). One pair of seeds.
"""  # noqa: E501


def wake_text(name, card, run, largest):
    """The model card of wake words (paper/spotting/example.py) in Markdown, with their curve."""
    wake, words, found = card["wake"], card["labels"], run["clean"]
    engines, sources = " and ".join(wake["engines"]), wake["real_speech"]
    minutes, clips = f"{60 * found['hours']:.0f} minutes", sum(wake["clips"].values())
    rows = [
        f"| {points[0]['alarms']} | " + " | ".join(f"{100 * p['misses']:.1f}" for p in points) + " |"
        for points in zip(*(found["words"][word] for word in words))
    ]
    heard = "the voices' sentences and real speech" if card["validation"]["synthetic"] else "real speech"
    limits = card["detector"]["thresholds"]
    points = [
        f"| {float(rate):g} | {word} | {limits[rate][word]:.2f} | {100 * at['misses']:.1f} | {at['alarms']} |"
        for rate, of in found["at_card_thresholds"].items()
        for word, at in of.items()
    ]
    asked, members = " ".join(f'"{word}"' for word in words), card["recipe"]["model_options"]["members"]
    return f"""# {name}

An example of wake words of one's own: what `kws wake {asked}` makes of the text alone. `kwslib.load("{name}").spot("a.wav", alarms_per_hour=1)`,
or `.stream()`. The mean of {members} models, each of Mamba-Light's shape with one sigmoid a phrase, over {card["detector"]["window_s"]:g} s: what is none of the
phrases gives no event. float16 on disk, float32 in use.

**Phrases.** {", ".join(words)}.

**Data and licence.** {clips:,} clips of the phrases by {engines}; no recording of a person saying one. Negatives: near and common words
and sentences by the same voices, the training clips of {sources[0].get("name")} ({card["corpus"]["attribution"]}), and 22 minutes of running
speech (Picovoice's speech-to-intent-benchmark, Apache 2.0). Licence of the data: {card["corpus"]["licence"]} and Apache 2.0. Code and weights: MIT.

**Recipe.** From an encoder of many words (`kwslib/wake/encoder.json`); {wake["steps"]:,} steps of {wake["batch"]} windows for each model, {wake["seconds"] / 60:.0f} minutes in all on a shared machine, seed
{wake["seed"]}: `python -m paper.spotting.example`. Thresholds come from {card["validation"]["hours"]:.1f} h of {heard} without the phrases, kept from training.

**Test.** {card["test"]["n"]:,} recordings of people saying a phrase (Picovoice's wake-word-benchmark, Apache 2.0), and {minutes} of running speech
that did not train; nobody named the speakers.

| threshold for (false alarms an hour) | phrase | log-odds | missed (%) | false alarms in {minutes} |
|---|---|---|---|---|
{chr(10).join(points)}

Missed (%), with each phrase's threshold swept on that speech:

| false alarms in {minutes} | {" | ".join(words)} |
|---|{"---|" * len(words)}
{chr(10).join(rows)}

In half precision no score moves by more than {largest:.3f} of log-odds.

**Limits.** Three phrases, one seed, one set of recordings, on which the recipe was developed. Speech in noise is missed more often (chapter 7).
"""  # noqa: E501


def release_detector(checkpoint, corpus, out, name, result=None):
    """Write a halved detector and its card to `out`; returns the largest change of a score on validation clips.

    result: of wake words, the file that paper/spotting/example.py wrote."""
    weights, card = read_checkpoint(checkpoint)
    corpus, half, spotter, scores = load_corpus(corpus), halved(weights), load(checkpoint), []
    rows = (corpus.splits == "validation").nonzero()[0][:500]
    for these in (weights, half):
        spotter.model.load_state_dict(these)  # copied into float32
        scores.append(spotter.logits(to_float(torch.from_numpy(corpus.waves[rows]))))
    if (largest := float((scores[0] - scores[1]).abs().max())) > MOST_ODDS:
        raise KwsError(f"half precision moves a score of {checkpoint} by {largest:.2f}; ship the checkpoint as it is")
    if result:
        run = read_json(result, "result file")
        at, n = run["clean"]["at_card_thresholds"]["1"], sum(run["n"].values())
        heard = sum(round((1 - at[word]["misses"]) * run["n"][word]) for word in card["labels"])
        spread = binomtest(heard, n).proportion_ci()
        card["test"] = {"n": n, "accuracy": heard / n, "interval": [spread.low, spread.high]}
        text = wake_text(name, card, run, largest)
    else:
        found = card["spotting"]["clean"]["1.0"]
        card["test"] = {k: found[k] for k in ("n", "speakers")} | {"accuracy": 1 - found["misses"]}
        card["test"]["interval"] = [1 - v for v in found["interval"][::-1]]
        text = detector_text(name, card, largest)
    save_checkpoint(Path(out) / f"{name}.safetensors", half, card)
    with replacing(Path(out) / f"{name}.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    return largest


def release_model(checkpoint, results, corpus, out):
    """Write the halved checkpoint and its card to `out`; returns validation accuracy in full and half precision."""
    weights, card = read_checkpoint(checkpoint)
    name, seed = card["model"], card["recipe"]["seed"]
    run = read_json(Path(results) / "runs" / f"{name}-{seed}.json", "result file")
    validation = select(load_corpus(corpus), card["recipe"]["task"], "validation", seed)
    half, kept, spotter = halved(weights), {}, load(checkpoint)
    for kind, these in (("full", weights), ("half", half)):
        spotter.model.load_state_dict(these)  # copied into float32
        kept[kind] = float(
            (spotter.all_logits(validation.waves, validation.samples).argmax(1) == validation.targets).float().mean()
        )
    if abs(kept["full"] - kept["half"]) > MOST:
        raise KwsError(
            f"half precision moves the validation accuracy of {checkpoint} from {kept['full']:.2%} to "
            f"{kept['half']:.2%}; ship the checkpoint as it is"
        )
    kinds = ("n", "speakers", "accuracy", "interval", "macro_f1")
    card |= {"test": {k: run["test"][k] for k in kinds}, "licence": "MIT"}  # as `kwslib.pretrained` lists them
    save_checkpoint(Path(out) / f"{name}.safetensors", half, card)
    with replacing(Path(out) / f"{name}.md") as scratch:
        scratch.write_text(card_text(card, run, kept), encoding="utf-8")
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint file, or the folder that holds model.safetensors")
    parser.add_argument(
        "--results", help="results folder with its run, such as results/subset; of wake words, their file"
    )
    parser.add_argument("--name", help="of a detector (default: the checkpoint's folder)")
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--out", default="shipped", help="folder to write to (default shipped)")
    a = parser.parse_args()
    if "detector" in (card := read_checkpoint(a.checkpoint)[1]):
        if "spotting" not in card and not a.results:
            raise KwsError("--results is missing; give the file of these wake words, such as results/spot/example.json")
        result = None if "spotting" in card else a.results
        largest = release_detector(a.checkpoint, a.corpus, a.out, a.name or Path(a.checkpoint).name, result)
        print(f"{a.checkpoint}: half precision moves a score by {largest:.3f}; written to {a.out}")
        return 0
    if not a.results:
        raise KwsError("--results is missing; give the results folder with the run of this checkpoint")
    kept = release_model(a.checkpoint, a.results, a.corpus, a.out)
    print(
        f"{a.checkpoint}: validation {kept['full']:.2%} in full precision, {kept['half']:.2%} in half; "
        f"written to {a.out}"
    )
    return 0


if __name__ == "__main__":
    cli(main)
