"""When the steady state begins, when to stop, how sure a mean is: pure functions of series."""

from __future__ import annotations

from typing import Literal

from dpeval.schema import Frozen

StopReason = Literal["precision", "time_limit", "max_steps", "interrupted"]


class Interval(Frozen):
    """A mean with its 95 % interval; the unit is the series'."""

    mean: float
    low: float
    high: float
    effective_samples: float
    """How many independent samples the autocorrelated series is worth."""

    @property
    def rel_half_width(self) -> float:
        """Half-width over mean."""
        return (self.high - self.low) / 2 / self.mean


class Window(Frozen):
    """The main window: which steps were measured and how sure their mean is."""

    first: int
    """Index of the first measured step; the steps before it are warm-up."""
    steps: int
    """Number of measured steps."""
    steady: bool
    stopped_by: StopReason
    step_s: Interval
    """Mean step time of the slowest rank, s."""
    rule: str
    """How the beginning of the steady state was found."""
