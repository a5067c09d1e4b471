"""``python -m dpeval.input_bench``: how many images per second the input alone can deliver to one
rank.

    python -m dpeval.input_bench [--seconds 3] [--out outputs/input_bench] [KEY=VALUE …]

A rank that computes nothing takes batches from every loader and puts them on the device. A run
that trains faster than this waits for its data. As in a run, the rank is pinned to the first
allowed core, and workers read on the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main() -> int:
    """The command line; returns the exit status."""
    return entry.start(_load)


def _load() -> Callable[[], int]:
    # Late: every measuring process imports this module anew as its __main__, and the working
    # folder may have files of these names; see entry.start.
    import argparse
    from pathlib import Path

    from dpeval.commands.loader_bench import bench
    from dpeval.commands.main import run_main

    parser = argparse.ArgumentParser(
        prog="python -m dpeval.input_bench",
        description="Measure how fast each loader can feed one rank on this machine. "
        "A run that trains faster than this waits for its data.",
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="how long to measure each case (default: 3)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/input_bench"),
        help="output folder (default: outputs/input_bench)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for dpeval.train, for example dataset=imagenette_160",
    )
    given = parser.parse_args()
    return lambda: run_main(lambda: bench(given.overrides, given.seconds, given.out))


if __name__ == "__main__":
    sys.exit(main())
