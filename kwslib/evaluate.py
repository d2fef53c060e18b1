"""`python -m kwslib.evaluate …` is `kws test …`."""

from kwslib.cli import test
from kwslib.io import cli

if __name__ == "__main__":
    cli(test)
