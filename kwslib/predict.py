"""`python -m kwslib.predict`: name the keyword in sound files."""

from kwslib.cli import main
from kwslib.io import cli

if __name__ == "__main__":
    cli(main)
