"""``python -m dpeval.data``: prepare, verify, list and delete data from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main() -> int:
    """The command line; returns the exit status."""

    def load() -> Callable[[], int]:
        from dpeval.commands.data_command import run

        return run

    return entry.start(load)


if __name__ == "__main__":
    sys.exit(main())
