"""Uncertainty of the quantities behind efficiency factors.

A single run shows how much its rounds of ablation blocks differ. Repetitions also show how much
runs differ, so if there are any, only they are the replicates."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION, is_measured
from dpeval.analysis.frame.step_losses import HALF_MEANINGS
from dpeval.analysis.pooling.run_spread import COHORT
from dpeval.stats.comparison import quantile
from dpeval.util.arrays import Floats

MEANINGS = HALF_MEANINGS | {
    "granularity_half": "of log(alone_ratio)",
}
"""Columns of a configuration: half-widths of 95 % intervals of logarithms."""


def halves(runs: pd.DataFrame) -> pd.DataFrame:
    """The columns of :data:`MEANINGS`, one row per configuration; NaN if unknown.

    With repetitions, the standard deviation of a quantity's logarithm over runs is pooled over the
    configurations of a cohort (Student's t, with the degrees of freedom of all). A configuration
    with a single run uses it if it exceeds what the run itself shows.

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`).

    Returns:
        The configurations in the order of ``groupby``.
    """
    keys = [runs[name] for name in CONFIGURATION]
    logs = pd.DataFrame(_logs(runs), index=runs.index).where(is_measured(runs))
    # If a run has no error of its own, that of the mean is unknown.
    squares = (pd.DataFrame(_own(runs), index=runs.index) ** 2).fillna(np.inf).where(logs.notna())
    groups = logs.groupby(keys, dropna=False, sort=True)
    counts, variances = groups.count(), groups.var(ddof=1).fillna(0)
    own = squares.groupby(keys, dropna=False, sort=True).sum()
    within = np.sqrt(own.to_numpy()) / np.maximum(1, counts.to_numpy())
    freedom = (counts - 1).clip(lower=0)
    of_cohort = {"level": COHORT, "dropna": False}
    total = freedom.groupby(**of_cohort).transform("sum").to_numpy(dtype=float)
    scatter = (freedom * variances).groupby(**of_cohort).transform("sum").to_numpy()
    is_repeated, known = total > 0, np.maximum(1, total)
    runs_of = counts.to_numpy(dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = quantile(0.975, known) * np.sqrt(scatter / known / runs_of)
    single = np.where(np.isfinite(within), np.maximum(within, between), between)
    found = np.where(is_repeated, np.where(runs_of > 1, between, single), within)
    is_known = (runs_of > 0) & np.isfinite(found)
    return pd.DataFrame(
        np.where(is_known, found, np.nan), index=counts.index, columns=counts.columns
    )


def _own(runs: pd.DataFrame) -> dict[str, Floats]:
    """Half-widths from each run alone."""
    return {name: runs[name].to_numpy(dtype=float) for name in MEANINGS}


def _logs(runs: pd.DataFrame) -> dict[str, Floats]:
    """The quantities of each run."""

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
            "granularity_half": np.log(of("alone_ratio")),
        }
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}
