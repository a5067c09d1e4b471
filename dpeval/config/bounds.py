"""Bounds of a key, declared where the key is."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def bounded(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with inclusive bounds `low`, `high`, an exclusive `above`, or choices."""
    metadata = {"low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata=metadata)
