"""`python -m kwslib.evaluate`: read the test split with a trained model."""

from kwslib.evaluation import main
from kwslib.io import cli

if __name__ == "__main__":
    cli(main)
