"""The best configuration for an objective that the user names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.pooling.repetitions import TURNS
from dpeval.analysis.scaling.contrasts import Contrasts, contrasts, with_energy_by_rounds
from dpeval.errors import ConfigError
from dpeval.stats.best import Differences, compared_with_best
from dpeval.util.display.ranges import percent

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
LEAST_GAP = 0.01
"""A smaller difference from the best is not worth deciding."""


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
    is_paired: bool = False
    """Whether every two of those that qualify took turns, so that drift cancels in what is said of
    them."""

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

    @property
    def are_equal(self) -> bool:
        """Whether all that could be the best are known to be within :data:`LEAST_GAP` of it."""
        return bool(self.ties) and all(one.behind <= LEAST_GAP for one in self.able)


def choose(
    measured: pd.DataFrame,
    objective: Objective,
    min_efficiency: float | None = None,
    compared: Sequence[Contrasts] | None = None,
) -> list[Choice]:
    """The best configuration of every family, over all batches and then for each.

    Multiple comparisons with the best (:func:`~dpeval.stats.best.compared_with_best`) on the
    logarithm give the configurations that could be the best, and how far each can be behind. Those
    that took turns, of whatever batch, are compared by their rounds, in which the drift of the
    machine cancels. Others count as independent, with the spread between runs.

    Args:
        measured: :func:`dpeval.analysis.scaling.speedup.points`.
        objective: one of :data:`OBJECTIVES`.
        min_efficiency: lowest parallel efficiency to consider; default: none, or
            :data:`MIN_EFFICIENCY` for ``efficient``. The lower end of a configuration's interval
            must reach it.
        compared: what :func:`contrasts_of_families` gives, where it is known.

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
    compared = contrasts_of_families(measured) if compared is None else compared
    families = measured.groupby(FAMILY, dropna=False, sort=True)
    for (key, group), known in zip(families, compared, strict=True):
        named, rows = dict(zip(FAMILY, key, strict=True)), as_rows(group)
        found.append(_choose(rows, known, named, None, objective, floor))
        batches = sorted({int(row["batch"]) for row in rows})
        for batch in batches if len(batches) > 1 else []:
            places = [i for i, row in enumerate(rows) if row["batch"] == batch]
            part, of_part = [rows[i] for i in places], known.among(places)
            found.append(_choose(part, of_part, named, batch, objective, floor))
    return found


def contrasts_of_families(measured: pd.DataFrame) -> list[Contrasts]:
    """The throughput of every two configurations of each family compared; families are not."""
    if measured.empty:
        return []
    families = measured.groupby(FAMILY, dropna=False, sort=True)
    return [contrasts(group) for _, group in families]


def _choose(
    rows: list[dict[str, Any]],
    compared: Contrasts,
    key: dict[str, Any],
    batch: int | None,
    objective: Objective,
    floor: float | None,
) -> Choice:
    places = [i for i, row in enumerate(rows) if _score(row, objective)[0] > 0]
    sample = str(rows[0]["unit"])
    if not places:
        return Choice(key, batch, objective, None, [], "no energy was recorded", sample=sample)
    sign = -1 if objective.highest else 1

    def order(one: Candidate) -> tuple[float, int, int]:
        return sign * one.value, one.num_devices, one.batch

    open_: list[Candidate] = []
    if floor:
        reaching = [i for i in places if _efficiency(rows[i])[1] >= floor]
        # Also where it is unknown: NaN is neither.
        left = [i for i in places if i not in reaching and not _efficiency(rows[i])[2] < floor]
        open_ = sorted((_candidate(rows[i], objective) for i in left), key=order)
        if not reaching:
            why_not = _none_reaches(floor, open_)
            return Choice(key, batch, objective, None, [], why_not, floor, open_, sample)
        places = reaching
    known = compared.among(places)
    able = _candidates([rows[i] for i in places], known, objective)
    better = [one for one in open_ if sign * one.value < sign * able[0].value]
    paired = known.are_paired and len(places) > 1
    return Choice(key, batch, objective, able[0], able[1:], "", floor, better, sample, paired)


def _none_reaches(floor: float, doubtful: list[Candidate]) -> str:
    if not doubtful:
        return f"none reaches {percent(floor)} efficiency"
    if all(math.isnan(one.efficiency) for one in doubtful):
        return f"there is no run on one device to measure {percent(floor)} efficiency against"
    return f"none certainly reaches {percent(floor)} efficiency"


def _candidates(
    rows: list[dict[str, Any]], compared: Contrasts, objective: Objective
) -> list[Candidate]:
    """`rows` as candidates, the best first."""
    sign = 1 if objective.highest else -1
    known = differences(rows, compared, objective)
    standing, logs = compared_with_best(known), known.effects
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


def _candidate(row: dict[str, Any], objective: Objective) -> Candidate:
    scores = _score(row, objective)
    return Candidate(int(row["num_devices"]), int(row["batch"]), *scores, *_efficiency(row))


def _efficiency(row: dict[str, Any]) -> tuple[float, float, float]:
    """Parallel efficiency and its interval; NaN if the baseline is not one device."""
    if row["baseline_devices"] != 1:
        return math.nan, math.nan, math.nan
    return row["efficiency"], row["efficiency_low"], row["efficiency_high"]


def differences(
    rows: list[dict[str, Any]], compared: Contrasts, objective: Objective
) -> Differences:
    """The differences of what is to be as high as possible, in logarithms.

    Args:
        rows: of :func:`~dpeval.analysis.scaling.speedup.points`.
        compared: their throughputs.
        objective: what is compared.
    """
    of_rates = compared.differences
    if objective is DEVICE_SECONDS:
        return of_rates.less(np.log([row["num_devices"] for row in rows]))
    if objective is not ENERGY:
        return of_rates
    logs = -np.log([row["energy_j_per_img"] for row in rows])
    errors = np.array([row["energy_error_share"] for row in rows], dtype=float)
    freedom = np.nan_to_num([row["energy_freedom"] for row in rows], nan=np.inf).min()
    apart = Differences.of_independent(logs, errors, float(freedom))
    # Energy is power times time, and the error is that of the time: of the rounds, where earlier
    # releases recorded only the sum of the energy of all turns.
    of_sums = Differences(
        apart.value,
        np.where(compared.is_paired, of_rates.error, apart.error),
        np.where(compared.is_paired, of_rates.freedom, apart.freedom),
    )
    return with_energy_by_rounds(of_sums, [row[TURNS] for row in rows])


def _score(row: dict[str, Any], objective: Objective) -> tuple[float, float, float]:
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
