"""What is counted in a detector's scores: events, hits, delays, and rates with their intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from scipy.stats import chi2

from kwslib.io import SAMPLE_RATE
from kwslib.metrics import speaker_bootstrap
from kwslib.wake import report
from paper.spotting.commands import span

MANY = 20  # clips of a word, at least, for its share of mistakes to be told
MODES = {"windows": "", "carried": "_carried"}  # ways to listen, and how the keys of their results end
NEVER_MET = ("words left out", "near words")  # groups of confusable words


@dataclass
class Heard:
    """Scores of recordings, before smoothing: for each (times (T,), log-odds (T, labels)). hours: their length."""

    parts: list = field(default_factory=list)
    hours: float = 0.0

    def add(self, times, scores, samples):
        self.parts.append((times, scores))
        self.hours += samples / SAMPLE_RATE / 3600

    def smoothed(self, smooth):
        for times, scores in self.parts:
            yield times, mean_of_last(scores, smooth)


def mean_of_last(scores, n):
    """Each row's mean with the n - 1 before it, of (T, labels)."""
    total = np.cumsum(np.vstack([np.zeros((1, scores.shape[1])), scores]), 0)
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - n, 0)
    return (total[ends] - total[starts]) / (ends - starts)[:, None]


def alarms(heard, smooth, apart):
    """The scores of all events in speech without keywords: a list for each label."""
    found = None
    for times, scores in heard.smoothed(smooth):
        found = found or [[] for _ in range(scores.shape[1])]
        for label, own in enumerate(found):
            own += report.peaks(times, scores[:, label], apart)
    return found


def pooled(events, offsets):
    """One list of all labels' events, each less its label's offset."""
    return [score - offset for own, offset in zip(events, offsets) for score in own]


def by_word(events, offsets, labels, limits):
    """{rate: {label: alarms}} at the thresholds `limits` {rate: threshold}, of a list of events for each label, each
    less its label's offset."""
    return {
        rate: {label: int(sum(s - o >= limit for s in own)) for label, own, o in zip(labels, events, offsets)}
        for rate, limit in limits.items()
    }


def hits(heard, stream, labels, corpus, smooth, window, offsets):
    """For every keyword of a stream: its best score, less its label's offset, from its start to `window` after the
    word's end, or until the same word is said again, and (times after the word's end, scores) there."""
    (times, scores), found = next(heard.smoothed(smooth)), []
    for i, ((start, _, word), row) in enumerate(zip(stream.events, stream.rows)):
        again = next((at for at, _, later in islice(stream.events, i + 1, None) if later == word), np.inf)
        label, end = labels.index(word), start + span(corpus.waves[row, : corpus.samples[row]])[1] / SAMPLE_RATE
        near = (times >= start) & (times <= min(end + window, again))
        found.append((times[near] - end, scores[near, label] - offsets[label]))
    return np.array([s.max() if len(s) else -np.inf for _, s in found]), found


def beside(heard, stream, labels, smooth, window, limits, rest):
    """Events on keywords' clips that find no keyword, per 1,000 keywords, by the rule of a Stream: {"repeats": the same
    word again, "wrong": another word}. limits: (labels,); rest: seconds without a second event of a label."""
    (times, scores), counts, at = next(heard.smoothed(smooth)), {"repeats": 0, "wrong": 0}, 0
    last, events = np.full(len(labels), -np.inf), []
    for row, label in np.argwhere(scores >= limits):
        if times[row] - last[label] >= rest - 1e-6:
            last[label] = times[row]
            events.append((times[row], labels[label]))
    starts = [start for start, _, _ in stream.events[1:]] + [np.inf]
    for (start, end, word), following in zip(stream.events, starts):
        while at < len(events) and events[at][0] < start:
            at += 1
        own = [w for t, w in events[at : at + 50] if t <= min(end + window, following)]
        counts["repeats"] += max(0, own.count(word) - 1)
        counts["wrong"] += len(own) - own.count(word)
    return {k: 1000 * v / len(stream.events) for k, v in counts.items()}


def delays(found, limit):
    """Seconds from the word's end to the first score at or above `limit`, of the keywords that reach it."""
    first = [(t[s >= limit][:1]) for t, s in found]
    return np.array([t[0] for t in first if len(t)])


def poisson(count, hours, level=0.95):
    """The exact interval of a rate of `count` events in so many hours (Garwood 1936): [low, high] an hour."""
    tail = (1 - level) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return [float(low / hours), float(chi2.ppf(1 - tail, 2 * count + 2) / 2 / hours)]


def rate_at(events, hours, limit):
    """{alarms, hours, per_hour, interval} of events at or above a threshold."""
    count = int(np.sum(np.asarray(events) >= limit))
    return {"alarms": count, "hours": hours, "per_hour": count / hours, "interval": poisson(count, hours)}


def missed_at(best, speakers, limit):
    """{n, misses, interval}: the share of keywords below a threshold, with a 95 % interval over speakers."""
    missed = best < limit
    draws = speaker_bootstrap(missed, speakers)
    return {"n": len(best), "misses": float(missed.mean()), "interval": np.quantile(draws, [0.025, 0.975]).tolist()}


def per_thousand(best, words, limit):
    """{n, alarms, per_1000, interval, mistaken}: isolated words that are taken for a keyword. mistaken: {word: [how
    many of its clips are, of how many]} of the three most often so, of those with MANY clips."""
    wrong, words = best >= limit, np.array(words)
    count, n = int(wrong.sum()), len(wrong)
    clips = {w: wrong[words == w] for w in sorted(set(words.tolist()))}
    order = sorted((w for w in clips if len(clips[w]) >= MANY), key=lambda w: -clips[w].mean())
    mistaken = {w: [int(clips[w].sum()), len(clips[w])] for w in order[:3]}
    interval = [1000 * v for v in poisson(count, n)]
    return {"n": n, "alarms": count, "per_1000": 1000 * count / n, "interval": interval, "mistaken": mistaken}


def confused(groups, rate):
    """{group: {rate: per_thousand}} -> (how many of 1,000 isolated words are taken for a keyword, their number), of the
    groups of words that no training met."""
    points = [groups[name][rate] for name in NEVER_MET]
    n = sum(p["n"] for p in points)
    return 1000 * sum(p["alarms"] for p in points) / n, n
