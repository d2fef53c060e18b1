"""`python -m kwslib.corpus …` is `kws pack …`."""

from kwslib.cli import pack
from kwslib.io import cli

if __name__ == "__main__":
    cli(pack)
