"""A trained model to give away: half-precision weights and a model card, after a check that the accuracy does not move.

    python -m paper.release checkpoints/subset/mamba_light-0 --results results/subset --corpus data/subset --out shipped

writes shipped/mamba_light.safetensors, .json and .md; `kwslib.load("shipped/mamba_light.safetensors")` reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kwslib.checkpoint import read_checkpoint, save_checkpoint
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.io import KwsError, cli, read_json, replacing
from kwslib.spotter import load

MOST = 0.001  # change of validation accuracy that half precision may make


def halved(weights):
    """Floating-point weights as float16; a weight beyond its range is refused."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    if bad := [k for k, v in half.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise KwsError(f"weight {bad[0]} does not fit half precision; ship the checkpoint as it is")
    return half


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
    save_checkpoint(Path(out) / f"{name}.safetensors", half, card)
    with replacing(Path(out) / f"{name}.md") as scratch:
        scratch.write_text(card_text(card, run, kept), encoding="utf-8")
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint file, or the folder that holds model.safetensors")
    parser.add_argument("--results", required=True, help="results folder with its run, such as results/subset")
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--out", default="shipped", help="folder to write to (default shipped)")
    a = parser.parse_args()
    kept = release_model(a.checkpoint, a.results, a.corpus, a.out)
    print(
        f"{a.checkpoint}: validation {kept['full']:.2%} in full precision, {kept['half']:.2%} in half; "
        f"written to {a.out}"
    )
    return 0


if __name__ == "__main__":
    cli(main)
