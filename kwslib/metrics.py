"""What a run reports of its test split: accuracy with an interval that resamples speakers, and per-word figures."""

import numpy as np


def confusion_matrix(targets, predictions, n_classes):
    """(n_classes, n_classes) counts: rows are the true words, columns the predicted ones."""
    return np.bincount(np.asarray(targets) * n_classes + predictions, minlength=n_classes**2).reshape(n_classes, -1)


def speaker_bootstrap(values, speakers, draws=2000, seed=0, statistic=np.divide):
    """(draws,) means of `values` (n,), each over as many `speakers` (n,) as there are, drawn with replacement: clips of
    a speaker are alike, and drawing clips would give intervals that are too narrow (Bisani & Ney 2004, section 2).
    statistic: what a draw gives in place of the mean, from the sums of its values and its numbers of clips, both (m,).
    """
    _, who = np.unique(speakers, return_inverse=True)
    sums, counts = np.bincount(who, weights=np.asarray(values, float)), np.bincount(who)
    rng, found = np.random.default_rng(seed), []
    for start in range(0, draws, 1000):  # a thousand at a time: memory
        picks = rng.integers(len(counts), size=(min(1000, draws - start), len(counts)))
        found.append(statistic(sums[picks].sum(1), counts[picks].sum(1)))
    return np.concatenate(found)


def speaker_interval(correct, speakers, level=0.95, draws=2000, seed=0):
    """Percentile interval of the mean of `correct` (n,) over the choice of speakers (n,), by `speaker_bootstrap`."""
    means = speaker_bootstrap(correct, speakers, draws, seed)
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()


def report(targets, predictions, speakers, labels):
    """The `test` entry of a result file: n, speakers, accuracy, interval, macro_f1, per_word, confusion, by_speaker.

    A word that is never predicted has precision 0. macro_f1 averages over the words that have test clips. by_speaker:
    speaker -> [clips that are right, clips], what a comparison of models needs beside other runs' files."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    confusion = confusion_matrix(targets, predictions, len(labels))
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    result = {**accuracy(targets, predictions, speakers), "macro_f1": float(f1[true > 0].mean()), "per_word": {}}
    precision, recall = ((hits / np.maximum(n, 1)).tolist() for n in (predicted, true))
    for word, *row in zip(labels, precision, recall, true.tolist()):
        result["per_word"][word] = dict(zip(("precision", "recall", "n"), row))
    names, who = np.unique(speakers, return_inverse=True)
    counts = np.stack([np.bincount(who, targets == predictions), np.bincount(who)], 1).astype(int)
    return {**result, "confusion": confusion.tolist(), "by_speaker": dict(zip(names.tolist(), counts.tolist()))}


def accuracy(targets, predictions, speakers):
    """n, number of speakers, accuracy and its 95 % interval."""
    correct = np.asarray(targets) == np.asarray(predictions)
    share, interval = float(correct.mean()), speaker_interval(correct, speakers)
    return {"n": len(correct), "speakers": len(np.unique(speakers)), "accuracy": share, "interval": interval}
