"""The paper's Mamba spotters, and Mamba-Light, our own: a front-end, Mamba blocks, and a mean over time.

All take the options of the mixer, too: d_state, d_conv, expand, …, scan_backend (see `Mamba`)."""

from functools import partial

from kwslib.models.layers import ConvFrontEnd, Head, LinearFrontEnd, SequenceKWS, StridedFrontEnd
from kwslib.models.mamba import Mamba, MambaBlock
from kwslib.models.registry import MODELS, register

mel, mfcc = (partial(register, features=kind, passes_to=Mamba) for kind in ("mel", "mfcc"))


@mel("mamba_mel_small", label="Mamba-Mel Small", short="Mel S")
@mel("mamba_mel_medium", label="Mamba-Mel Medium", short="Mel M", d_model=128, n_layers=10)
@mel("mamba_mel_large", label="Mamba-Mel Large", short="Mel L", d_model=192, n_layers=12)
@mel("mamba_mel_small_as_run", label="Mamba-Mel Small, as run", short="Mel S as run")
@mel("mamba_mel_medium_as_run", label="Mamba-Mel Medium, as run", short="Mel M as run", d_model=128, n_layers=10)
@mel("mamba_mel_large_as_run", label="Mamba-Mel Large, as run", short="Mel L as run", d_model=192, n_layers=12)
def mamba_mel(n_classes=35, d_model=64, n_layers=8, n_features=128, **mixer):
    """Mamba-Mel: convolutions on log-mel. 462,147 (small), 1,506,051 and 3,504,323 parameters at 35 classes.

    "as run" is the same network on the features that the paper's notebooks really computed; its recipe sets them."""
    frontend = ConvFrontEnd(d_model, n_features)
    return SequenceKWS(frontend, _blocks(d_model, n_layers, mixer), Head(d_model, n_classes))


@mfcc("mamba_mfcc_small", label="Mamba-MFCC Small", short="MFCC S")
@mfcc("mamba_mfcc_medium", label="Mamba-MFCC Medium", short="MFCC M", d_model=128, n_layers=10)
@mfcc("mamba_mfcc_large", label="Mamba-MFCC Large", short="MFCC L", d_model=192, n_layers=12)
def mamba_mfcc(n_classes=35, d_model=64, n_layers=8, n_features=40, **mixer):
    """Mamba-MFCC: a linear layer on cepstra. 268,259 (small), 1,183,651 and 3,053,411 parameters at 35 classes."""
    frontend = LinearFrontEnd(d_model, n_features)
    return SequenceKWS(frontend, _blocks(d_model, n_layers, mixer), Head(d_model, n_classes))


@mel("mamba_light", label="Mamba-Light", short="Light")
def mamba_light(n_classes=35, d_model=96, n_layers=5, n_features=64, **mixer):
    """Our own: a strided front-end, then blocks at 26 frames a second; reads 64 mel bands every 10 ms."""
    blocks = _blocks(d_model, n_layers, mixer)  # first: the order of random draws is part of the published weights
    return SequenceKWS(StridedFrontEnd(d_model, n_features), blocks, Head(d_model, n_classes))


def _blocks(d_model, n_layers, mixer):
    return [MambaBlock(d_model, max(0.02, 0.05 - 0.005 * i), **mixer) for i in range(n_layers)]


# The names in the paper's package
SIZES = ("small", "medium", "large")
mamba_mel_small, mamba_mel_medium, mamba_mel_large = (MODELS[f"mamba_mel_{size}"].make for size in SIZES)
mamba_mfcc_small, mamba_mfcc_medium, mamba_mfcc_large = (MODELS[f"mamba_mfcc_{size}"].make for size in SIZES)
