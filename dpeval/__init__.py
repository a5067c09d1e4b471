"""dpeval: measure, explain and predict data-parallel training."""

from __future__ import annotations

__version__ = "0.1.0"
