"""`python -m kwslib.benchmark …` is `kws bench …`."""

from kwslib.cli import bench
from kwslib.io import cli

if __name__ == "__main__":
    cli(bench)
