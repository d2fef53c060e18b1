"""The public names of kwslib, where each lives: read by editors, and by kwslib/__init__.py."""

from .checkpoint import pretrained as pretrained
from .data.augment import Augment as Augment, SpecMask as SpecMask
from .data.batches import (
    Batches as Batches,
    SpeechCommands as SpeechCommands,
    collate_image as collate_image,
    collate_seq as collate_seq,
)
from .data.corpus import Corpus as Corpus, load_corpus as load_corpus, pack as pack
from .data.features import Normalise as Normalise, WaveToSpec as WaveToSpec
from .data.tasks import Split as Split, select as select
from .io import KwsError as KwsError
from .models.cost import count_macs as count_macs, count_parameters as count_parameters
from .models.keyword_cnn import KeywordCNN as KeywordCNN
from .models.kwt import KWT as KWT
from .models.mamba import Mamba as Mamba
from .models.mobilenet import mobilenet_v2_kws as mobilenet_v2_kws
from .models.registry import MODELS as MODELS, build as build
from .models.retnet import RetNetKWS as RetNetKWS
from .models.spotters import (
    mamba_mel_large as mamba_mel_large,
    mamba_mel_medium as mamba_mel_medium,
    mamba_mel_small as mamba_mel_small,
    mamba_mfcc_large as mamba_mfcc_large,
    mamba_mfcc_medium as mamba_mfcc_medium,
    mamba_mfcc_small as mamba_mfcc_small,
)
from .scan import selective_scan as selective_scan
from .spotter import KeywordSpotter as KeywordSpotter, load as load
from .training.config import Config as Config, load_config as load_config
from .training.loop import train as train
