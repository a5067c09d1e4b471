"""``python -m dpeval.fit``: the largest per-device batch that fits, forecast and confirmed."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry

HELP = """\
usage: python -m dpeval.fit [KEY=VALUE ...]

Find the largest per-device batch that fits into memory. A forecast gives the first guess; real
steps in fresh processes confirm it and find the largest by bisection.

KEY=A,B lists make one case of every combination. Keys are those of dpeval.train; batch and scaling
have no effect, since every device gets the batch that is tried.

examples:
  python -m dpeval.fit model=resnet50 hardware.memory_gib=4
  python -m dpeval.fit model=densenet121,resnet50 hardware=gpu num_devices=1,2"""


def main() -> int:
    """The command line; returns the exit status."""
    if any(item in ("-h", "--help") for item in sys.argv[1:]):
        print(HELP)
        return 0
    return entry.start(_load)


def _load() -> Callable[[], int]:
    # Late: every rank imports this module as its __main__, see dpeval/train.py.
    from dpeval.commands.batch_search import run_fit
    from dpeval.commands.main import run_main

    return lambda: run_main(lambda: run_fit(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
