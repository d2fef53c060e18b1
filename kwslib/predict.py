"""`python -m kwslib.predict …` is `kws predict …`."""

from kwslib.cli import predict
from kwslib.io import cli

if __name__ == "__main__":
    cli(predict)
