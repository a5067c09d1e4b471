"""``python -m dpeval.train``: train with data parallelism, measure it, leave a record."""

from __future__ import annotations

import sys

from dpeval.commands.main import run_main
from dpeval.commands.train_run import train


def main() -> int:
    """The command line; returns the exit status."""
    return run_main(train)


if __name__ == "__main__":
    sys.exit(main())
