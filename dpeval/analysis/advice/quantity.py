"""Values with their intervals as people read them: ``2,310 img/s (2,240–2,390)``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpeval.util.display.ranges import decimals_of, number, percent, percents

NORMAL = 1.96
"""Standard errors from an estimate to each end of its 95 % interval, where the error is known."""


@dataclass(frozen=True)
class Quantity:
    """A value with its 95 % interval; NaN: not known."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @staticmethod
    def throughput(row: pd.Series[Any] | Mapping[str, Any]) -> Quantity:
        """That of a measured configuration, in samples per second."""
        return Quantity(*(float(row[end]) for end in ("img_per_s", "low", "high")))

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known and apart."""
        return math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high

    def text(self, unit: str = "") -> str:
        """``2,310 img/s (2,240–2,390)``, to three significant digits."""
        if not self.is_known:
            return "not measured"
        places = decimals_of(self.value)
        shown = f"{number(self.value, places)}{f' {unit}' * bool(unit)}"
        if not self.has_interval:
            return shown
        return f"{shown} ({number(self.low, places)}–{number(self.high, places)})"

    def percent(self) -> str:
        """``12 % (8–16 %)``."""
        if not self.is_known:
            return "not measured"
        if not self.has_interval:
            return percent(self.value)
        return f"{percent(self.value)} ({percents(self.low, self.high)})"
