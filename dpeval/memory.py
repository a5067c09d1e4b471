"""How much memory one rank will need, and how much there is."""

from __future__ import annotations

from dpeval.schema import Frozen


class Forecast(Frozen):
    """Forecast peak memory of the fullest rank, in bytes, by part."""

    total_bytes: int
    parts: dict[str, int]
    """parameters, gradients, optimizer, buckets, activations, input, transient, allowance."""
    source: str
    """``model`` (counted on the meta device) or ``fit`` (a line through measured peaks)."""


class Budget(Frozen):
    """Memory that one rank may use, in bytes, and who sets it."""

    bytes: int
    source: str
