"""`python -m export.bench`."""

from checkpoints.errors import run
from export.bench.command import main

if __name__ == "__main__":
    run(main)
