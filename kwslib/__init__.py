"""kwslib: keyword spotting with Mamba, from recordings to a trained model and its test accuracy.

Data flows one way: corpus -> waveforms -> features -> model -> metrics -> result files. The public names are listed in
__init__.pyi and imported when first used, so that `import kwslib` is quick and needs only what is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
