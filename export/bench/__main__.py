"""`python -m export.bench`."""

from export.bench.command import command

if __name__ == "__main__":
    command()
