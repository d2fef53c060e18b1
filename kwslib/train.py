"""`python -m kwslib.train …` is `kws train …`."""

from kwslib.cli import train
from kwslib.io import cli

if __name__ == "__main__":
    cli(train)
