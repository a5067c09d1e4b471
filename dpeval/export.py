"""``python -m dpeval.export PATH --to TOOL``: records as runs of a tracking tool."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main() -> int:
    """The command line; returns the exit status."""
    return entry.start(_load)


def _load() -> Callable[[], int]:
    # Late: the working folder may have files of these names; see entry.start.
    from dpeval.commands.export_command import run

    return run


if __name__ == "__main__":
    sys.exit(main())
