"""Sound as samples: decoding, resampling, levels, cutting, shifting and mixing, each in one place.

PyTorch is imported where it is needed: packing's workers load it only for a clip that must be resampled."""

import io
import os
from itertools import chain
from numbers import Real

import numpy as np

from kwslib.io import SAMPLE_RATE, KwsError

BLOCK = 60  # seconds that are decoded or resampled at a time
CHANNELS = 8  # more are taken for a batch of recordings, whose mean says nothing
FAR = 8.0  # a sample beyond this was never on the scale [-1, 1]
CUT = "truncated: it ends before its header says"
NOTHING = np.zeros(0, np.float32)
# Of WAV, AIFF, RF64, Wave64 and AU: where the number of bytes stands, in which order, and how many more there are.
HEADERS = {b"RIFF": (4, 8, "little", 8), b"FORM": (4, 8, "big", 8), b"RF64": (20, 28, "little", 8)}
HEADERS |= {b"riff": (16, 24, "little", 0), b".snd": (8, 12, "big", None)}


class Unreadable(KwsError):
    """A recording cannot be used; the message says why."""


# -- levels


def to_int16(wave):
    """Float samples in [-1, 1) -> (int16 samples, whether any had to be clipped). Exact for 16-bit input."""
    samples = np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)
    return samples, bool(np.abs(wave).max(initial=0) > 1)


def to_float(waves):
    """A tensor of int16 samples -> float32 in [-1, 1)."""
    return waves.float() / 32768.0


def to_mono(samples, name="the wave"):
    """Samples (n,), (channels, n) or (n, channels) -> float32 (n,), finite, on the scale [-1, 1]. Raises Unreadable.

    samples: an array or tensor of floats in [-1, 1], int16, int32 or uint8, or a list of floats. The longer side is
    time: torchaudio puts channels first, soundfile last."""
    if hasattr(samples, "detach"):  # a tensor, wherever it is and whatever its gradient
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples
    elif isinstance(samples, (list, tuple)) and not all(isinstance(x, Real) for x in samples):
        raise Unreadable(f"{name} is a {type(samples).__name__} of other things than numbers; give one array")
    wave = np.asarray(samples)
    if wave.ndim not in (1, 2) or (wave.ndim == 2 and min(wave.shape) > CHANNELS):
        shapes = f"(samples,), or (channels, samples) or (samples, channels) with at most {CHANNELS} channels"
        raise Unreadable(f"{name} has shape {wave.shape}; give one recording: {shapes}")
    if not wave.size:
        raise Unreadable(f"{name} holds no samples; give a recording that is not empty")
    full_scale = {"int16": (0, 1 << 15), "int32": (0, 1 << 31), "uint8": (128, 128)}
    if wave.dtype.name in full_scale:
        zero, scale = full_scale[wave.dtype.name]
        wave = (wave.astype(np.float32) - np.float32(zero)) / np.float32(scale)
    elif wave.dtype.kind != "f":
        raise Unreadable(f"{name} holds {wave.dtype} values; give floats in [-1, 1], int16, int32 or uint8")
    check_level(wave, f"{name} ")
    wave = np.asarray(wave, np.float32)
    return wave if wave.ndim == 1 else wave.mean(axis=0 if wave.shape[0] <= wave.shape[1] else 1)


def check_level(wave, name=""):
    """Raise Unreadable where a sample is not a number, or was never on the scale [-1, 1]."""
    peak = max(wave.max(), -wave.min())
    if not np.isfinite(peak):
        raise Unreadable(f"{name}holds NaN or infinite samples; record or convert it again")
    if peak > FAR:
        raise Unreadable(f"{name}has a sample of {peak:g}, far outside [-1, 1]; divide by full scale, or give int16")


# -- decoding and resampling


def decode(source, seconds=None):
    """Path or bytes of a sound file -> float32 (n,), mono, 16 kHz, finite; at most its first `seconds`. Any format that
    libsndfile reads, rate from 4 to 192 kHz, up to 8 channels. Raises Unreadable, also for a file cut off."""
    return np.concatenate([*stream(source, seconds)])


def stream(source, seconds=None):
    """`decode`, a minute at a time, so that a long file needs little memory: yields float32 (n,). Raises Unreadable."""
    import soundfile

    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as raw:
            if _cut(raw):
                raise Unreadable(CUT)
            raw.seek(0)
            with soundfile.SoundFile(raw) as file:
                rate = check_rate(file.samplerate)
                if file.frames < 1:
                    raise Unreadable("holds no samples")
                if file.channels > CHANNELS:
                    raise Unreadable(f"has {file.channels} channels, more than {CHANNELS}; mix them down")
                blocks = _blocks(file, min(file.frames, int(seconds * rate)) if seconds else file.frames)
                yield from blocks if rate == SAMPLE_RATE else _resampled(blocks, rate)
    except Unreadable:
        raise
    except OSError as e:
        raise Unreadable(f"not to be read: {e.strerror or e}") from None
    except (soundfile.SoundFileError, TypeError, ValueError, MemoryError) as e:  # TypeError: a name in .raw
        raise Unreadable(f"not audio that libsndfile reads ({getattr(e, 'error_string', e)})") from None


def _cut(raw):
    """Whether a file was cut off, of which libsndfile says nothing: the header of WAV and its kin promises more bytes
    than there are; an Ogg's last page must say that it is the last, and be whole."""
    start, size = raw.read(28), raw.seek(0, os.SEEK_END)
    if start[:4] in HEADERS:
        first, end, order, more = HEADERS[start[:4]]
        promised = int.from_bytes(start[first:end], order)
        more = int.from_bytes(start[4:8], order) if more is None else more  # of AU: where the samples begin
        return size - more < promised < (1 << 8 * (end - first)) - 9  # above: a stream's
    if start[:4] == b"OggS":
        raw.seek(max(0, size - (1 << 17)))  # a page has 64 KiB at most
        tail = raw.read()
        last = tail[tail.rfind(b"OggS") :]
        return len(last) < 27 or not last[5] & 4 or len(last) < 27 + last[26] + sum(last[27 : 27 + last[26]])
    return False


def _blocks(file, frames):
    """The next `frames` frames of an open file, mono, in blocks of a minute. Raises Unreadable."""
    while frames > 0:
        wanted = min(frames, BLOCK * file.samplerate)
        block = file.read(wanted, dtype="float32", always_2d=True)
        if len(block) < wanted:
            raise Unreadable(CUT)
        check_level(block)
        frames -= wanted
        yield block.mean(axis=1)


def check_rate(rate):
    """The rate as an int, where `resample` takes it. Raises Unreadable."""
    rate = rate.item() if getattr(rate, "shape", None) == () else rate  # a tensor or array of one number
    if isinstance(rate, Real) and 4000 <= rate <= 192_000 and rate == int(rate):
        if np.gcd(int(rate), SAMPLE_RATE) >= 5:  # the filters of other rates take gigabytes
            return int(rate)
    raise Unreadable(f"sample_rate is {rate!r:.60}; give a whole number of Hz, 4,000 to 192,000, that 5 or 8 divides")


def resample(wave, rate):
    """Float samples (n,) at `rate` Hz -> float32 (n',) at 16 kHz: torchaudio's windowed sinc filter. Raises Unreadable
    for a rate that `check_rate` refuses."""
    if (rate := check_rate(rate)) == SAMPLE_RATE:
        return wave
    blocks = (wave[i : i + BLOCK * rate] for i in range(0, len(wave), BLOCK * rate))
    return np.concatenate([NOTHING, *_resampled(blocks, rate)])


def _resampled(blocks, rate):
    """Blocks of a minute (the last may be shorter) at `rate` Hz -> the same at 16 kHz, without seams: a second of both
    neighbours goes with each, which is more than the filter's length."""
    import torch
    from torchaudio.functional import resample as convert

    before, block = NOTHING, next(blocks, None)
    for after in chain(blocks, [NOTHING]) if block is not None else ():
        piece = np.concatenate([before[-rate:], block, after[:rate]]).astype(np.float32, copy=False)
        piece = convert(torch.from_numpy(piece), rate, SAMPLE_RATE).numpy()
        start = SAMPLE_RATE if len(before) else 0
        yield piece[start : start + -(-len(block) * SAMPLE_RATE // rate)]
        before, block = block, after


# -- cutting, shifting, noise


def loudest_window(waves, size, dtype=np.float64):
    """Where the `size` samples of most energy begin: int (…,) for an array (…, n); the first such place of several.
    dtype is that of the energies. (The corpora were packed with float64, the paper's cut clips made with float32.)"""
    energy = np.cumsum(waves.astype(dtype) ** 2, axis=-1, dtype=np.float64).astype(dtype)
    energy = np.concatenate([np.zeros_like(energy[..., :1]), energy], -1)
    return np.argmax(energy[..., size:] - energy[..., : energy.shape[-1] - size], axis=-1)


def shift(waves, by):
    """A tensor (B, N), each wave `by` samples later, earlier where negative; zeros come in. by: int, or int64 (B,) on
    the CPU."""
    import torch

    by = torch.as_tensor(by).expand(len(waves))
    most, size = max(map(abs, by.tolist()), default=0), waves.shape[1]
    padded = torch.nn.functional.pad(waves, (most, most))
    starts = (most - by).to(waves.device)
    return padded.gather(1, starts[:, None] + torch.arange(size, device=waves.device))


def mix_at_snr(waves, noise, snr, where=None):
    """waves + noise, tensors (B, N), the noise scaled to be `snr` dB below each wave in mean power. snr: a number or
    float (B,). where: bool (B,), the waves to which noise is added; None means all."""
    ratio = waves.square().mean(1) / noise.square().mean(1).clamp_min(1e-12)
    gain = (ratio / 10 ** (snr / 10)).sqrt()
    gain = gain if where is None else gain * where
    return waves + gain[:, None] * noise


def coloured_noise(rng, n, exponent):
    """Gaussian noise, float64 (n,), of unit power that falls as 1 / f ** exponent above 50 Hz (1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum *= np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 50.0) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, n)
    return noise / noise.std()
