"""The trained spotter that a checkpoint makes: `kwslib.load(path).predict(wave_or_path, sample_rate)`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from kwslib.checkpoint import read_checkpoint
from kwslib.data.features import Normalise, WaveToSpec, to_float
from kwslib.io import CLIP, SAMPLE_RATE, KwsError
from kwslib.models.registry import MODELS, build


def load(checkpoint, device="cpu"):
    """KeywordSpotter from a checkpoint. Raises KwsError where weights and card are of different models."""
    weights, card = read_checkpoint(checkpoint)
    if card["model"] not in MODELS:
        raise KwsError(f"checkpoint {checkpoint} is of model {card['model']!r}, which this version of kwslib lacks")
    model = build(card["model"], len(card["labels"]))
    expected = model.state_dict()
    wrong = [
        k
        for k in {*weights, *expected}
        if k not in weights or k not in expected or weights[k].shape != expected[k].shape
    ]
    if wrong:
        raise KwsError(
            f"checkpoint {checkpoint} does not fit {card['model']} with {len(card['labels'])} labels "
            f"({len(wrong)} tensors differ, {sorted(wrong)[0]} among them); "
            "it belongs to another variant or label set"
        )
    model.load_state_dict(weights)
    return KeywordSpotter(model, card, device)


class KeywordSpotter:
    """A trained model with its features and labels; `predict` takes a recording of any rate and length."""

    def __init__(self, model, card, device="cpu"):
        self.card, self.labels, self.device = card, card["labels"], torch.device(device)
        self.model = model.eval().to(device)
        self.frontend = WaveToSpec(**card["features"]).to(device)
        self.normalise = Normalise(**card["normalisation"])

    @torch.no_grad()
    def logits(self, waves, samples=None):
        """Float waves (B, N) at 16 kHz, valid samples (B,) or None -> logits (B, labels)."""
        inputs = self.normalise(self.frontend(waves.to(self.device)))
        lengths = None if samples is None else self.frontend.frames(samples.to(self.device))
        return self.model(inputs, lengths).float()

    def all_logits(self, waves, samples=None, batch=128):
        """`logits` of any number of waves (n, N), float or int16, batch by batch -> (n, labels) on the CPU."""
        parts = []
        for rows in torch.arange(len(waves)).split(batch):
            wave = waves[rows] if waves.is_floating_point() else to_float(waves[rows])
            parts.append(self.logits(wave, None if samples is None else samples[rows]).cpu())
        return torch.cat(parts)

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
