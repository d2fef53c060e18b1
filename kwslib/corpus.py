"""`python -m kwslib.corpus`: pack a corpus."""

from kwslib.data.corpus import main
from kwslib.io import cli

if __name__ == "__main__":
    cli(main)
