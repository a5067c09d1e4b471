"""How well the quantities behind efficiency factors are known.

A single run shows how much its rounds of ablation blocks differ. Repetitions also show how much
runs differ, so where there are any, they alone are the replicates.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION
from dpeval.analysis.frame.step_losses import HALF_MEANINGS
from dpeval.analysis.scaling.run_spread import COHORT, own_halves, student
from dpeval.util.arrays import Floats

MEANINGS = HALF_MEANINGS | {
    "normal_half": "of log(normal_s/(step_s - input_s))",
}
"""Columns of a configuration: half-widths of 95 % intervals, of logarithms."""


@dataclass(frozen=True)
class Repeated:
    """How far repetitions lie apart in one quantity, for all configurations of a cohort."""

    deviation: float
    """Standard deviation of a run's logarithm, everything included."""
    freedom: float

    def half(self, runs: int) -> float:
        """Half-width of the 95 % interval of a mean of `runs`."""
        return student(self.freedom) * self.deviation / float(np.sqrt(runs))


def by_cohort(runs: pd.DataFrame) -> dict[Hashable, dict[str, Repeated]]:
    """:func:`repeated` for each combination of values of :data:`COHORT`."""
    return {key: repeated(group) for key, group in runs.groupby(COHORT, dropna=False)}


def repeated(runs: pd.DataFrame) -> dict[str, Repeated]:
    """How far repetitions lie apart, pooled over configurations; without those that have none.

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`), of one cohort.
    """
    good = runs[(runs["status"] == "ok") & runs["img_per_s"].notna()]
    found = {}
    work = good[CONFIGURATION].assign(**_logs(good))
    groups = work.groupby(CONFIGURATION, dropna=False, sort=False)
    counts, variances = groups.count(), groups.var(ddof=1)
    for name in MEANINGS:
        freedom = (counts[name] - 1).clip(lower=0).to_numpy(dtype=float)
        squares = freedom * np.nan_to_num(variances[name].to_numpy(dtype=float))
        if freedom.sum() > 0:
            deviation = float(np.sqrt(squares.sum() / freedom.sum()))
            found[name] = Repeated(deviation, float(freedom.sum()))
    return found


def halves(good: pd.DataFrame, spread: Mapping[str, Repeated]) -> dict[str, float]:
    """The columns of :data:`MEANINGS` for the runs of one configuration; NaN where not known.

    Args:
        good: the runs.
        spread: of the repetitions of their cohort.
    """
    logs, own = _logs(good), _own(good)
    return {name: _half(logs[name], own[name], spread.get(name)) for name in MEANINGS}


def _half(logs: Floats, own: Floats, spread: Repeated | None) -> float:
    is_known = ~np.isnan(logs)
    runs = int(is_known.sum())
    if not runs:
        return np.nan
    within = float(np.sqrt((own[is_known] ** 2).sum())) / runs
    if spread is None:
        return within
    between = spread.half(runs)
    return between if runs > 1 else float(np.fmax(within, between))


def _own(runs: pd.DataFrame) -> dict[str, Floats]:
    """What each run tells by itself."""
    own = {name: runs[name].to_numpy(dtype=float) for name in MEANINGS}
    own["normal_half"] = np.hypot(own["normal_half"], np.mean(own_halves(runs), axis=0))
    return own


def _logs(runs: pd.DataFrame) -> dict[str, Floats]:
    """The quantities themselves, of each run."""

    def of(name: str) -> Floats:
        return np.asarray(runs[name].to_numpy(dtype=float))

    rest_s = of("step_s") - np.nan_to_num(of("input_s"))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "input_half": np.log1p(-of("input_s") / of("step_s")),
            "exposed_half": np.log1p(-of("exposed_s") / rest_s),
            "balance_half": np.log(of("balance")),
            "normal_half": np.log(of("normal_s") / rest_s),
            "sync_half": np.log(of("no_sync_s") / of("normal_s")),
            "first_half": np.log(of("no_sync_first_s") / of("no_sync_s")),
            "contention_half": np.log(of("alone_s") / of("no_sync_first_s")),
            "alone_half": np.log(of("alone_s")),
        }
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}
