"""What a detector misses, and how often it is wrong: events, curve, thresholds, table and figure."""

import numpy as np

from kwslib.data.audio import coloured_noise
from kwslib.data.synthetic import in_room
from kwslib.io import SAMPLE_RATE, replacing, write_csv
from kwslib.wake import negatives

RATES = (0.5, 1, 2)  # false alarms an hour, for which the card has thresholds
LIMIT, ENOUGH = 1800, 600  # seconds of real speech that the estimate reads at most, and that it can do with
CLIPS = 60  # short clips follow each other as in running speech, so many in one stream


def peaks(times, scores, apart):
    """The scores of one label, as the events that a threshold would give: the highest first, and none within `apart` s
    of one taken before. For a threshold, the number of these at or above it is close to what a listener counts, who
    takes the first score above it and then none for `apart` s."""
    taken, order = [], np.argsort(-scores, kind="stable")
    times, scores = np.asarray(times), np.asarray(scores)
    free = np.ones(len(times), bool)
    for i in order:
        if free[i]:
            taken.append(float(scores[i]))
            free &= np.abs(times - times[i]) >= apart
    return taken


def score_all(spotter, waves):
    """Int16 waves -> (the highest score of each, float (waves, labels); the events of all, a list for each label)."""
    apart, best, events = spotter.card["detector"]["refractory_s"], [], [[] for _ in spotter.labels]
    for wave in waves:
        times, scores = spotter.scores(wave, SAMPLE_RATE)
        best.append(scores.max(0))
        for label, found in enumerate(events):
            found += peaks(times, scores[:, label], apart)
    return np.array(best).reshape(-1, len(spotter.labels)), events


def threshold(events, hours, rate):
    """The score that `rate` events an hour reach. Below one event in these hours it is extrapolated: above the highest,
    events are taken to fall by the factor e for each mean excess of the five highest over the sixth. A log-odds has no
    long tail, so that more of them would put the threshold where hardly a word comes."""
    events, wanted = sorted(events, reverse=True), rate * hours
    if wanted >= 1:
        return float(np.nextafter(events[min(int(wanted), len(events) - 1)], np.inf))
    top = np.array(events[:6])
    scale = max(float((top[:-1] - top[-1]).mean()), 0.05)
    return float(top[-1] + scale * np.log((len(top) - 1) / wanted))


def curve(best, events, hours):
    """Rows of {alarms, per_hour, threshold, misses}: best (n,) of recordings with the phrase, events of speech without
    it. The threshold of a row lies just above the next event."""
    events, rows = sorted(events, reverse=True), []
    for alarms in [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]:
        if alarms < len(events):
            limit = float(np.nextafter(np.float32(events[alarms]), np.float32(np.inf)))
            misses = float((best < limit).mean())
            rows.append({"alarms": alarms, "per_hour": alarms / hours, "threshold": limit, "misses": misses})
    return rows


def estimate(spotter, spoken, real, alarms_per_hour=1.0):
    """Thresholds into the card, for RATES and for the rate asked for. Returns warnings, a list of str, and the rows of
    each phrase's curve.

    spoken: the phrases in `positives` and `sentences`, of voices and words that training never met; real: int16
    waves of speech that it never met, perhaps none. The false alarms are counted on real speech, the longest waves
    first, and on the sentences only where there is too little of it: a voice that said the phrase in training makes
    more false alarms with other words than people do. A short clip alone would be decided on once, and not ten times a
    second: clips are joined."""
    rng, card = np.random.default_rng(1), spotter.card
    stream, heard = [], 0
    for i in sorted(rng.permutation(len(real)), key=lambda i: -len(real[i])):
        if heard < LIMIT * SAMPLE_RATE:
            stream.append(real[i])
            heard += len(real[i])
    size = 2 * round(card["detector"]["window_s"] * SAMPLE_RATE)
    clips = [wave for wave in stream if len(wave) < size]
    stream = [wave for wave in stream if len(wave) >= size]
    stream += [np.concatenate(clips[i : i + CLIPS]) for i in range(0, len(clips), CLIPS)]
    if synthetic := heard < ENOUGH * SAMPLE_RATE:
        stream += [scene(rng, wave) for _, wave in spoken["sentences"]]
    hours = sum(map(len, stream)) / SAMPLE_RATE / 3600
    _, events = score_all(spotter, stream)
    asked, warnings = f"{alarms_per_hour:g}", []
    rows, found = [], {f"{rate:g}": {} for rate in sorted({*RATES, alarms_per_hour})}
    for label, (phrase, takes) in enumerate(zip(spotter.labels, spoken["positives"])):
        best, _ = score_all(spotter, [scene(rng, wave) for wave in takes])
        rows += [{"phrase": phrase, **row} for row in curve(best[:, label], events[label], hours)]
        for rate, limits in found.items():
            limits[phrase] = threshold(events[label], hours, float(rate))
        missed = float((best[:, label] < found[asked][phrase]).mean())
        if missed > 0.2:
            rate = "one false alarm" if asked == "1" else f"{asked} false alarms"
            found_at = f"{missed:.0%} of new voices are missed at {rate} an hour"
            warnings.append(f"{phrase!r}: {found_at}; take a longer phrase, or add recordings")
    card["detector"]["thresholds"] = found
    card["validation"] = {"hours": hours, "clips": sum(map(len, spoken["positives"])), "synthetic": synthetic}
    return warnings, rows


def write_curve(rows, out):
    """curve.csv, curve.md and, where matplotlib is installed, curve.png in the folder `out`."""
    write_csv(out / "curve.csv", rows)
    with replacing(out / "curve.md") as scratch:
        scratch.write_text(table(rows))
    figure(rows, out / "curve.png")


def scene(rng, wave, noise=None):
    """A clip with 0.8 s before and after it, in a room, with noise 10 to 30 dB below: int16. noise: recorded samples
    (n,) to cut from, or None for coloured noise."""
    pad = np.zeros(int(0.8 * SAMPLE_RATE))
    wave = in_room(rng, np.concatenate([pad, wave / 32768, pad]))
    power = np.square(wave).mean() * len(wave) / (len(wave) - 2 * len(pad))
    bed = coloured_noise(rng, len(wave), rng.uniform(0, 2))
    if noise is not None:
        bed = np.resize(noise[rng.integers(len(noise) // 2) :], len(wave)) / max(1.0, np.std(noise))
    wave += bed * np.sqrt(power) / 10 ** (rng.uniform(10, 30) / 20)
    return np.int16(32767 * 10 ** (rng.uniform(-26, -1) / 20) * wave / np.abs(wave).max())


def table(rows):
    """The curve as a Markdown table."""
    lines = ["| phrase | false alarms per hour | threshold | misses |", "|---|---|---|---|"]
    lines += [f"| {r['phrase']} | {r['per_hour']:.2f} | {r['threshold']:.2f} | {r['misses']:.1%} |" for r in rows]
    return "\n".join(lines) + "\n"


def figure(rows, path):
    """Misses against false alarms per hour, a line for each phrase; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    axes = (fig := Figure((5, 3.5), layout="constrained")).add_subplot()
    for phrase in dict.fromkeys(r["phrase"] for r in rows):
        own = [r for r in rows if r["phrase"] == phrase]
        axes.plot([r["per_hour"] for r in own], [100 * r["misses"] for r in own], marker="o", ms=3, label=phrase)
    axes.set(xlabel="false alarms per hour", ylabel="misses (%)", ylim=(0, None))
    axes.legend()
    with replacing(path) as scratch:
        fig.savefig(scratch, dpi=150, format="png")


def bad_choices(phrases, sounds):
    """A sentence for each phrase that is expected to be a bad choice, from its phonemes alone: {phrase: IPA}."""
    from kwslib.wake.voices import phonemes

    found, common = [], dict(zip(negatives.COMMON, phonemes(negatives.COMMON)))
    for phrase in phrases:
        ipa = sounds[phrase]
        apart, word = min((negatives.distance(ipa, s), w) for w, s in common.items() if w != phrase)
        if len(ipa) < 5:
            found.append(f"{phrase!r} is short ({len(ipa)} sounds): expect false alarms; take a longer phrase")
        elif apart < 1.7:
            found.append(f"{phrase!r} sounds like the common word {word!r}: expect false alarms; take another phrase")
        elif phrase in common:
            found.append(f"{phrase!r} is a common word: it is heard whenever somebody says it; take another phrase")
    return found
