"""``python -m dpeval.status <sweep>``: the status of every run of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main() -> int:
    """The command line; returns the exit status."""
    return entry.start(_load)


def _load() -> Callable[[], int]:
    # Late, also argparse: the working folder may have files of these names; see entry.start.
    import argparse
    import time
    from pathlib import Path

    from dpeval.commands.main import run_main
    from dpeval.commands.sweep_status import show

    parser = argparse.ArgumentParser(
        prog="python -m dpeval.status", description="Show the status of every run of a sweep."
    )
    parser.add_argument("sweep", type=Path, help="folder of a sweep, outputs/<study>/<time>")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=5.0,
        metavar="SECONDS",
        help="show it again every SECONDS (default: 5) until all runs have ended",
    )
    asked = parser.parse_args()

    def command() -> None:
        while not show(asked.sweep) and asked.watch:
            time.sleep(max(1.0, asked.watch))

    return lambda: run_main(command)


if __name__ == "__main__":
    sys.exit(main())
