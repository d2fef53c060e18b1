"""Listening: samples in chunks of any length come in, words come out. `spotter.stream()` makes a Stream.

    chunk ─ Resampler ─ 16 kHz ─ Windows or Once ─ log-odds, every hop_s ─ mean of the last `smooth` ─ threshold ─ event

Two ways to listen, with the same times and the same rules for an event:

"windows"  the model hears the last window_s seconds again at each decision: the scores of `KeywordSpotter.scores`, for
           every model. Power spectra that overlapping windows share are computed once; a window's own borders, its
           floor and the model are not shared.
"carried"  the model hears each frame once: convolutions keep their borders and Mamba blocks their state (Gu & Dao 2023,
           section 3.3.2), and the head averages over the last window_s. A fraction of the work; scores are close to
           those of windows, not equal, as the blocks remember more than a window. With restart_s, two states take
           turns, so that none remembers more than twice that. A floor of features in dB lies below the loudest frame
           of the last window_s."""

import math
from collections import namedtuple

import numpy as np
import torch
from pydantic import Field, ValidationError

from kwslib.card import Detector
from kwslib.data.audio import check_rate, to_mono
from kwslib.data.tasks import SILENCE, UNKNOWN
from kwslib.io import SAMPLE_RATE, KwsError
from kwslib.listening.ears import EARS
from kwslib.listening.windows import LISTENING, log_odds

# An event of a classifier, for which no threshold was measured: 80 % sure, as label smoothing leaves few words above
# 90 %. A window of a second holds a word so long that a shorter rest would hear it twice. Detectors' cards say theirs.
CLASSIFIER = {"threshold": math.log(0.8 / 0.2), "refractory_s": 1.5}
PIECE = 5  # seconds that are resampled and heard at a time, so that a long chunk needs little memory

Event = namedtuple("Event", ("word", "time", "score"))


class Stream:
    """Hears a stream of samples; `feed` it chunks.

    mode: "windows" or "carried" (above); None: the first that the card's detector names, else "windows". threshold:
    log-odds at which a word is heard, one number or {label: number}. alarms_per_hour: take the card's threshold for
    this rate of false alarms. With neither, a detector takes the card's strictest and a classifier `CLASSIFIER`'s.
    times, scores: of the decisions of the last call of `feed` or `finish`, as `KeywordSpotter.scores` returns them.

    Raises KwsError for a mode that the model lacks, and where the card has no threshold for the mode or the rate."""

    def __init__(self, spotter, mode=None, threshold=None, alarms_per_hour=None):
        meant = spotter.card.get("detector", {}).get("modes", list(EARS))  # what the card's thresholds are for
        self.spotter, self.mode = spotter, mode or meant[0]
        if self.mode not in EARS:
            raise KwsError(f"mode {self.mode!r} is not known; choose one of {', '.join(EARS)}")
        how = rule(spotter.card, self.mode)
        self.smooth = how["smooth"]
        self.window, self.step, restart, self.rest = (
            round(how[key] * SAMPLE_RATE) for key in ("window_s", "hop_s", "restart_s", "refractory_s")
        )
        if not 0 < self.step <= self.window:
            raise KwsError(f"hop_s is {how['hop_s']} and window_s {how['window_s']}; a hop is within a window")
        if threshold is None:
            if self.mode not in meant:
                raise KwsError(f"the card's thresholds are for mode {meant[0]}; give one of your own for {self.mode}")
            threshold = threshold_of(how, alarms_per_hour)
        self.thresholds = per_label(threshold, spotter.labels)
        self.ear = EARS[self.mode](spotter, self.window, self.step, restart)
        self.reset()

    def reset(self):
        """Forget all that was heard; the next sample is at time 0, at any rate."""
        n = len(self.spotter.labels)
        self.rate, self.resampler, self.chunks, self.fresh, self.decisions = None, None, [], 0, 0
        self.recent, self.last = (
            np.zeros((0, n), np.float32),
            np.full(n, -self.rest),
        )  # log-odds; sample of each label's last event
        self.ear.reset()
        self._none()

    def _none(self):
        self.times, self.scores = np.zeros(0), np.zeros((0, len(self.spotter.labels)), np.float32)

    def feed(self, chunk, sample_rate=SAMPLE_RATE):
        """[Event(word, time, score), …] that the chunk completes.

        chunk: samples as `predict` takes them, of any length, also none; all of one rate in Hz until `reset`. time: of
        the end of the window that was decided on, in s since the start; score: log-odds. Raises KwsError, in one
        sentence, for what is not samples; the stream goes on as if that chunk had not been given."""
        self._none()
        if self.rate is None:
            self._begin(sample_rate)
        elif sample_rate != self.rate:
            raise KwsError(f"sample_rate is {sample_rate}, but the stream began at {self.rate}; reset() it first")
        if not np.size(chunk):
            return []
        self.chunks.append(to_mono(chunk, "the chunk"))
        self.fresh += len(self.chunks[-1])
        if self.fresh * SAMPLE_RATE < self.ear.missing * self.rate:  # too short for a decision: no work yet
            return []
        return self._decide(self._heard())

    def _begin(self, rate):
        self.rate = check_rate(rate)
        self.resampler = Resampler(self.rate)

    @torch.inference_mode()
    def _heard(self):
        """Logits (n, labels) of the decisions that the waiting chunks complete."""
        wave, self.chunks, self.fresh = torch.from_numpy(np.concatenate(self.chunks)), [], 0
        parts = [self._hear(piece) for piece in wave.split(PIECE * self.rate)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _hear(self, wave):
        return self.ear.hear(self.resampler.feed(wave).to(self.spotter.device))

    @torch.inference_mode()
    def finish(self):
        """The events at the end of the recording, which `feed` could not know of; then the stream is `reset`.

        Resampling waits for some milliseconds; and a recording shorter than a window is heard with zeros after it."""
        found, logits = [], []
        self._none()
        if self.rate is not None:
            if self.chunks:
                logits.append(self._heard())
            logits.append(self.ear.hear(self.resampler.finish().to(self.spotter.device)))
            if not self.decisions and not sum(map(len, logits)) and self.ear.missing < self.window:
                logits.append(self.ear.hear(torch.zeros(self.ear.missing, device=self.spotter.device)))
            found = self._decide(torch.cat(logits))
        kept = self.times, self.scores
        self.reset()
        self.times, self.scores = kept
        return found

    def _decide(self, logits):
        if not len(logits):
            return []
        odds = log_odds(logits, "detector" in self.spotter.card).cpu().numpy()
        known, self.recent = len(self.recent), np.concatenate([self.recent, odds])
        ends = range(known + 1, len(self.recent) + 1)
        means = [self.recent[max(0, end - self.smooth) : end].mean(0, dtype=np.float64) for end in ends]
        self.scores, self.recent = np.array(means, np.float32), self.recent[-self.smooth :]
        samples = self.window + self.step * np.arange(self.decisions, self.decisions + len(ends))
        self.decisions, self.times = self.decisions + len(ends), samples / SAMPLE_RATE
        found = []
        for row, label in np.argwhere(self.scores >= self.thresholds):
            if samples[row] - self.last[label] >= self.rest:
                self.last[label] = samples[row]
                event = self.spotter.labels[label], float(self.times[row]), float(self.scores[row, label])
                found.append(Event(*event))
        return found

    def state_dict(self):
        """What the stream remembers, as a flat dict of tensors: for torch.save or safetensors."""
        waiting = torch.from_numpy(np.concatenate(self.chunks)) if self.chunks else torch.zeros(0)
        resampler = self.resampler.held if self.resampler else torch.zeros(0)
        counts = torch.tensor([self.rate or 0, self.decisions])
        own = {"counts": counts, "waiting": waiting, "resampler": resampler, "recent": torch.from_numpy(self.recent)}
        own["last"] = torch.from_numpy(self.last)
        return {k: v.detach().cpu().clone() for k, v in (own | self.ear.state_dict()).items()}

    def load_state_dict(self, state):
        """Go on where the stream stood whose `state_dict` this is; of the same model and mode."""
        self.reset()
        try:
            own = {k: state[k].clone() for k in ("counts", "waiting", "resampler", "recent", "last")}
            if own["last"].shape != self.last.shape:
                raise KeyError("last")
            self.ear.load_state_dict({k: v.clone() for k, v in state.items() if k not in own})
        except KeyError as e:
            self.reset()
            raise KwsError(
                f"the state does not fit this stream ({e.args[0]}); save one of this model and mode"
            ) from None
        rate, self.decisions = own["counts"].tolist()
        if rate:
            self._begin(rate)
            self.resampler.held = own["resampler"]
        self.recent, self.last = own["recent"].numpy(), own["last"].numpy()
        self.chunks, self.fresh = ([own["waiting"].numpy()], len(own["waiting"])) if len(own["waiting"]) else ([], 0)


class OfMode(Detector):
    """What a card's detector may say of one mode."""

    restart_s: float = Field(0.0, ge=0, le=60)  # of the carried state; 0: never


def rule(card, mode):
    """How a model listens in a mode, a dict: what its card's `detector` says under the mode's name, as in {"carried":
    {"smooth": 3, "thresholds": …}}, else what it says, else LISTENING and CLASSIFIER. Raises KwsError."""
    detector = card.get("detector", {})
    try:
        own = OfMode.model_validate(detector.get(mode, {})).model_dump(exclude_unset=True)
    except ValidationError as e:
        first = e.errors()[0]
        at = ".".join(map(str, ("detector", mode, *first["loc"])))
        raise KwsError(f"the card's {at} is wrong ({first['msg']}); take the card that came with the model") from None
    return LISTENING | CLASSIFIER | detector | {"restart_s": 0.0} | own


def threshold_of(how, alarms_per_hour):
    """The threshold in a `rule` for a rate of false alarms; the default for a classifier, which has none."""
    known = {float(rate): value for rate, value in how.get("thresholds", {}).items()}
    if alarms_per_hour is None:
        return known[min(known)] if known else CLASSIFIER["threshold"]
    if alarms_per_hour in known:
        return known[alarms_per_hour]
    has = f"thresholds for {', '.join(f'{r:g}' for r in sorted(known))}, not" if known else "no threshold"
    raise KwsError(f"the model's card has {has} for {alarms_per_hour:g} false alarms an hour; give a threshold instead")


def per_label(threshold, labels):
    """A number or {label: number} -> (labels,); what is no word never comes."""
    each = threshold if isinstance(threshold, dict) else dict.fromkeys(labels, threshold)
    if unknown := [label for label in each if label not in labels]:
        raise KwsError(
            f"there is a threshold for {unknown[0]!r}, which is not a label; the labels are {', '.join(labels)}"
        )
    return np.array([math.inf if w in (UNKNOWN, SILENCE) else float(each.get(w, math.inf)) for w in labels])


class Resampler:
    """Chunks at `rate` Hz, float32 (n,) -> the samples at 16 kHz that torchaudio's windowed sinc makes of all of them.

    Of a ratio old : new in lowest terms, a block of `old` samples gives `new`, with `reach` more on either side. The
    sums are in double precision, so that they do not depend on the chunks. held: the samples from the next block's
    reach on, zeros at first."""

    def __init__(self, rate):
        common = math.gcd(rate, SAMPLE_RATE)
        self.old, self.new, self.held = rate // common, SAMPLE_RATE // common, torch.zeros(0)
        if self.old != self.new:
            from torchaudio.transforms import Resample

            # in single precision, as `resample` has it: (new, old + 2 reach)
            kernel = Resample(rate, SAMPLE_RATE, dtype=torch.float32).kernel[:, 0].double()
            self.reach = (kernel.shape[1] - self.old) // 2
            self.held = torch.zeros(self.reach)
            first = torch.arange(self.new) * self.old // self.new  # the rest of a row is zero
            self.at = first[:, None] + torch.arange(2 * self.reach + 1)
            self.taps = kernel.gather(1, self.at)

    def feed(self, wave):
        if self.old == self.new:
            return wave
        self.held = torch.cat([self.held, wave])
        count = max(0, (len(self.held) - 2 * self.reach) // self.old)
        if not count:
            return wave[:0]
        blocks = self.held.double().unfold(0, self.old + 2 * self.reach, self.old)
        self.held = self.held[count * self.old :].clone()
        return (blocks[:, self.at] * self.taps).sum(-1).flatten().float()

    def finish(self):
        """The last samples, with zeros after them."""
        if self.old == self.new:
            return self.held
        left = (len(self.held) - self.reach) * self.new
        return self.feed(torch.zeros(self.reach + self.old))[: -(-left // self.old)]
