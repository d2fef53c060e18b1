"""From waveforms to features: log-mel or MFCC frames, in batches, on the device that trains.

Symbols: B clips, N samples, T frames, F mel bands or cepstra. The paper's features (its README): 16 kHz, n_fft 2048,
hop 256, 128 mels, power spectrum in dB with 80 dB of range below each clip's own maximum; the MFCC are the first 40
cepstra of the same mels. Its notebooks ran others, and so did its rivals: the options of WaveToSpec make them all."""

import torch
import torchaudio.functional as AF
from torch import nn
from torch.nn.functional import pad

from kwslib.data.audio import to_float
from kwslib.io import SAMPLE_RATE, KwsError


def within(x, frames):
    """Which frames of features x (B, T, F) are among each clip's first `frames` (B,): bool (B, T, 1)."""
    return (torch.arange(x.shape[1], device=x.device) < frames.to(x.device)[:, None])[..., None]


def one_of(key, value, *names):
    """The value, if it is one of the names that the key may have. Raises KwsError."""
    if value not in names:
        raise KwsError(f"{key} is {value!r}; it must be {' or '.join(map(repr, names))}")
    return value


class WaveToSpec(nn.Module):
    """Waveform (B, N) or (N,), float in [-1, 1] -> features (B, T, F) or (T, F), float32.

    kind: "mel" (F = n_mels) or "mfcc" (their cepstra, F = n_mfcc). scale: "db", 10 log10 of the power with a floor
    `top_db` below the clip's maximum, or "log", ln(power + 1e-6). win_length: samples under the Hann window, which is
    centred in n_fft with zeros; None means n_fft. center: windows are centred on multiples of the hop, with what
    pad_mode says beyond both ends ("constant", zeros, or "reflect"), and T = 1 + N // hop_length; else T = 1 +
    (N - n_fft) // hop_length, at least 1. The defaults let a clip's frames depend on the padding after it through the
    last window alone. The forward pass is `features(power(wave))`: masks on power go in between."""

    def __init__(
        self, n_mels=128, n_fft=2048, hop_length=256, kind="mel", n_mfcc=40, top_db=80.0, win_length=None,
        pad_mode="constant", center=True, scale="db",
    ):  # fmt: skip
        super().__init__()
        self.kind, self.n_fft, self.hop_length, self.top_db = kind, n_fft, hop_length, top_db
        self.pad_mode, self.center, self.scale, self.win_length = pad_mode, center, scale, win_length or n_fft
        one_of("features kind", kind, "mel", "mfcc")
        one_of("pad_mode", pad_mode, "constant", "reflect")
        one_of("scale", scale, "db", "log")
        if kind == "mfcc" and n_mfcc > n_mels:
            raise KwsError(f"n_mfcc is {n_mfcc}, more than the {n_mels} mel bands that n_mels gives")
        if self.win_length > n_fft:
            raise KwsError(f"win_length is {win_length}, more than the {n_fft} samples of n_fft; raise n_fft")
        if n_fft > 512 * hop_length:  # gigabytes of spectra
            raise KwsError(f"hop_length is {hop_length}, too short for windows of {n_fft} samples; raise it")
        self.options = dict(
            kind=kind, n_mels=n_mels, n_mfcc=n_mfcc, n_fft=n_fft, hop_length=hop_length, top_db=top_db,
            win_length=win_length, pad_mode=pad_mode, center=center, scale=scale,
        )  # fmt: skip
        self.n_features = n_mels if kind == "mel" else n_mfcc
        mel = AF.melscale_fbanks(n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE)
        self.register_buffer("window", torch.hann_window(self.win_length), persistent=False)
        # each row twice: the product with (re², im²) laid side by side sums them on the way
        self.register_buffer("mel", mel.repeat_interleave(2, 0), persistent=False)  # (n_fft + 2, n_mels)
        if kind == "mfcc":
            self.register_buffer("dct", AF.create_dct(n_mfcc, n_mels, norm="ortho"), persistent=False)

    def frames(self, samples):
        """Number of frames that `samples` samples (int or tensor) give."""
        whole = samples if self.center else (samples - self.n_fft) * (samples > self.n_fft)
        return 1 + whole // self.hop_length

    @torch.no_grad()
    def forward(self, wave):
        if wave.dim() not in (1, 2) or not wave.shape[-1] or not wave.is_floating_point():
            given = f"wave has shape {tuple(wave.shape)} and type {wave.dtype}"
            raise KwsError(f"{given}; WaveToSpec takes floats (samples,) or (clips, samples), of one sample or more")
        if wave.dim() == 1:
            return self.forward(wave[None])[0]
        return self.features(self.power(wave))

    @torch.no_grad()
    def power(self, wave, samples=None):
        """Waveforms (B, N) -> mel power (B, T, n_mels). samples: int (B,), the ends of clips of different lengths, with
        zeros after them: each has its frames as if it were alone, then zeros."""
        wave = self._padded(wave.float(), samples)
        # on the CPU, spectra that fit the cache take half the time
        size = max(1, (1 << 17) // wave.shape[1]) if wave.device.type == "cpu" else len(wave)
        with torch.autocast(wave.device.type, enabled=False):  # a power spectrum needs float32's range
            parts = [self._spectrum(part) @ self.mel for part in wave.split(size)]
        mel = torch.cat(parts) if len(parts) > 1 else parts[0]
        return mel if samples is None else mel * within(mel, self.frames(samples))

    def _padded(self, wave, samples):
        """The waves (B, N) and what the windows at their ends reach."""
        half, size = self.n_fft // 2, wave.shape[1]
        if not self.center:
            return pad(wave, (0, max(0, self.n_fft - size)))
        if self.pad_mode == "constant":
            return pad(wave, (half, half))
        if (shortest := size if samples is None else int(samples.min())) <= half:
            raise KwsError(f"wave has {shortest} samples; pad_mode reflect needs more than {half}")
        last = torch.as_tensor(size if samples is None else samples).to(wave.device).view(-1, 1) - 1
        at = torch.arange(-half, size + half, device=wave.device).abs()
        return wave.gather(1, (last - (at - last).abs()).clamp_min(0).expand(len(wave), -1))

    def _spectrum(self, wave):
        """Padded waves (B, N) -> squares of the real and imaginary parts, side by side (B, T, n_fft + 2)."""
        options = dict(window=self.window, center=False, return_complex=True)
        spectrum = torch.stft(wave, self.n_fft, self.hop_length, self.win_length, **options)
        return torch.view_as_real(spectrum.transpose(1, 2)).square_().flatten(2)

    @torch.no_grad()
    def features(self, mel):
        """Mel power (B, T, n_mels) -> features (B, T, F)."""
        with torch.autocast(mel.device.type, enabled=False):
            if self.scale == "log":
                mel = (mel + 1e-6).log_()
            else:
                mel = mel.clamp_min(1e-10).log10_().mul_(10.0)
                mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - self.top_db)
            return mel if self.kind == "mel" else mel @ self.dct


class Normalise(nn.Module):
    """Features (…, T, F) to those that a model sees, by `kind`:

    "corpus": (x - mean) / (std + 1e-6) with one scalar each, as the paper normalises; "clip": the same with each clip's
    own mean and unbiased standard deviation; "none": as they are. `options` makes the same again."""

    def __init__(self, mean=0.0, std=1.0, kind="corpus"):
        super().__init__()
        self.mean, self.std, self.kind = float(mean), float(std), one_of("normalise", kind, "corpus", "clip", "none")
        self.options = {"mean": self.mean, "std": self.std} if kind == "corpus" else {"kind": kind}

    @classmethod
    def measure(cls, split, frontend, batch_size=256, device="cpu"):
        """Mean and standard deviation of the features of every clip of `split`, without augmentation."""
        if not len(split.waves):
            raise KwsError(
                f"split.waves has shape {tuple(split.waves.shape)}; Normalise.measure needs at least one clip"
            )
        total = squares = count = 0.0
        for waves in split.waves.split(batch_size):
            x = frontend(to_float(waves.to(device))).double()
            total += x.sum().item()
            squares += x.square().sum().item()
            count += x.numel()
        mean = total / count
        std = max((squares - total * mean) / max(count - 1, 1), 0.0) ** 0.5
        if not std > 0:
            raise KwsError("the training clips have no variance (all silent?); check the corpus")
        return cls(mean, std)

    def forward(self, x, frames=None):
        """frames: int (B,), the frames of clips of different lengths, which alone count as a clip's own."""
        if self.kind == "none":
            return x
        mean, std = self.mean, self.std
        if self.kind == "clip":
            own = x.new_ones(x.shape[-2], 1) if frames is None else within(x, frames).to(x.dtype)
            count, over = own.sum((-2, -1), keepdim=True) * x.shape[-1], dict(dim=(-2, -1), keepdim=True)
            mean = (x * own).sum(**over) / count
            std = (((x - mean) * own).square().sum(**over) / (count - 1).clamp_min(1)).sqrt()
        return (x - mean) / (std + 1e-6)
