"""The two ways to listen that kwslib/listening/stream.py describes: 16 kHz samples in, logits of every decision out."""

import math
from itertools import chain

import torch
from torch.nn.functional import pad

from kwslib.data.features import WaveToSpec
from kwslib.io import SAMPLE_RATE, KwsError
from kwslib.listening.windows import BATCH
from kwslib.models.ensemble import members_of
from kwslib.models.layers import Carried, undropped


class Ear:
    """Samples at 16 kHz (n,) -> logits of the decisions that they complete: `hear`. missing: samples until the next.
    window, step, restart: in samples; see kwslib/listening/stream.py."""

    def __init__(self, spotter, window, step, restart=0):
        self.spotter, self.window, self.step, front = spotter, window, step, spotter.frontend
        self.restart = restart
        self.half = front.n_fft // 2 if front.center else 0  # samples that frame 0 reaches before the start
        self.plain = WaveToSpec(**front.options | {"center": False}).to(spotter.device)  # frames inside the samples
        self.nothing = torch.zeros(0, len(spotter.labels), device=spotter.device)

    def powers(self, wave):
        """Mel power (n, n_mels) of every whole frame that begins in `wave` (N,): `WaveToSpec.power` without its care
        for batches and autocast, which costs as much as ten frames."""
        front = self.plain
        if len(wave) < front.n_fft:
            return wave.new_zeros(0, front.mel.shape[1])
        how = dict(window=front.window, center=False, return_complex=True)
        spectrum = torch.stft(wave, front.n_fft, front.hop_length, front.win_length, **how)
        return torch.view_as_real(spectrum.T).square_().flatten(1) @ front.mel

    def state_dict(self):
        return {"missing": torch.tensor(self.missing)} | {k: getattr(self, k) for k in self.kept}

    def load_state_dict(self, state):
        self.missing = int(state["missing"])
        for key in self.kept:
            setattr(self, key, state[key].to(self.nothing.device))


class Windows(Ear):
    """Every window anew. held: the samples from the next window on. power: the spectra inside it that are known."""

    kept = "held", "power"

    def __init__(self, *how):
        super().__init__(*how)
        front, window, step = self.spotter.frontend, self.window, self.step
        self.frames, hop = front.frames(window), front.hop_length
        self.first = -(-self.half // hop)  # frames from here on lie inside the window
        self.inside = (window + self.half - front.n_fft) // hop + 1 - self.first
        borders = self.frames - self.inside
        self.shares = step % hop == 0 and self.inside > 0 and (not self.half or borders > self.first)

    def reset(self):
        self.missing, self.held = self.window, self.nothing.new_zeros(0)
        self.power = self.held.new_zeros(0, self.plain.mel.shape[1])

    def hear(self, wave):
        self.held = torch.cat([self.held, wave])
        count = max(0, (len(self.held) - self.window) // self.step + 1)
        found = [self.nothing]
        for at in range(0, count, BATCH):
            size = self.window + (min(BATCH, count - at) - 1) * self.step
            found.append(self.logits(self.held[at * self.step :][:size]))
        self.held = self.held[count * self.step :].clone() if count else self.held
        self.missing = self.window - len(self.held)
        return torch.cat(found)

    def logits(self, run):
        """Of the windows in a run of samples, (n, labels)."""
        spotter, windows = self.spotter, run.unfold(0, self.window, self.step)
        if not self.shares:
            return spotter.logits(windows)
        power = self.powers_of(run, windows)
        return spotter.model(spotter.normalise(spotter.frontend.features(power)), None).float()

    def powers_of(self, run, windows):
        """Mel power (n, T, n_mels) of each window, those frames that windows share computed once."""
        front, hop, each = self.plain, self.plain.hop_length, self.step // self.plain.hop_length
        begin = (self.first + len(self.power)) * hop - self.half
        power = torch.cat([self.power, self.powers(run[begin:])])
        self.power = power[len(windows) * each :].clone()
        inside = power.unfold(0, self.inside, each).transpose(1, 2)
        if self.inside == self.frames:
            return inside
        padded = pad(windows, (self.half, self.half), self.spotter.frontend.pad_mode)
        head = padded[:, : (self.first - 1) * hop + front.n_fft]  # the frames at its two borders, which are its own
        tail = padded[:, (self.first + self.inside) * hop : (self.frames - 1) * hop + front.n_fft]
        return torch.cat([front.power(head), inside, front.power(tail)], 1)


class Once(Ear):
    """Every frame once, decision by decision, so that chunks change nothing at all. held: the samples from the next
    frame on. loud: the loudest value of each of the last frames. frames: the model's last, as its head averages them,
    of an ensemble's members side by side. model: what its layers carry, of each member.

    With `restart`, two states of the blocks take turns: the one that has heard twice `restart` is set to zeros, and the
    other, which has heard `restart`, is listened to. turn: (which one, samples since)."""

    kept = "held", "loud", "frames", "turn"

    def __init__(self, spotter, window, step, restart=0):
        super().__init__(spotter, window, step, restart)
        members, self.lanes = members_of(spotter.model), 2 if restart else 1
        if 0 < restart < window:
            raise KwsError(
                f"restart_s is {restart / SAMPLE_RATE:g}; a state hears a window of {window / SAMPLE_RATE:g} s"
            )
        if not all(map(Carried.fits, members)) or spotter.normalise.kind == "clip":
            raise KwsError(f"model {spotter.card['model']} carries no state; listen with mode windows")
        self.span = spotter.frontend.frames(window)  # frames of features in a window
        self.mean = round(window / spotter.frontend.hop_length / members[0].frontend.stride)  # and of the model
        self.width = sum(m.head.norm.normalized_shape[0] for m in members)
        kind, self.prefix = Carried, "model."
        if spotter.device.type == "cpu":
            from kwslib.listening.frames import Compiled as kind  # only here: importing numba takes a second

            self.prefix = "compiled."
        self.carry, self.heads = [kind(m) for m in members], [undropped(m.head.classify) for m in members]

    def reset(self):
        self.missing, self.model = self.window, None
        self.held = self.nothing.new_zeros(self.half)
        self.loud, self.frames = self.held.new_zeros(0), self.held.new_zeros(self.lanes, 0, self.width)
        self.turn = torch.tensor([0, self.window - self.step])

    def hear(self, wave):
        found = [self.nothing]
        while len(wave) >= self.missing:
            found.append(self.decide(wave[: self.missing]))
            wave, self.missing = wave[self.missing :], self.step
        self.held, self.missing = torch.cat([self.held, wave]), self.missing - len(wave)
        return torch.cat(found)

    def decide(self, wave):
        lane = self.next_turn()
        wave = torch.cat([self.held, wave])
        power = self.powers(wave)
        self.held = wave[len(power) * self.plain.hop_length :]
        if len(power):
            frames = self.modelled(self.spotter.normalise(self.features(power)))
            self.frames = torch.cat([self.frames, frames], 1)[:, -self.mean :]
        means = self.frames[lane : lane + 1].mean(1).chunk(len(self.heads), 1)
        return (sum(head(mean) for head, mean in zip(self.heads, means)) / len(means)).float()

    def next_turn(self):
        """Which state is listened to for the next decision; the one that was may start anew."""
        lane, since = self.turn.tolist()
        if self.restart and since >= self.restart:
            for carry, own in zip(self.carry, self.model or ()):
                for state in own[len(carry.layers) :]:  # those before it are of the convolutions
                    state[lane] = 0
            lane, since = 1 - lane, 0
        self.turn = torch.tensor([lane, since + self.step])
        return lane

    def modelled(self, x):
        """The next features (n, F) -> frames of all members (lanes, t, width)."""
        states, x = self.model or [None] * len(self.carry), x.repeat(self.lanes, 1, 1)
        frames, self.model = zip(*(carry(x, state) for carry, state in zip(self.carry, states)))
        return torch.cat(frames, 2)

    def features(self, power):
        front = self.plain
        if front.scale == "log":
            return front.features(power[None])[0]
        mel = power.clamp_min(1e-10).log10_().mul_(10.0)
        loud = torch.cat([self.loud, mel.amax(1)])
        before, self.loud = len(self.loud), loud[-self.span + 1 :]
        most = pad(loud, (self.span - 1, 0), value=-math.inf).unfold(0, self.span, 1).amax(1)[before:]
        mel = torch.maximum(mel, most[:, None] - front.top_db)
        return mel if front.kind == "mel" else mel @ front.dct

    def state_dict(self):
        carried = chain.from_iterable(self.model or ())
        return super().state_dict() | {f"{self.prefix}{i}": t for i, t in enumerate(carried)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        count = sum("." in key for key in state)
        carried = [state[f"{self.prefix}{i}"].to(self.held.device) for i in range(count)]
        each = max(1, count // len(self.carry))
        self.model = [carried[i : i + each] for i in range(0, count, each)] or None


EARS = {"windows": Windows, "carried": Once}
