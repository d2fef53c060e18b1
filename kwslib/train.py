"""`python -m kwslib.train`: train one model."""

from kwslib.io import cli
from kwslib.training.loop import main

if __name__ == "__main__":
    cli(main)
