"""Read the test split, once, with the selected checkpoint, and write the run's result file.

    kws test checkpoints/subset/mamba_mel_small-0 --corpus data/subset --out results/subset

Nothing before this file touches the test split: training selects on validation.
"""

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
    docs/extending.md). Raises KwsError where the training is not finished, or the labels are not the corpus's.
    """
    spotter, corpus, results = load_model(checkpoint, device), load_corpus(corpus), Path(results)
    card = spotter.card
    if not card.get("finished"):
        raise KwsError(
            f"checkpoint {checkpoint} is of a training that stopped after epoch {card['training']['epochs']}; "
            "the test split is for finished ones: run the same training command again, which continues from there"
        )
    split = select(corpus, card["recipe"]["task"], "testing", card["recipe"]["seed"])
    if split.labels != spotter.labels:
        raise KwsError(
            f"checkpoint {checkpoint} knows {', '.join(spotter.labels)}, corpus {corpus.root} holds "
            f"{', '.join(split.labels)}; evaluate it on the corpus and task that it was trained for"
        )
    predictions = spotter.all_logits(split.waves, split.samples).argmax(1).numpy()
    targets = split.targets.numpy()
    silent = torch.zeros(1, spotter.frontend.frames(CLIP), spotter.frontend.n_features, device=device)
    seed = card["recipe"]["seed"]
    result = {
        "model": card["model"],
        "seed": seed,
        "profile": profile or results.name,
        "corpus": {**card["corpus"], "clips": corpus.card["clips"], "speakers": corpus.card["speakers"]},
        "task": card["recipe"]["task"],
        "labels": spotter.labels,
        "parameters": count_parameters(spotter.model),
        "macs": count_macs(spotter.model, silent),
        "config": card["recipe"],
        "validation": card["validation"],
        "test": report(targets, predictions, split.speakers, spotter.labels),
        "test_common": common_words(corpus, split, predictions),
        "training": card["training"],
    }
    name, beside = f"{card['model']}-{seed}", find_checkpoint(checkpoint).parent
    write_json(results / "runs" / f"{name}.json", result)
    write_json(results / "metrics" / f"{name}.json", headline(result))
    for found, copy in (("history.csv", f"history/{name}.csv"), ("timing.json", f"timing/{name}.json")):
        if (beside / found).exists():
            with replacing(results / copy) as scratch:
                shutil.copyfile(beside / found, scratch)
    return result


def headline(result):
    """The few numbers of a result that `dvc metrics show` compares; accuracies and macro-F1 as shares."""
    test = result["test"]
    return {
        "test_accuracy": test["accuracy"],
        "interval_low": test["interval"][0],
        "interval_high": test["interval"][1],
        "macro_f1": test["macro_f1"],
        "validation_accuracy": result["validation"]["accuracy"],
        "parameters": result["parameters"],
    }


def common_words(corpus, split, predictions):
    """Accuracy on the clips whose word has at least COMMON training clips: None if that is no word, or every one."""
    words = corpus.card["words"]
    common = [w for w in split.labels if words.get(w, {}).get("training", 0) >= COMMON]
    if not common or len(common) == len(split.labels):
        return None
    rows = np.isin(np.array(split.labels)[split.targets.numpy()], common)
    return {
        "minimum_training_clips": COMMON,
        "words": common,
        **accuracy(split.targets.numpy()[rows], predictions[rows], split.speakers[rows]),
    }
