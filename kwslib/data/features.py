"""From waveforms to features: log-mel or MFCC frames, in batches, on the device that trains.

Symbols: B clips, N samples, T = 1 + N // hop frames, F mel bands or cepstra. The paper's features (its README): 16 kHz,
n_fft 2048, hop 256, 128 mels, power spectrum in dB with 80 dB of range below each clip's own maximum; the MFCC are the
first 40 cepstra of the same mels. Features are normalised with one mean and one standard deviation, measured over the
training split."""

import torch
import torchaudio.functional as AF
from torch import nn

from kwslib.data.audio import to_float
from kwslib.io import SAMPLE_RATE, KwsError


class WaveToSpec(nn.Module):
    """Waveform (B, N) or (N,), float in [-1, 1] -> features (B, T, F) or (T, F), float32.

    `kind` is "mel" (dB, F = n_mels) or "mfcc" (F = n_mfcc). T = 1 + N // hop_length: windows are
    centred on multiples of the hop, with zeros beyond both ends, so that a clip's frames do not
    depend on how much padding follows it except through the last window."""

    def __init__(self, n_mels=128, n_fft=2048, hop_length=256, kind="mel", n_mfcc=40, top_db=80.0):
        super().__init__()
        if kind not in ("mel", "mfcc"):
            raise KwsError(f"features kind is {kind!r}; it must be 'mel' or 'mfcc'")
        if kind == "mfcc" and n_mfcc > n_mels:
            raise KwsError(f"n_mfcc is {n_mfcc}, more than the {n_mels} mel bands that n_mels gives")
        self.options = dict(kind=kind, n_mels=n_mels, n_mfcc=n_mfcc, n_fft=n_fft, hop_length=hop_length, top_db=top_db)
        self.kind, self.n_fft, self.hop_length, self.top_db = kind, n_fft, hop_length, top_db
        self.n_features = n_mels if kind == "mel" else n_mfcc
        mel = AF.melscale_fbanks(n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        # each row twice: the product with (re², im²) laid side by side sums them on the way
        self.register_buffer("mel", mel.repeat_interleave(2, 0), persistent=False)  # (n_fft + 2, n_mels)
        if kind == "mfcc":
            self.register_buffer("dct", AF.create_dct(n_mfcc, n_mels, norm="ortho"), persistent=False)

    def frames(self, samples):
        """Number of frames that `samples` samples (int or tensor) give."""
        return 1 + samples // self.hop_length

    @torch.no_grad()
    def forward(self, wave):
        if wave.dim() not in (1, 2) or not wave.shape[-1] or not wave.is_floating_point():
            given = f"wave has shape {tuple(wave.shape)} and type {wave.dtype}"
            raise KwsError(f"{given}; WaveToSpec takes floats (samples,) or (clips, samples), of one sample or more")
        if wave.dim() == 1:
            return self.forward(wave[None])[0]
        if wave.device.type == "cpu" and len(wave) > 1 and wave.numel() > 1 << 18:
            # spectra that fit the cache take half the time
            return torch.cat([self(part) for part in wave.split(max(1, (1 << 17) // wave.shape[1]))])
        with torch.autocast(wave.device.type, enabled=False):  # a power spectrum needs float32's range
            options = dict(window=self.window, center=True, pad_mode="constant", return_complex=True)
            spectrum = torch.stft(wave.float(), self.n_fft, self.hop_length, **options)
            power = torch.view_as_real(spectrum.transpose(1, 2)).square_().flatten(2)  # (B, T, n_fft + 2)
            mel = (power @ self.mel).clamp_min_(1e-10).log10_().mul_(10.0)
            mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - self.top_db)
            return mel if self.kind == "mel" else mel @ self.dct


class Normalise(nn.Module):
    """(x - mean) / std with one scalar each, as the paper normalises; zero is then the mean."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.mean, self.std = float(mean), float(std)

    @classmethod
    def measure(cls, split, frontend, batch_size=256, device="cpu"):
        """Mean and standard deviation of the features of every clip of `split`, without augmentation."""
        if not len(split.waves):
            raise KwsError(f"split.waves has shape {tuple(split.waves.shape)}; Normalise.measure needs a clip at least")
        total = squares = count = 0.0
        for waves in split.waves.split(batch_size):
            x = frontend(to_float(waves.to(device))).double()
            total += x.sum().item()
            squares += x.square().sum().item()
            count += x.numel()
        mean = total / count
        std = max(squares / count - mean * mean, 0.0) ** 0.5
        if not std > 0:
            raise KwsError("the training clips have no variance (all silent?); check the corpus")
        return cls(mean, std)

    def forward(self, x):
        return (x - self.mean) / self.std
