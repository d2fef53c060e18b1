"""One way to decode, resample and cut sound."""

from __future__ import annotations

import io

import numpy as np

from kwslib.io import SAMPLE_RATE, KwsError


class Unreadable(KwsError):
    """One file cannot be used; the message says why."""


def to_int16(wave):
    """Float samples in [-1, 1) -> (int16 samples, whether any had to be clipped). Exact for 16-bit input."""
    samples = np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)
    return samples, bool(np.abs(wave).max(initial=0) > 1)


def resample(wave, rate):
    """Float samples (n,) at `rate` Hz -> float32 (n',) at 16 kHz."""
    if rate == SAMPLE_RATE:
        return wave
    if not 4000 <= rate <= 192_000 or SAMPLE_RATE // np.gcd(rate, SAMPLE_RATE) > 3200:
        raise Unreadable(f"its rate of {rate} Hz cannot be resampled to {SAMPLE_RATE} Hz")
    import torch  # workers that need no resampling start without it
    from torchaudio.functional import resample as convert

    torch.set_num_threads(1)
    return convert(torch.from_numpy(np.ascontiguousarray(wave, np.float32)), rate, SAMPLE_RATE).numpy()


def decode_audio(data, seconds=None):
    """Bytes of a sound file -> float32 (n,), mono, 16 kHz; at most its first `seconds`. Raises Unreadable."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as f:
            frames = min(f.frames, int(seconds * f.samplerate)) if seconds else f.frames
            wave, rate = f.read(frames, dtype="float32", always_2d=True).mean(axis=1), f.samplerate
    except (soundfile.SoundFileError, ValueError, MemoryError) as e:
        raise Unreadable(f"not audio that libsndfile reads ({getattr(e, 'error_string', e)})") from None
    # libsndfile is silent about a file that was cut off in WAV (whose header promises more bytes than
    # there are) and in Ogg (whose last page must say that it is the last, and be whole).
    cut = len(wave) < frames
    if data[:4] == b"RIFF":
        cut |= len(data) - 8 < int.from_bytes(data[4:8], "little") < 0xFFFFFFF7  # above: a stream's
    elif data[:4] == b"OggS":
        last = data[data.rfind(b"OggS") :]
        cut |= len(last) < 27 or not last[5] & 4 or len(last) < 27 + last[26] + sum(last[27 : 27 + last[26]])
    if cut:
        raise Unreadable("truncated: it ends before its header says")
    if not len(wave):
        raise Unreadable("holds no samples")
    if not np.isfinite(wave).all():
        raise Unreadable("holds NaN or infinite samples")
    return resample(wave, rate)
