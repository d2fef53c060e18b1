"""Read the test split, once, with the selected checkpoint, and write the run's result file.

    kws test checkpoints/subset/mamba_mel_small-0 --corpus data/subset --out results/subset

Nothing before this file touches the test split: training selects on validation."""

import shutil
from pathlib import Path

import numpy as np
import torch

from kwslib.checkpoint import find_checkpoint, load_model
from kwslib.data.corpus import load_corpus
from kwslib.data.tasks import select
from kwslib.io import CLIP, KwsError, replacing, write_json
from kwslib.metrics import accuracy, report
from kwslib.models.cost import count_macs, count_parameters

COMMON = 700  # training clips from which on a word counts as common


def evaluate(checkpoint, corpus, results, profile=None, device="cpu"):
    """Evaluate `checkpoint` on the testing split of `corpus`; write `<results>/runs/<model>-<seed>.json`.

    Its headline goes to `<results>/metrics/`, the history beside the checkpoint to `<results>/history/`: these are the
    same on every run. What depends on the machine and the moment goes to `<results>/timing/`. Returns the result (see
    docs/extending.md). Raises KwsError where the training is not finished, or the labels are not the corpus's."""
    spotter, corpus, results = load_model(checkpoint, device), load_corpus(corpus), Path(results)
    card, recipe, labels = spotter.card, spotter.card.get("recipe"), spotter.labels
    if lacking := sorted({"recipe", "training", "validation", "corpus"} - card.keys()):
        raise KwsError(f"checkpoint {checkpoint} has no {lacking[0]} in its card; test one that kws train wrote")
    if not card.get("finished"):
        stopped = f"checkpoint {checkpoint} is of a training that stopped after epoch {card['training']['epochs']}"
        raise KwsError(f"{stopped}; run the same training command again, which continues from there, and test then")
    split = select(corpus, recipe["task"], "testing", recipe["seed"])
    if split.labels != labels:
        differ = f"knows {', '.join(labels)}, corpus {corpus.root} holds {', '.join(split.labels)}"
        raise KwsError(f"checkpoint {checkpoint} {differ}; evaluate it on the corpus and task that it was trained for")
    predictions = spotter.all_logits(split.waves, split.samples).argmax(1).numpy()
    silent = torch.zeros(1, spotter.frontend.frames(CLIP), spotter.frontend.n_features, device=device)
    test = report(split.targets.numpy(), predictions, split.speakers, labels)

    result = {"model": card["model"], "seed": recipe["seed"], "profile": profile or results.name}
    result["corpus"] = card["corpus"] | {key: corpus.card[key] for key in ("clips", "speakers")}
    result |= {"task": recipe["task"], "labels": labels, "parameters": count_parameters(spotter.model)}
    result |= {"macs": count_macs(spotter.model, silent), "config": recipe, "validation": card["validation"]}
    result |= {"test": test, "test_common": common_words(corpus, split, predictions), "training": card["training"]}
    name, beside = f"{card['model']}-{recipe['seed']}", find_checkpoint(checkpoint).parent
    write_json(results / "runs" / f"{name}.json", result)
    headline = {"test_accuracy": test["accuracy"], "interval_low": test["interval"][0]}  # for `dvc metrics show`
    headline |= {"interval_high": test["interval"][1], "macro_f1": test["macro_f1"]}
    headline |= {"validation_accuracy": card["validation"]["accuracy"], "parameters": result["parameters"]}
    write_json(results / "metrics" / f"{name}.json", headline)
    for found, copy in (("history.csv", f"history/{name}.csv"), ("timing.json", f"timing/{name}.json")):
        if (beside / found).exists():
            with replacing(results / copy) as scratch:
                shutil.copyfile(beside / found, scratch)
    return result


def common_words(corpus, split, predictions):
    """Accuracy on the clips whose word has at least COMMON training clips: None if that is no word, or every one."""
    words, targets = corpus.card["words"], split.targets.numpy()
    common = [w for w in split.labels if words.get(w, {}).get("training", 0) >= COMMON]
    if not common or len(common) == len(split.labels):
        return None
    rows = np.isin(np.array(split.labels)[targets], common)
    found = accuracy(targets[rows], predictions[rows], split.speakers[rows])
    return {"minimum_training_clips": COMMON, "words": common, **found}
