"""The trained spotter that a checkpoint makes: `kwslib.load(path).predict(wave_or_path, sample_rate)`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from kwslib.checkpoint import TrainedModel, load_model
from kwslib.io import CLIP, SAMPLE_RATE, KwsError


def load(path, device="cpu"):
    """KeywordSpotter of a checkpoint: its file, its folder, or the name of one of `kwslib.pretrained()`."""
    return load_model(path, device, KeywordSpotter)


class KeywordSpotter(TrainedModel):
    """A trained model that answers for a recording of any rate and length: `predict`."""

    def predict(self, wave, sample_rate=None):
        """[(label, probability), …], most probable first.

        wave: path of an audio file, or samples (N,), (channels, N) or (N, channels) with their sample_rate in Hz.
        A recording of less than a second is padded, and the padding left out of the mean; of a longer one,
        the surest of the one-second windows, a quarter of a second apart, answers.
        """
        wave = self.one_channel(wave, sample_rate)
        last = max(len(wave) - CLIP, 0)
        starts = [*range(0, last, SAMPLE_RATE // 4), last]  # the last window ends where the recording does
        windows = torch.stack([F.pad(w, (0, CLIP - len(w))) for w in (wave[s : s + CLIP] for s in starts)])
        samples = torch.tensor([min(len(wave) - s, CLIP) for s in starts])
        p = torch.cat([self.logits(w, s).softmax(1).cpu() for w, s in zip(windows.split(64), samples.split(64))])
        best = p[p.max(1).values.argmax()]
        order = best.argsort(descending=True, stable=True)
        return [(self.labels[i], float(best[i])) for i in order]

    @staticmethod
    def one_channel(wave, sample_rate):
        """Path or samples -> float32 (N,) at 16 kHz. Raises KwsError for what is not sound."""
        import torchaudio.functional as AF

        name = "the wave"
        if isinstance(wave, (str, Path)):
            import soundfile

            name = str(wave)
            if not Path(wave).is_file():
                raise KwsError(f"{wave} does not exist; give the path of an audio file")
            try:
                wave, sample_rate = soundfile.read(str(wave), dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, TypeError) as e:  # TypeError: a name ending in .raw
                reason = getattr(e, "error_string", e)
                raise KwsError(f"{name} cannot be read as audio ({reason}); give wav, flac, ogg or mp3") from None
            wave = wave.T
        elif sample_rate is None or sample_rate < 1:
            raise KwsError(f"sample_rate is {sample_rate}; predict needs the rate of the samples it is given, in Hz")
        wave = torch.as_tensor(wave)
        if not wave.is_floating_point():
            wave = wave.float() / torch.iinfo(wave.dtype).max
        if wave.dim() > 2:
            raise KwsError(
                f"{name} has shape {tuple(wave.shape)}; give (samples,), (channels, samples) or (samples, channels)"
            )
        if wave.dim() == 2 and wave.numel():  # the longer side is time: soundfile puts channels last, torchaudio first
            wave = wave.float().mean(0 if wave.shape[0] <= wave.shape[1] else 1)
        wave = wave.float().flatten()
        if not len(wave):
            raise KwsError(f"{name} holds no samples; give a recording that is not empty")
        if not wave.isfinite().all():
            raise KwsError(f"{name} holds NaN or infinite samples; record or convert it again")
        return AF.resample(wave, int(sample_rate), SAMPLE_RATE) if sample_rate != SAMPLE_RATE else wave
