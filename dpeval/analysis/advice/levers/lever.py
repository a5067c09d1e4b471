"""A lever, and what the records say of the configuration that it would change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from dpeval.analysis.advice.commands import sweeping
from dpeval.analysis.advice.quantity import Quantity
from dpeval.analysis.frame.cohorts import fields_of
from dpeval.analysis.scaling.best_configuration import Choice
from dpeval.analysis.scaling.efficiency import SYNCHRONISATION, Factor, Waterfall

Of = Literal["throughput", "device-hours"]


@dataclass(frozen=True)
class Lever:
    """Something to change, and what that would bring."""

    kind: str
    """Which of the levers it is, for programs."""
    title: str
    reason: str
    """What in the records speaks for it."""
    gain: Quantity
    """Of throughput, or of device-hours saved, as a share. The interval holds what the records and
    the mechanism allow; it is no confidence interval where `is_measured` is False."""
    command: str
    """Measures the change beside what there is."""
    of: Of = "throughput"
    is_measured: bool = False
    """Whether the change itself was measured; else the gain is an estimate."""
    caution: str = ""
    """What else changes."""


@dataclass(frozen=True)
class Situation:
    """The recommended configuration, as its records show it."""

    row: Mapping[str, Any]
    """Of :func:`dpeval.analysis.scaling.speedup.points`."""
    points: pd.DataFrame
    """All measured configurations of its family."""
    pooled: pd.DataFrame
    """All configurations of its family, the failed ones included."""
    runs: pd.DataFrame
    """The runs of its family."""
    factors: Mapping[str, Factor] = field(default_factory=dict[str, Factor])
    """Factors of its efficiency that were measured on their own."""
    cheapest: Choice | None = None
    """The family's choice for the fewest device-hours."""

    @cached_property
    def own_runs(self) -> pd.DataFrame:
        """The measured runs of the configuration."""
        runs = self.runs
        return runs[
            runs["num_devices"].eq(self.devices)
            & runs["batch"].eq(self.batch)
            & runs["status"].eq("ok")
        ]

    @cached_property
    def asked(self) -> dict[str, str]:
        """Configuration keys of its runs by dotted name."""
        # A serial baseline has another strategy than the series that it serves.
        wrapped = self.own_runs if len(self.own_runs) else self.runs
        return fields_of(str(wrapped["task"].iloc[-1]))

    @cached_property
    def place(self) -> dict[str, str]:
        """Machine and software of its runs."""
        return fields_of(str(self.own_runs["place"].iloc[-1]))

    @property
    def devices(self) -> int:
        return int(self.row["num_devices"])

    @property
    def batch(self) -> int:
        return int(self.row["batch"])

    @property
    def is_gpu(self) -> bool:
        return bool(self.row["hardware"] == "gpu")

    @property
    def is_ddp(self) -> bool:
        return self.devices > 1 and self.asked.get("strategy.name") == "ddp"

    @property
    def is_own_loop(self) -> bool:
        """Whether dpeval's own loop trains, which obeys all configuration keys."""
        return self.asked.get("task.kind") != "script"

    def share(self, column: str) -> float:
        """A time of the step over the step; 0 where it is not known."""
        value = float(self.row[column]) / float(self.row["step_s"])
        return value if math.isfinite(value) and value > 0 else 0.0

    def mean(self, column: str) -> float:
        """Mean over the configuration's runs; NaN where it is not known."""
        return float(self.own_runs[column].mean())

    def half(self, column: str, otherwise: float) -> float:
        """A half-width of the row, or `otherwise` where it is not known."""
        value = float(self.row[column])
        return value if math.isfinite(value) else otherwise

    @property
    def synchronisation(self) -> Factor | None:
        """What gradient synchronisation leaves of the efficiency, where windows show it."""
        return self.factors.get(SYNCHRONISATION)

    def trying(self, changes: Mapping[str, str]) -> str:
        """The command that measures `changes` (the values to sweep over) for this configuration."""
        swept = {"num_devices": str(self.devices), "batch": str(self.batch), **changes}
        return sweeping(self.own_runs, swept, turns=True)


def separate(found: Waterfall | None) -> dict[str, Factor]:
    """The factors that were measured on their own, by name."""
    if found is None:
        return {}
    return {factor.parts[0]: factor for factor in found.factors if len(factor.parts) == 1}


def without(share: float) -> float:
    """The gain in throughput if `share` of a step were not there."""
    return share / (1 - min(share, 0.95))
