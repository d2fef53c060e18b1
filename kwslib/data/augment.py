"""Augmentation of whole batches: time shift, noise, tempo and background on waveforms; masks on features.

Drawing and applying are separate, so that the same draw gives the same clip alone or in a batch: `draw(n, samples)`
returns one row of numbers per clip, `apply(waves, draw)` uses them. Sources: the paper's recipes (shift, noise,
stretch); Warden 2018, section 5.10 (shift and background noise); Park et al. 2019, SpecAugment (masks), section 2."""

import torch
import torch.nn.functional as F
import torchaudio.functional as AF

from kwslib.data.audio import mix_at_snr, shift, to_float
from kwslib.io import SAMPLE_RATE, KwsError


class Augment:
    """Waveform augmentation. Every option's default leaves the waveform as it is.

    shift_ms: largest shift either way, in ms; zeros come in. noise: (low, high), range of the standard deviation of
    added white noise, on the scale [-1, 1]. stretch: (low, high) tempo at unchanged pitch; one tempo is drawn per call,
    because the phase vocoder is a batched operation. speed: (low, high) playing speed, which changes pitch too, drawn
    per clip (Ko et al. 2015). background: int16 or float samples (n,) to mix in with probability background_probability
    at a signal-to-noise ratio drawn from background_snr = (low, high) dB."""

    def __init__(
        self, shift_ms=0.0, noise=None, stretch=None, background=None, background_snr=None,
        background_probability=0.8, speed=None,
    ):  # fmt: skip
        self.shift = round(shift_ms * SAMPLE_RATE / 1000)
        self.noise, self.stretch, self.speed, self.snr = noise, stretch, speed, background_snr
        self.probability = background_probability
        self.background = None
        if background_snr is not None:
            background = torch.as_tensor(background if background is not None else [])
            if len(background) < SAMPLE_RATE:
                reason = "background_snr is set but the corpus has no second of background noise"
                raise KwsError(f"{reason}; set background_snr to null or add a _background_noise_ folder")
            self.background = background.float() if background.is_floating_point() else to_float(background)

    def draw(self, n, samples, generator=None):
        """Random numbers for n clips of `samples` samples: a dict of CPU tensors with n rows (tempo: one float)."""

        def uniform(low, high, *shape):
            return low + (high - low) * torch.rand(shape, generator=generator)

        draw = {}
        if self.shift:
            draw["shift"] = torch.randint(-self.shift, self.shift + 1, (n,), generator=generator)
        if self.stretch:
            draw["tempo"] = uniform(*self.stretch, 1).item()
        if self.speed:
            draw["speed"] = uniform(*self.speed, n)
        if self.noise and self.noise[1] > 0:
            draw["sigma"] = uniform(*self.noise, n)
            draw["seed"] = torch.randint(2**31, (n,), generator=generator)
        if self.background is not None:
            if samples > len(self.background):
                raise KwsError(f"waves has {samples} samples, the background noise {len(self.background)}; give more")
            draw["snr"] = uniform(*self.snr, n)
            draw["start"] = torch.randint(len(self.background) - samples + 1, (n,), generator=generator)
            draw["mix"] = torch.rand(n, generator=generator) < self.probability
        return draw

    def apply(self, waves, draw, samples=None):
        """waves (B, N) float -> (augmented waves (B, N), valid samples (B,), which follow the ends of the clips)."""
        if waves.dim() != 2 or not waves.shape[1]:
            raise KwsError(f"waves has shape {tuple(waves.shape)}; Augment takes (clips, samples)")
        n, size = waves.shape
        samples = torch.full((n,), size) if samples is None else samples.cpu()
        if "tempo" in draw:
            waves = tempo(waves, draw["tempo"])
            samples = (samples / draw["tempo"]).long().clamp(max=size)
        if "speed" in draw:
            waves = resample_each(waves, draw["speed"])
            samples = (samples / draw["speed"]).long().clamp(max=size)
        if "shift" in draw:
            waves = shift(waves, draw["shift"])
            samples = samples + draw["shift"]
        samples = samples.clamp(1, size)
        if "snr" in draw:
            where = draw["start"][:, None] + torch.arange(size)
            noise = self.background[where].to(waves.device)
            waves = mix_at_snr(waves, noise, draw["snr"].to(waves.device), draw["mix"].to(waves.device))
        if "sigma" in draw:
            waves = waves + draw["sigma"].to(waves.device)[:, None] * white(draw["seed"], size, waves.device)
        return waves, samples

    def __call__(self, waves, generator=None):
        """Draw and apply: (B, N) or (N,) float -> the same shape."""
        batch = waves[None] if waves.dim() == 1 else waves
        out, _ = self.apply(batch, self.draw(len(batch), batch.shape[-1], generator))
        return out[0] if waves.dim() == 1 else out


def resample_each(waves, speed):
    """Play each clip of (B, N) `speed` (B,) times as fast, by linear interpolation; cut or zero-padded to N."""
    size = waves.shape[1]
    at = torch.arange(size) * speed[:, None]
    left = at.long().clamp(max=size - 1)
    share = (at - left).to(waves.device)
    left, right = left.to(waves.device), (left + 1).clamp(max=size - 1).to(waves.device)
    out = torch.lerp(waves.gather(1, left), waves.gather(1, right), share)
    return out * (at <= size - 1).to(waves.device)


def tempo(waves, rate, n_fft=512, hop=128):
    """Play `rate` times as fast at the same pitch (phase vocoder); the length stays, cut or zero-padded."""
    window = torch.hann_window(n_fft, device=waves.device)
    spectrum = torch.stft(waves, n_fft, hop, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, n_fft // 2 + 1, device=waves.device)[:, None]
    spectrum = AF.phase_vocoder(spectrum, rate, advance)
    out = torch.istft(spectrum, n_fft, hop, window=window, length=round(waves.shape[1] / rate))
    return F.pad(out, (0, max(0, waves.shape[1] - out.shape[1])))[:, : waves.shape[1]]


def white(seeds, size, device):
    """Standard normal noise (B, size): each row a function of its own seed alone, wherever it is computed.

    A counter-based hash (Jarzynski & Olano 2020, "pcg") and the Box-Muller transform: a generator for each clip would
    be a Python loop."""
    half = (size + 1) // 2
    counter = torch.arange(2 * half, device=device, dtype=torch.int64)
    x = _hash(_hash(seeds.to(device)[:, None]) + counter)
    u = (x.float() + 1.0) / 4294967552.0  # in (0, 1]
    radius, angle = (-2.0 * u[:, :half].log()).sqrt(), 2 * torch.pi * u[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :size]


def _hash(x):
    x = (x * 747796405 + 2891336453) & 0xFFFFFFFF
    x = ((x >> ((x >> 28) + 4)) ^ x) * 277803737 & 0xFFFFFFFF
    return (x >> 22) ^ x


class SpecMask:
    """SpecAugment masks on normalised features (B, T, F), filled with their mean, zero.

    freq, time: (number of masks, largest width in bands or frames); widths are uniform from 0 to the largest."""

    def __init__(self, freq=(0, 0), time=(0, 0)):
        self.freq, self.time = freq, time

    def __call__(self, x, generator=None):
        """x (B, T, F) -> the same shape, masked."""
        if x.dim() != 3:
            raise KwsError(f"x has shape {tuple(x.shape)}; SpecMask takes features (clips, frames, bands)")
        bands, frames = self._keep(x, 2, self.freq, generator), self._keep(x, 1, self.time, generator)
        return x * bands[:, None, :] * frames[:, :, None]

    @staticmethod
    def _keep(x, axis, masks, generator):
        count, width = masks
        n, size = len(x), x.shape[axis]
        widths = (torch.rand(n, count, 1, generator=generator) * (min(width, size) + 1)).floor()
        starts = (torch.rand(n, count, 1, generator=generator) * (size - widths + 1)).floor()
        at = torch.arange(size)
        return ((at < starts) | (at >= starts + widths)).all(1).to(x.device, x.dtype)
