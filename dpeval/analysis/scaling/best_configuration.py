"""The best configuration for an objective that the user names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

FAMILY = ["series", "hardware", "scaling"]
"""Configurations among which one is chosen."""


@dataclass(frozen=True)
class Objective:
    """What counts as best."""

    name: str
    description: str
    unit: str
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
    """A configuration and its score; the ends of the interval are NaN if unknown."""

    num_devices: int
    batch: int
    value: float
    low: float
    high: float
    efficiency: float
    """Parallel efficiency against `baseline_devices`."""
    baseline_devices: int


@dataclass(frozen=True)
class Choice:
    """The best of a family, or of one batch of it, for an objective."""

    key: dict[str, Any]
    batch: int | None
    """None: over all batches."""
    objective: Objective
    best: Candidate | None
    """None: no configuration qualifies, for the reason in `why_not`."""
    ties: list[Candidate]
    """Those whose difference from the best lies within the difference's 95 % interval."""
    why_not: str = ""


def choose(
    measured: pd.DataFrame, objective: Objective, min_efficiency: float | None = None
) -> list[Choice]:
    """The best configuration of every family, over all batches and then for each.

    Two configurations tie if their difference is within its own 95 % interval, the
    half-widths of their logarithms added in quadrature: mere overlap of the two intervals
    would call too many equal (Schenker & Gentleman 2001, The American Statistician 55(3)).

    Args:
        measured: :func:`dpeval.analysis.scaling.speedup.points`.
        objective: one of :data:`OBJECTIVES`.
        min_efficiency: lowest parallel efficiency to consider; default: none, or
            :data:`MIN_EFFICIENCY` for ``efficient``.
    """
    floor = min_efficiency
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
    able = [candidate for row in group.to_dict("records") if (candidate := _score(row, objective))]
    if not able:
        return Choice(key, batch, objective, None, [], "no energy was recorded")
    if floor is not None:
        able = [candidate for candidate in able if candidate.efficiency >= floor]
        if not able:
            return Choice(key, batch, objective, None, [], f"none reaches {floor:.0%} efficiency")
    # Among equals, fewer devices: cheaper.
    sign = -1 if objective.highest else 1
    best = min(able, key=lambda one: (sign * one.value, one.num_devices, one.batch))
    ties = [one for one in able if one is not best and _is_tie(one, best)]
    return Choice(key, batch, objective, best, ties)


def _score(row: dict[Any, Any], objective: Objective) -> Candidate | None:
    rate, low, high = (float(row[name]) for name in ("img_per_s", "low", "high"))
    devices = int(row["num_devices"])
    values = {
        THROUGHPUT.name: (rate, low, high),
        EFFICIENT.name: (rate, low, high),
        DEVICE_SECONDS.name: tuple(_inverse(devices, one) for one in (rate, high, low)),
        # Energy is power times time, and no record holds the spread of power between runs.
        ENERGY.name: (float(row["energy_j_per_img"]), math.nan, math.nan),
    }
    value, below, above = values[objective.name]
    if math.isnan(value):
        return None
    return Candidate(
        devices, int(row["batch"]), value, below, above,
        float(row["efficiency"]), int(row["baseline_devices"]),
    )  # fmt: skip


def _inverse(devices: int, rate: float) -> float:
    """Device-seconds per image; infinite where an interval of img/s reaches down to 0."""
    return devices / rate if rate > 0 else math.inf


def _is_tie(one: Candidate, best: Candidate) -> bool:
    halves = [math.log(c.high / c.low) / 2 if c.low > 0 else math.nan for c in (one, best)]
    return abs(math.log(one.value / best.value)) <= math.hypot(*halves)


def table(choices: list[Choice]) -> pd.DataFrame:
    """One row per choice: :data:`FAMILY`, the best of it, its `ties` and `why_not`."""
    columns = [
        *FAMILY, "num_devices", "batch", "value", "low", "high", "unit", "efficiency", "ties",
        "why_not",
    ]  # fmt: skip
    rows = [
        {
            **one.key,
            **(vars(one.best) if one.best is not None else {"batch": one.batch}),
            "unit": one.objective.unit,
            "ties": [(tie.num_devices, tie.batch) for tie in one.ties],
            "why_not": one.why_not,
        }
        for one in choices
    ]
    return pd.DataFrame(rows, columns=columns)
