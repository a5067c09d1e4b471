"""The best configuration for an objective that the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.pooling.run_spread import student
from dpeval.errors import ConfigError
from dpeval.stats.best import compared_with_best
from dpeval.util.arrays import Floats

FAMILY = ["series", "hardware", "scaling"]
"""Configurations among which one is chosen."""


@dataclass(frozen=True)
class Objective:
    """What counts as best."""

    name: str
    description: str
    unit: str
    """For samples that are images."""
    highest: bool


THROUGHPUT = Objective("throughput", "highest throughput", "img/s", highest=True)
DEVICE_SECONDS = Objective("device_seconds", "fewest device-seconds per image", "device·s/img",
                           highest=False)  # fmt: skip
ENERGY = Objective("energy", "lowest energy per image", "J/img", highest=False)
EFFICIENT = Objective("efficient", "highest throughput above an efficiency floor",
                      "img/s", highest=True)  # fmt: skip
OBJECTIVES = {item.name: item for item in (THROUGHPUT, DEVICE_SECONDS, ENERGY, EFFICIENT)}
MIN_EFFICIENCY = 0.8
"""Default floor of ``efficient``."""


@dataclass(frozen=True)
class Candidate:
    """A configuration, its value and its rank among others; ends of intervals are NaN if
    unknown."""

    num_devices: int
    batch: int
    value: float
    low: float
    high: float
    efficiency: float
    efficiency_low: float
    efficiency_high: float
    """Parallel efficiency against one device and its 95 % interval; NaN if the batch was not
    measured on one device."""
    could_be_best: bool = True
    """Whether this could be the best of all, with 95 % confidence."""
    behind: float = math.nan
    """The most it can be behind the best, with 95 % confidence, as a share of the best's value; NaN
    if unknown."""


@dataclass(frozen=True)
class Choice:
    """The best of a family, or of one batch of it, for an objective."""

    key: dict[str, Any]
    batch: int | None
    """None: over all batches."""
    objective: Objective
    best: Candidate | None
    """The one with the best value; None if no configuration qualifies (see `why_not`)."""
    others: list[Candidate]
    """All others that qualify, best value first."""
    why_not: str = ""
    floor: float | None = None
    """The lowest parallel efficiency considered; None: any."""
    doubtful: list[Candidate] = field(default_factory=list["Candidate"])
    """Those with a better value than the best that may or may not reach the floor of efficiency: it
    is unknown, or not settled with 95 % confidence."""
    sample: str = "img"
    """What a sample is in this family: img, tokens, …"""

    @property
    def unit(self) -> str:
        """The unit of its value."""
        return self.objective.unit.replace("img", self.sample)

    @property
    def description(self) -> str:
        """What "best" means here."""
        words = self.objective.description
        return (
            words
            if self.sample == "img"
            else words.replace("per image", f"per {self.sample.removesuffix('s')}")
        )

    @property
    def able(self) -> list[Candidate]:
        """All that could be the best, best value first."""
        return [one for one in (self.best, *self.others) if one is not None and one.could_be_best]

    @property
    def ties(self) -> list[Candidate]:
        """The others that could be the best as well."""
        return [one for one in self.others if one.could_be_best]


def choose(
    measured: pd.DataFrame, objective: Objective, min_efficiency: float | None = None
) -> list[Choice]:
    """The best configuration of every family, over all batches and then for each.

    Multiple comparisons with the best (:func:`~dpeval.stats.best.compared_with_best`) on the
    logarithm give the configurations that could be the best, and how far each can be behind.
    Configurations of one batch that took turns with its baseline are compared by their ratios to
    it, in which the drift of the machine cancels. Others count as independent, with the spread
    between runs.

    Args:
        measured: :func:`dpeval.analysis.scaling.speedup.points`.
        objective: one of :data:`OBJECTIVES`.
        min_efficiency: lowest parallel efficiency to consider; default: none, or
            :data:`MIN_EFFICIENCY` for ``efficient``. The lower end of a configuration's interval
            must reach it.

    Raises:
        ConfigError: `min_efficiency` is not in [0, 1].
    """
    floor = min_efficiency
    if floor is not None and not 0 <= floor <= 1:
        raise ConfigError(
            f"a parallel efficiency is between 0 and 1, not {floor:.4g}; give 0.8 for 80 %"
        )
    if floor is None and objective is EFFICIENT:
        floor = MIN_EFFICIENCY
    found = []
    if measured.empty:
        return []
    for key, group in measured.groupby(FAMILY, dropna=False, sort=True):
        named = dict(zip(FAMILY, key, strict=True))
        found.append(_choose(group, named, None, objective, floor))
        if group["batch"].nunique() > 1:
            found += [
                _choose(part, named, int(batch), objective, floor)
                for batch, part in group.groupby("batch", sort=True)
            ]
    return found


def _choose(
    group: pd.DataFrame,
    key: dict[str, Any],
    batch: int | None,
    objective: Objective,
    floor: float | None,
) -> Choice:
    rows = [row for row in group.to_dict("records") if _score(row, objective)[0] > 0]
    sample = str(group["unit"].iloc[0])
    if not rows:
        return Choice(key, batch, objective, None, [], "no energy was recorded", sample=sample)
    sign = -1 if objective.highest else 1

    def order(one: Candidate) -> tuple[float, int, int]:
        return sign * one.value, one.num_devices, one.batch

    open_: list[Candidate] = []
    if floor:
        reaching = [row for row in rows if _efficiency(row)[1] >= floor]
        # Also where it is unknown: NaN is neither.
        left = [r for r in rows if not (_efficiency(r)[1] >= floor or _efficiency(r)[2] < floor)]
        open_ = sorted((_candidate(row, objective) for row in left), key=order)
        if not reaching:
            why_not = _none_reaches(floor, open_)
            return Choice(key, batch, objective, None, [], why_not, floor, open_, sample)
        rows = reaching
    able = _candidates(rows, objective)
    better = [one for one in open_ if sign * one.value < sign * able[0].value]
    return Choice(key, batch, objective, able[0], able[1:], "", floor, better, sample)


def _none_reaches(floor: float, doubtful: list[Candidate]) -> str:
    if not doubtful:
        return f"none reaches {floor:.0%} efficiency"
    if all(math.isnan(one.efficiency) for one in doubtful):
        return f"there is no run on one device to measure {floor:.0%} efficiency against"
    return f"none certainly reaches {floor:.0%} efficiency"


def _candidates(rows: list[dict[Any, Any]], objective: Objective) -> list[Candidate]:
    """`rows` as candidates, the best first."""
    sign = 1 if objective.highest else -1
    logs, errors, freedom = _compared(rows, objective)
    standing = compared_with_best(logs, errors, freedom)
    made = [
        replace(
            _candidate(row, objective),
            could_be_best=could,
            behind=abs(math.expm1(sign * low)) if math.isfinite(low) else math.nan,
        )
        for row, could, low in zip(rows, standing.could_be_best, standing.low.tolist(), strict=True)
    ]
    # Among equals, fewer devices: they are cheaper.
    order = sorted(range(len(made)), key=lambda i: (-logs[i], made[i].num_devices, made[i].batch))
    return [made[index] for index in order]


def _candidate(row: dict[Any, Any], objective: Objective) -> Candidate:
    scores = _score(row, objective)
    return Candidate(int(row["num_devices"]), int(row["batch"]), *scores, *_efficiency(row))


def _efficiency(row: dict[Any, Any]) -> tuple[float, float, float]:
    """Parallel efficiency and its interval; NaN if the baseline is not one device."""
    if row["baseline_devices"] != 1:
        return math.nan, math.nan, math.nan
    return row["efficiency"], row["efficiency_low"], row["efficiency_high"]


def _compared(rows: list[dict[Any, Any]], objective: Objective) -> tuple[Floats, Floats, float]:
    """Logarithms to compare (the highest is the best), their errors and degrees of freedom."""

    def column(name: str) -> Floats:
        return np.array([row[name] for row in rows], dtype=float)

    sign = 1 if objective.highest else -1
    if objective is not ENERGY and are_paired(rows):
        logs = np.log(column("speedup"))
        if objective is DEVICE_SECONDS:
            logs = logs - np.log(column("num_devices"))
        return logs, ratio_errors(column("speedup_low"), column("speedup_high")), math.inf
    logs = sign * np.log([_score(row, objective)[0] for row in rows])
    names = ("error_share", "spread_freedom")
    if objective is ENERGY:
        names = ("energy_error_share", "energy_freedom")
    # An assumed spread (NaN) counts as known.
    freedom = float(np.nan_to_num(column(names[1]), nan=np.inf).min())
    return logs, column(names[0]), freedom


def are_paired(rows: Sequence[Mapping[Any, Any]]) -> bool:
    """Whether all rows have one batch and took turns with its baseline, or are that baseline."""
    others = [row for row in rows if row["num_devices"] != row["baseline_devices"]]
    return (
        len({row["batch"] for row in rows}) == 1
        and len(rows) - len(others) <= 1
        and len(others) > 0
        and all(row["is_paired"] for row in others)
    )


def ratio_errors(low: Floats, high: Floats) -> Floats:
    """Standard errors of the logarithms of ratios, from their 95 % intervals."""
    return np.asarray(np.log(high / low) / 2 / student(math.inf))


def could_be_fastest(points: pd.DataFrame) -> list[bool]:
    """Which rows (:func:`~dpeval.analysis.scaling.speedup.points`) could have the highest
    throughput."""
    return compared_with_best(*_compared(points.to_dict("records"), THROUGHPUT)).could_be_best


def _score(row: dict[Any, Any], objective: Objective) -> tuple[float, float, float]:
    """The value that `objective` compares, and the ends of its interval."""
    rate, low, high = (float(row[name]) for name in ("img_per_s", "low", "high"))
    devices = int(row["num_devices"])
    if objective is DEVICE_SECONDS:
        return devices / rate, devices / high, devices / low
    if objective is ENERGY:
        return row["energy_j_per_img"], row["energy_low"], row["energy_high"]
    return rate, low, high


def table(choices: list[Choice]) -> pd.DataFrame:
    """One row per choice: :data:`FAMILY`, its best, `ties` (that could be the best, too),
    `doubtful` (that would be better, but may miss the floor of efficiency) and `why_not`."""
    columns = [
        *FAMILY, "num_devices", "batch", "value", "low", "high", "unit", "efficiency", "behind",
        "ties", "doubtful", "why_not",
    ]  # fmt: skip
    rows = [
        {
            **one.key,
            **(vars(one.best) if one.best is not None else {"batch": one.batch}),
            "unit": one.unit,
            "ties": [(tie.num_devices, tie.batch) for tie in one.ties],
            "doubtful": [(other.num_devices, other.batch) for other in one.doubtful],
            "why_not": one.why_not,
        }
        for one in choices
    ]
    return pd.DataFrame(rows, columns=columns)
