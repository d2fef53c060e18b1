"""Our models beside the code that the paper trained: outputs, gradients, and weights after three steps of AdamW.

    python -m paper.benchmarks.parity --out results/parity.json

Both sides start from the same weights and see the same batch, in float64. The other side is the package's own code:
torchvision's MobileNetV2 with the paper's two replaced layers, MultiScaleRetention of yet-another-retnet 0.5.1 alone
and in the paper's block, mamba_ssm's `selective_scan_ref` in the Mamba block. Front-ends are compared with torchaudio's
transforms, in float32: they have no weights, and nothing is trained through them. yet-another-retnet is the extra
`parity`, mamba_ssm comes by `make peers`; a package that is not installed is recorded as such."""

import argparse
import copy
from importlib import import_module, metadata

import torch
import torch.nn.functional as F
from torch import nn

from kwslib.checkpoint import frontend_of
from kwslib.io import CLIP, SAMPLE_RATE, cli, write_json
from kwslib.models import build
from kwslib.models.mamba import MambaBlock
from kwslib.models.retnet import RetNetBlock
from kwslib.training.config import load_config
from paper.benchmarks.scan_peers import mamba_ssm_reference

STEPS, LR, WEIGHT_DECAY = 3, 5e-4, 1.8e-4  # the paper's rate and decay for RetNet and Mamba-Mel Small


def mobilenet():
    """(ours, theirs, inputs), as every case gives them."""
    vision = import_module("torchvision.models")
    theirs = vision.mobilenet_v2(weights=None, width_mult=0.75)
    theirs.features[0][0] = nn.Conv2d(1, 24, kernel_size=3, stride=2, padding=1, bias=False)
    theirs.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 36))
    ours = build("mobilenet_v2_075", 36)
    return ours, theirs, (torch.randn(8, 1, 128, 126, dtype=torch.float64),)


def retention():
    msr = import_module("yet_another_retnet.retention").MultiScaleRetention
    ours, theirs = RetNetBlock(128, 8, 0.0).retention, OutputOnly(msr(128, 8, relative_position=False))
    return ours, theirs, tuple(torch.randn(3, 4, 63, 128, dtype=torch.float64))


def retnet_block():
    msr = import_module("yet_another_retnet.retention").MultiScaleRetention
    ours = RetNetBlock(128, 8, 0.02)
    theirs = PublishedRetNetBlock(copy.deepcopy(ours), OutputOnly(msr(128, 8, relative_position=False)))
    return ours, theirs, (torch.randn(4, 63, 128, dtype=torch.float64),)


def mamba_block():
    ours, scan = MambaBlock(64, 0.05), mamba_ssm_reference({}).func
    return ours, PublishedMambaBlock(copy.deepcopy(ours), scan), (torch.randn(4, 63, 64, dtype=torch.float64),)


class OutputOnly(nn.Module):
    """The other package's retention, without the weights that it returns beside its output."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, q, k, v):
        return self.module(q, k, v)[0]


class PublishedRetNetBlock(nn.Module):
    """The paper's block, around a given retention: ours only lends its layers."""

    def __init__(self, block, retention):
        super().__init__()
        block.retention = retention
        self.block = block

    def forward(self, x):
        b = self.block
        u = F.group_norm(x.transpose(1, 2), 8, b.norm1.weight, b.norm1.bias).transpose(1, 2)
        y = b.retention(F.normalize(b.q(u), p=2, dim=-1), F.normalize(b.k(u), p=2, dim=-1), b.v(u))
        x = x + b.dropout(b.out(y))
        return x + b.ffn(F.group_norm(x.transpose(1, 2), 8, b.norm2.weight, b.norm2.bias).transpose(1, 2))


class PublishedMambaBlock(nn.Module):
    """mamba_ssm's slow path (convolution, then the reference scan): ours only lends its layers."""

    def __init__(self, block, scan):
        super().__init__()
        self.block, self.scan = block, scan

    def forward(self, x):
        m, length = self.block.mixer, x.shape[1]
        u, z = m.in_proj(self.block.norm(x)).transpose(1, 2).chunk(2, dim=1)  # (B, d, T)
        u = F.silu(m.conv1d(u)[..., :length])
        dt, B, C = m.x_proj(u.transpose(1, 2)).split([m.dt_rank, m.d_state, m.d_state], dim=-1)
        dt, B, C = (dt @ m.dt_proj.weight.T).transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2)
        A = -torch.exp(m.A_log.float())
        y = self.scan(u, dt, A, B, C, m.D.float(), z=z, delta_bias=m.dt_proj.bias.float(), delta_softplus=True)
        return x + self.block.dropout(m.out_proj(y.transpose(1, 2)))


CASES = {  # name: (package, function)
    "mobilenet_v2_075": ("torchvision", mobilenet),
    "retention": ("yet-another-retnet", retention),
    "retnet block": ("yet-another-retnet", retnet_block),
    "mamba block": ("mamba-ssm", mamba_block),
}
FRONT_ENDS = ("mamba_mel_small_as_run", "mamba_mel_small", "mobilenet_v2_075_as_run", "mamba_mfcc_small")  # recipes


def front_end(recipe):
    """{output: largest difference} of a recipe's features (dB, or their cepstra) from torchaudio's, over four clips of
    noise, the second half below the floor of 80 dB."""
    transforms, config = import_module("torchaudio.transforms"), load_config(recipe)
    ours, waves = frontend_of(config), 0.1 * torch.randn(4, CLIP)
    waves[:, CLIP // 2 :] *= 1e-6
    options = dict(n_fft=ours.n_fft, win_length=ours.win_length, hop_length=ours.hop_length, n_mels=config.n_mels)
    options |= dict(center=ours.center, pad_mode=ours.pad_mode)
    if ours.kind == "mfcc":
        theirs = transforms.MFCC(SAMPLE_RATE, config.n_mfcc, melkwargs=options)
    else:
        theirs = nn.Sequential(transforms.MelSpectrogram(SAMPLE_RATE, **options), transforms.AmplitudeToDB(top_db=80))
    one_by_one = [theirs(wave).T for wave in waves]  # a batch would share one maximum
    return {"output": largest(ours(waves), one_by_one)}


def largest(ours, theirs):
    """Largest absolute difference of two lists of tensors."""
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def compare(ours, theirs, inputs):
    """Largest differences of output, gradients of inputs and weights, and weights and statistics after three steps.

    Raises ValueError or RuntimeError where the two sides' weights do not fit each other, in number and shape."""
    ours, theirs = ours.double().train(), theirs.double().train()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    sides = [trained(model, inputs) for model in (ours, theirs)]
    return {key: largest(sides[0][key], sides[1][key]) for key in sides[0]}


def trained(model, inputs):
    """{output, gradients, weights}: tensors of the first step, and of the model after the last."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        torch.manual_seed(step)  # dropout draws the same on both sides
        inputs = [x.detach().clone().requires_grad_() for x in inputs]
        output = model(*inputs)
        optimiser.zero_grad()
        output.square().mean().backward()
        if step == 0:
            gradients = [p.grad.clone() for p in (*inputs, *model.parameters())]
            first = {"output": [output.detach()], "gradients": gradients}
        optimiser.step()
    return first | {"weights": [v.double() for v in model.state_dict().values()]}


def parity():
    """{dtype, steps, versions, largest differences: {case: differences, or "not installed"}}."""
    cases, versions = {}, {"torch": torch.__version__}
    for name, (package, make) in CASES.items():
        try:
            torch.manual_seed(0)
            sides = make()
            versions[package] = metadata.version(package)
        except ImportError:
            cases[name], versions[package] = "not installed", None
        else:
            cases[name] = compare(*sides)
    versions["torchaudio"] = metadata.version("torchaudio")
    for recipe in FRONT_ENDS:
        torch.manual_seed(0)
        cases[f"front-end of {recipe}"] = front_end(recipe)
    return {"dtype": "float64; front-ends float32", "steps": STEPS, "versions": versions, "largest differences": cases}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON file to write")
    a = parser.parse_args(argv)
    found = parity()
    write_json(a.out, found)
    for name, differences in found["largest differences"].items():
        print(f"{name}: {differences}")


if __name__ == "__main__":
    cli(main)
