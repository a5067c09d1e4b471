"""``python -m dpeval.fit``: the largest per-device batch that fits, forecast and confirmed.

    python -m dpeval.fit model=densenet121,resnet50 hardware=gpu num_devices=1,2

Every combination of the listed values is one case. The forecast gives a first batch; real steps in
fresh processes then find the largest by bisection, and every try improves the next guess. ``batch``
and ``scaling`` have no effect: every device gets the batch that is tried."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpeval.util import entry


def main() -> int:
    """The command line; returns the exit status."""
    if any(item in ("-h", "--help") for item in sys.argv[1:]):
        print(__doc__)
        return 0
    return entry.start(_load)


def _load() -> Callable[[], int]:
    # Late: every rank imports this module as its __main__, see dpeval/train.py.
    from dpeval.commands.batch_search import run_fit
    from dpeval.commands.main import run_main

    return lambda: run_main(lambda: run_fit(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
