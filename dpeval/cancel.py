"""``python -m dpeval.cancel <sweep>``: end a sweep's jobs, and only them."""

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
    from pathlib import Path

    from dpeval.commands.main import run_main
    from dpeval.launchers.tracking import manifest as manifests
    from dpeval.launchers.tracking.tracker import tracker
    from dpeval.launchers.tracking.wait import cancel

    parser = argparse.ArgumentParser(
        prog="python -m dpeval.cancel", description="End the jobs of a sweep, and no others."
    )
    parser.add_argument("sweep", type=Path, help="folder of a sweep, outputs/<study>/<time>")
    asked = parser.parse_args()

    def command() -> None:
        manifest = manifests.read(asked.sweep)
        print(cancel(manifest, asked.sweep, tracker(manifest)).words())

    return lambda: run_main(command)


if __name__ == "__main__":
    sys.exit(main())
