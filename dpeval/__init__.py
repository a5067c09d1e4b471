"""dpeval: measure, explain and predict data-parallel training.

A notebook needs seven functions; ``help(dpeval.read)`` shows an example of each:

- :func:`read`: records to a frame of runs
- :func:`columns`: what its columns mean
- :func:`scaling`: throughput, speedup and efficiency per configuration
- :func:`efficiency`: where the efficiency goes
- :func:`best`: the best configuration for an objective
- :func:`compare`: one sweep against another
- :func:`plot`: a figure of the report

A training script needs one class:

- :class:`Meter`: measures its loop where dpeval runs it, and does nothing elsewhere

A function that makes a training for dpeval's own loop needs two:

- :class:`Rank`: the rank that it is called for
- :class:`Training`: what it returns
"""

from __future__ import annotations

import importlib

from dpeval.util.version import __version__ as __version__

__all__ = [
    "Meter", "Rank", "Training", "best", "columns", "compare", "efficiency", "plot", "read",
    "scaling",
]  # fmt: skip
_PACKAGES = {"Meter": "dpeval.meter", "Rank": "dpeval.components", "Training": "dpeval.components"}
"""Where names that need torch are; the others are of the analysis."""


def __getattr__(name: str) -> object:
    # Late: importing pandas and matplotlib takes a second, which ranks and commands should not pay.
    if name in __all__:
        package = _PACKAGES.get(name, "dpeval.analysis.api")
        return getattr(importlib.import_module(package), name)
    raise AttributeError(f"module 'dpeval' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
