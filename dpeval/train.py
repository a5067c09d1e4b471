"""``python -m dpeval.train``: train with data parallelism, measure it, write a record."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main() -> int:
    """The command line; returns the exit status."""
    return entry.start(_load)


def _load() -> Callable[[], int]:
    # Late: every rank imports this module as its __main__, and Hydra would cost it 0.3 s.
    from dpeval.commands.main import run_main
    from dpeval.commands.train_run import train

    return lambda: run_main(train)


if __name__ == "__main__":
    sys.exit(main())
