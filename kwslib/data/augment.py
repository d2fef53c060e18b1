"""Augmentation of whole batches: time shift, noise, tempo and background on waveforms; masks and warps on features.

Drawing and applying are separate, so that the same draw gives the same clip alone or in a batch: `draw(n, samples)`
returns one row of numbers per clip, `apply(waves, draw)` uses them. Sources: the paper's recipes (shift, noise,
stretch); Warden 2018, section 5.10 (shift and background noise); Park et al. 2019, SpecAugment (masks and
time warping), section 2."""

import torch
import torch.nn.functional as F

from kwslib.data.audio import mix_at_snr, shift, to_float
from kwslib.data.features import one_of
from kwslib.io import SAMPLE_RATE, KwsError

EXACT = "donot_use_mm_for_euclid_dist"


class Augment:
    """Waveform augmentation. Every option's default leaves the waveform as it is.

    shift_ms: largest shift either way, in ms; zeros come in. noise: (low, high), range of the standard deviation of
    added white noise, on the scale [-1, 1]. stretch: (low, high) tempo at unchanged pitch, drawn per clip; the clip's
    length changes. speed: (low, high) playing speed, which changes pitch too, drawn per clip (Ko et al. 2015); the
    length stays. background: int16 or float samples (n,) to mix in with probability background_probability, either at
    a signal-to-noise ratio drawn from background_snr = (low, high) dB or at a share of full volume drawn from
    background_volume = (low, high), as TensorFlow's speech_commands/input_data.py does."""

    def __init__(
        self, shift_ms=0.0, noise=None, stretch=None, background=None, background_snr=None,
        background_probability=0.8, speed=None, background_volume=None,
    ):  # fmt: skip
        self.shift = round(shift_ms * SAMPLE_RATE / 1000)
        self.noise, self.stretch, self.speed = noise, stretch, speed
        self.snr, self.volume, self.probability = background_snr, background_volume, background_probability
        self.background = None
        given = {"background_snr": background_snr, "background_volume": background_volume}
        if keys := [key for key, value in given.items() if value is not None]:
            if len(keys) > 1:
                raise KwsError(f"{' and '.join(keys)} are both set; set one of them to null")
            background = torch.as_tensor(background if background is not None else [])
            if len(background) < SAMPLE_RATE:
                reason = f"{keys[0]} is set but the corpus has no second of background noise"
                raise KwsError(f"{reason}; set {keys[0]} to null or add a _background_noise_ folder")
            self.background = background.float() if background.is_floating_point() else to_float(background)

    def draw(self, n, samples, generator=None):
        """Random numbers for n clips of `samples` samples: a dict of CPU tensors with n rows."""

        def uniform(low, high):
            return low + (high - low) * torch.rand(n, generator=generator)

        draw = {}
        if self.shift:
            draw["shift"] = torch.randint(-self.shift, self.shift + 1, (n,), generator=generator)
        if self.stretch:
            rate = uniform(*self.stretch)
            draw["tempo"] = torch.where((rate - 1).abs() < 1e-3, 1.0, rate)  # too little to be worth the seams
        if self.speed:
            draw["speed"] = uniform(*self.speed)
        if self.noise and self.noise[1] > 0:
            draw["sigma"] = uniform(*self.noise)
            draw["seed"] = torch.randint(2**31, (n,), generator=generator)
        if self.background is not None:
            if (longest := int(played(samples, draw).max())) > len(self.background):
                raise KwsError(f"waves has {longest} samples, the background noise {len(self.background)}; give more")
            draw["snr" if self.snr else "volume"] = uniform(*(self.snr or self.volume))
            draw["start"] = torch.randint(len(self.background) - longest + 1, (n,), generator=generator)
            draw["mix"] = torch.rand(n, generator=generator) < self.probability
        return draw

    def apply(self, waves, draw, samples=None):
        """waves (B, N) float -> (augmented waves (B, N'), valid samples (B,), which follow the ends of the clips).

        N' is N, or after tempo the longest of `played`; zeros follow the shorter clips."""
        if waves.dim() != 2 or not waves.shape[1]:
            raise KwsError(f"waves has shape {tuple(waves.shape)}; Augment takes (clips, samples)")
        samples = torch.full((len(waves),), waves.shape[1]) if samples is None else samples.cpu()
        samples, ends = played(samples, draw), played(waves.shape[1], draw)
        size = int(ends.max())
        inside = (torch.arange(size) < ends[:, None]).to(waves.device)
        if "tempo" in draw:
            waves = tempo(waves, draw["tempo"], size) * inside
        if "speed" in draw:
            waves = resample_each(waves, draw["speed"])
            samples = (samples / draw["speed"]).long().minimum(ends)
        if "shift" in draw:
            waves = shift(waves, draw["shift"]) * inside
            samples = samples + draw["shift"]
        samples = samples.clamp_min(1).minimum(ends)
        if "start" in draw:
            mix = draw["mix"].to(waves.device)
            at = draw["start"].to(self.background.device)[:, None] + torch.arange(size, device=self.background.device)
            noise = self.background[at].to(waves.device) * inside
            if "snr" in draw:
                waves = mix_at_snr(waves, noise, draw["snr"].to(waves.device), mix)
            else:
                waves = (waves + (draw["volume"].to(waves.device) * mix)[:, None] * noise).clamp(-1, 1)
        if "sigma" in draw:
            noise = white(draw["seed"], size, waves.device) * inside
            waves = waves + draw["sigma"].to(waves.device)[:, None] * noise
        return waves, samples

    def __call__(self, waves, generator=None):
        """Draw and apply: (B, N) or (N,) float -> (B, N') or (N',)."""
        batch = waves[None] if waves.dim() == 1 else waves
        out, _ = self.apply(batch, self.draw(len(batch), batch.shape[-1], generator))
        return out[0] if waves.dim() == 1 else out


def played(samples, draw):
    """How long each clip of `samples` samples, int or int64 (B,), lasts at its drawn tempo: int64 (B,) or (1,), as SoX
    rounds it."""
    return (samples / draw.get("tempo", torch.ones(1)).double() + 0.5).long()


def resample_each(waves, speed):
    """Play each clip of (B, N) `speed` (B,) times as fast, by linear interpolation; cut or zero-padded to N."""
    size = waves.shape[1]
    at = torch.arange(size, device=waves.device) * speed.to(waves.device)[:, None]
    left = at.long().clamp(max=size - 1)
    right = (left + 1).clamp(max=size - 1)
    out = torch.lerp(waves.gather(1, left), waves.gather(1, right), at - left)
    return out * (at <= size - 1)


def tempo(waves, rate, size, segment=1312, search=235, overlap=192):
    """Play each clip of (B, N) `rate` (B,) times as fast at the same pitch -> (B, size), whole where size is `played`.

    Waveform-similarity overlap-add (Verhelst & Roelands 1993) with the rules and default sizes of SoX's effect `tempo`
    (its tempo.c): segments of 82 ms follow each other in the output, each faded in over 12 ms where, within 14.7 ms, it
    fits the end of the one before best."""
    stride = segment - overlap
    waves = F.pad(waves, (search // 2, segment + search + 1))
    last, fade = waves.shape[1] - 1, torch.arange(overlap, device=waves.device) / overlap
    span = torch.arange(segment, device=waves.device)
    out, tail = [], None
    for i in range(-(-size // stride)):
        at = (rate.double() * (i * stride) + 0.5).long().to(waves.device)[:, None]
        if tail is None:
            at = at + search // 2
        else:
            near = waves.gather(1, (at + torch.arange(search + overlap - 1, device=waves.device)).clamp_max(last))
            # without the usual trick of a product: where it is silent, or at rate 1, a difference of 0 must be 0
            miss = torch.cdist(near.unfold(1, overlap, 1), tail[:, None], compute_mode=EXACT)  # (B, search, 1)
            at = at + miss.argmin(1)
        piece = waves.gather(1, (at + span).clamp_max(last))
        start = piece[:, :overlap] if tail is None else torch.lerp(tail, piece[:, :overlap], fade)
        out += [start, piece[:, overlap:stride]]
        tail = piece[:, stride:]
    return torch.cat(out, 1)[:, :size]


def white(seeds, size, device):
    """Standard normal noise (B, size): each row a function of its own seed alone, wherever and however far it goes.

    A counter-based hash (Jarzynski & Olano 2020, "pcg") and the Box-Muller transform: a generator for each clip would
    be a Python loop."""
    half = (size + 1) // 2
    counter = torch.arange(2 * half, device=device, dtype=torch.int64)
    x = _hash(_hash(seeds.to(device)[:, None]) + counter)
    u = (x.float() + 1.0) / 4294967552.0  # in (0, 1]
    radius, angle = (-2.0 * u[:, ::2].log()).sqrt(), 2 * torch.pi * u[:, 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 2).flatten(1)[:, :size]


def _hash(x):
    x = (x * 747796405 + 2891336453) & 0xFFFFFFFF
    x = ((x >> ((x >> 28) + 4)) ^ x) * 277803737 & 0xFFFFFFFF
    return (x >> 22) ^ x


class SpecMask:
    """SpecAugment masks, each a band of frequencies or of time that becomes zero.

    freq, time: (number of masks, bound of their width in bands or frames): as torchaudio's mask_along_axis draws them,
    a mask covers 0 to bound - 1. on: where Batches sets the zeros: "normalised", features that a model sees (zero is
    then the mean); "features", before they are normalised; "power", before the dB (zero is then the clip's floor)."""

    def __init__(self, freq=(0, 0), time=(0, 0), on="normalised"):
        self.freq, self.time = freq, time
        self.on = one_of("mask_on", on, "normalised", "features", "power")

    def __call__(self, x, generator=None, frames=None):
        """x (B, T, F) -> the same shape, masked. frames: int (B,), those of clips of different lengths."""
        if x.dim() != 3:
            raise KwsError(f"x has shape {tuple(x.shape)}; SpecMask takes features (clips, frames, bands)")
        bands, times = self._keep(x, 2, self.freq, generator), self._keep(x, 1, self.time, generator, frames)
        return x * bands[:, None, :] * times[:, :, None]

    @staticmethod
    def _keep(x, axis, masks, generator, sizes=None):
        count, bound = masks
        sizes = torch.as_tensor(x.shape[axis] if sizes is None else sizes).cpu().view(-1, 1, 1)
        widths = torch.rand(len(x), count, 1, generator=generator) * sizes.clamp_max(bound)
        starts = (torch.rand(len(x), count, 1, generator=generator) * (sizes - widths)).floor()
        at = torch.arange(x.shape[axis])
        return ((at < starts) | (at >= starts + widths.floor())).all(1).to(x.device, x.dtype)


class TimeWarp:
    """Time warping of features, as SpecAugment has it, at several places at once: parts of a clip become slower and
    others faster, and the clip keeps its length.

    parts: how many pieces of equal length; spread: the standard deviation of the logarithm of a piece's tempo."""

    def __init__(self, parts=6, spread=0.25):
        self.parts, self.spread = parts, spread

    def __call__(self, x, generator=None):
        """x (B, T, F) -> the same shape, warped by linear interpolation between frames."""
        if x.dim() != 3:
            raise KwsError(f"x has shape {tuple(x.shape)}; TimeWarp takes features (clips, frames, bands)")
        frames = x.shape[1]
        pieces = (self.spread * torch.randn(len(x), 1, self.parts, generator=generator)).exp()
        steps = F.interpolate(pieces, frames - 1, mode="linear", align_corners=True)[:, 0].double().cumsum(1)
        at = F.pad(steps / steps[:, -1:], (1, 0)).to(x.device, x.dtype) * (frames - 1)
        left = at.long().clamp(max=max(0, frames - 2))
        index = left[..., None].expand_as(x)
        return torch.lerp(x.gather(1, index), x.gather(1, index + 1), (at - left)[..., None])
