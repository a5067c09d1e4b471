"""What was measured: the main window, its mean step and the balance of the ranks."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from dpeval.record.codes import Steadiness, StopReason
from dpeval.util.frozen import Frozen


class Interval(Frozen):
    """A mean with its 95 % interval, in the unit of the series."""

    mean: float
    low: float
    high: float
    effective_samples: float
    """Effective sample size: the number of independent samples that the autocorrelated series is
    worth. It is the variance of the steps over that of their mean, averaged over the plausible
    autocorrelations."""

    @property
    def rel_half_width(self) -> float:
        """Half-width divided by the mean."""
        return (self.high - self.low) / 2 / self.mean if self.mean else float("inf")


class Window(Frozen):
    """The main window: the measured steps and the interval of their mean."""

    first: int
    """Index of the first measured step; the steps before it are warm-up."""
    steps: int
    """Number of measured steps."""
    steady: bool
    """Whether the step time is known to have stayed the same: ``steadiness`` is ``steady``."""
    stopped_by: StopReason
    step_s: Interval
    """Mean step time of the slowest rank, s."""
    rule: str
    """How the start of the steady state was found."""
    drift: float = 0.0
    """Change along the fitted line over the window, as a fraction of the mean."""
    steadiness: Steadiness = "unknown"
    """Whether the drift is small. Older records only have ``steady``, which is also true where
    drift could not be shown."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_record(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "steadiness" not in fields and "steady" in fields:
            return fields | {"steadiness": "steady" if fields["steady"] else "drifting"}
        return fields


class Reentry(Frozen):
    """The steps at the start of every turn that take longer than the rest."""

    steps: int = 0
    """Number of these steps, which are left out."""
    cost: float = 0.0
    """The fraction by which the first step of a turn takes longer than the others."""
    cost_half: float | None = None
    """Half-width of its 95 % interval; None: unknown, because too few turns have several steps."""


class Balance(Frozen):
    """How evenly the ranks are loaded."""

    value: float
    """Mean over max of the ranks' compute time: POP's load balance efficiency, in (0, 1]."""
    slowest_rank: int
    compute_s: list[float]
    """Mean compute time of a step, per rank; in earlier releases the median, waits for data
    included."""
