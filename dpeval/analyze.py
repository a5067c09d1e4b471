"""``python -m dpeval.analyze PATH…``: from records to curves and a recommendation."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""

    def load() -> Callable[[], int]:
        from dpeval.commands.analysis_command import run

        return lambda: run(arguments)

    return entry.start(load)


if __name__ == "__main__":
    sys.exit(main())
