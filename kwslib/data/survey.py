"""What is in a corpus, and which clips deserve a listen: `kws data`, as tables and a picture."""

import hashlib
from collections import Counter, defaultdict

import numpy as np

from kwslib.data.manifest import SPLITS
from kwslib.io import CLIP, SAMPLE_RATE, KwsError, replacing

FRAME = SAMPLE_RATE // 50  # 20 ms
SILENT = -60.0  # dBFS, mean power
FULL = 16  # samples at full scale: 1 ms
EDGE, SPAN = 6.0, 20.0  # dB
COLUMNS = ("kind", "path", "word", "speaker", "split", "why")
MEANING = {
    "silent": f"mean level below {SILENT:g} dBFS",
    "clipped": f"{FULL} or more samples at full scale",
    "cut": f"its first or last 20 ms within {EDGE:g} dB of its loudest, in a clip that has pauses",
    "duplicate": "the same samples as an earlier clip",
    "speaker": "a speaker in more than one split",
}


def survey(corpus):
    """A corpus -> {levels: float (clips,), mean power in dBFS; peaks: float (clips,), dBFS; suspects: a list of {kind,
    path, word, speaker, split, why}, kinds as in MEANING, in the order of the clips}."""
    levels, peaks, suspects, seen = [], [], [], {}
    for i, (wave, n) in enumerate(zip(corpus.waves, corpus.samples)):
        found, level, peak = _look(wave[:n])
        levels.append(level)
        peaks.append(peak)
        first = seen.setdefault(hashlib.sha256(wave.tobytes()).digest(), i)
        if first != i:
            found["duplicate"] = f"as {corpus.paths[first]} of {corpus.splits[first]}"
        suspects += [_suspect(corpus, i, *kind) for kind in found.items()]
    places = defaultdict(Counter)
    for i, (speaker, split) in enumerate(zip(corpus.speakers.tolist(), corpus.splits.tolist())):
        places[speaker].setdefault(split, i)
    for where in places.values():
        if len(where) > 1:
            suspects.append(_suspect(corpus, min(where.values()), "speaker", "in " + " and ".join(sorted(where))))
    return {"levels": np.array(levels), "peaks": np.array(peaks), "suspects": suspects}


def _look(wave):
    """int16 (n,) -> ({kind: why}, mean power and peak in dBFS)."""
    wave = wave.astype(np.float64) / 32768
    frames = [*wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME), wave[-FRAME:]]  # the last may overlap
    powers = _db([np.mean(f**2) for f in frames])
    level, peak = float(_db(np.mean(wave**2))), float(_db(np.max(wave**2))) + 0.0
    full, edge = int(np.sum(np.abs(wave) >= 32767 / 32768)), powers.max() - max(powers[0], powers[-1])
    found = {"silent": f"{level:.0f} dBFS"} if level < SILENT else {}
    if full >= FULL:
        found["clipped"] = f"{full} samples"
    if edge < EDGE and powers.max() - np.percentile(powers, 20) > SPAN and not found.get("silent"):
        found["cut"] = "at its start" if powers[0] > powers[-1] else "at its end"
    return found, level, peak


def _db(power):
    return 10 * np.log10(np.maximum(power, 1e-10))


def _suspect(corpus, i, kind, why):
    row = {k: str(getattr(corpus, f"{k}s")[i]) for k in ("path", "word", "speaker", "split")}
    return {"kind": kind, **row, "why": why}


def report(corpus, found, most=5):
    """The tables as lines of text; of each kind of suspicious clips the first `most`."""
    words = [*corpus.card["words"].items()]
    wide = max(10, *(len(w) for w, _ in words))
    yield f"{corpus.card['name']}, licence: {corpus.card['licence']}"
    yield f"{'':{wide}} " + "".join(f"{s:>12}" for s in SPLITS)
    for name, counts in [*words, ("all words", corpus.card["clips"]), ("speakers", corpus.card["speakers"])]:
        yield f"{name:{wide}} " + "".join(f"{counts[s]:12}" for s in SPLITS)
    yield f"background noise: {corpus.card['noise_seconds']} s in {len(corpus.card.get('noise_files', []))} files"
    yield f"{'':{wide}} " + "".join(f"{q:>12}" for q in ("lowest", "5 %", "median", "95 %", "highest"))
    table = {"seconds": corpus.samples / SAMPLE_RATE, "level dBFS": found["levels"], "peak dBFS": found["peaks"]}
    for name, values in table.items():
        yield f"{name:{wide}} " + "".join(f"{q:12.2f}" for q in np.percentile(values, [0, 5, 50, 95, 100]))
    for kind, meaning in MEANING.items():
        rows = [s for s in found["suspects"] if s["kind"] == kind]
        yield f"{kind:{wide}} {len(rows):6}  {meaning}"
        yield from (f"{'':{wide}}         {s['path']}  {s['speaker']}  {s['split']}: {s['why']}" for s in rows[:most])
        if len(rows) > most:
            yield f"{'':{wide}}         and {len(rows) - most} more"


def draw(corpus, found, path):
    """A picture of the same: clips per word, lengths, levels and suspicious clips, by split. Raises KwsError."""
    try:
        import seaborn
        from matplotlib.figure import Figure
    except ImportError as e:
        raise KwsError(f"a figure needs {e.name}; install it with: pip install kwslib[figures]") from None
    kinds = (path.rsplit(".", 1)[-1].lower() if "." in path else "", Figure().canvas.get_supported_filetypes())
    if kinds[0] not in kinds[1]:
        raise KwsError(f"figure {path} is of no kind that can be drawn; end it in .png, .pdf or .svg")
    fig = Figure(figsize=(10, 7), layout="constrained")
    (words, lengths), (levels, suspects) = fig.subplots(2, 2)
    look = {"hue_order": SPLITS, "palette": "colorblind"}
    split = {**look, "hue": corpus.splits}
    seaborn.countplot(x=corpus.words, order=sorted(set(corpus.words.tolist())), legend=False, ax=words, **split)
    words.tick_params("x", rotation=90)
    bins = {"bins": 20, "binrange": (0, CLIP / SAMPLE_RATE)}
    seaborn.histplot(x=corpus.samples / SAMPLE_RATE, element="step", ax=lengths, **bins, **split)
    lengths.set(yscale="log", xlabel="length, seconds", ylabel="clips")
    seaborn.histplot(x=found["levels"], bins=40, multiple="stack", legend=False, ax=levels, **split)
    levels.set(xlabel="level, dBFS", ylabel="clips")
    rows = found["suspects"]
    seaborn.countplot(
        x=[r["kind"] for r in rows], hue=[r["split"] for r in rows], order=[*MEANING], legend=False, ax=suspects, **look
    )
    words.set(ylabel="clips", xlabel="")
    suspects.set(ylabel="suspicious clips", xlabel="")
    with replacing(path) as scratch:
        fig.savefig(scratch, format=kinds[0], dpi=150)
