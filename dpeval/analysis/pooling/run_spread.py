"""The spread between runs: how much runs of one configuration differ.

A run's interval describes its own minutes. Another run of the same configuration sees other clock
rates, memory layouts and neighbours (Kalibera & Jones 2013, "Rigorous Benchmarking in Reasonable
Time", ISMM, section 6), so a figure that compares two runs must allow for this spread too."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeval.analysis.frame.runs_frame import CONFIGURATION, is_measured
from dpeval.stats.comparison import LEAST_FREEDOM, quantile
from dpeval.util.arrays import Floats

ASSUMED_SHARE = 0.02
"""Relative standard deviation assumed without repetitions: the lower end of the 2–5 % that
``docs/pages/measuring.md`` reports for an undisturbed virtual machine. Users can state another
(``--spread``). A gate over many
configurations assumes more (:data:`~dpeval.stats.comparison.LARGEST_SPREAD`)."""
COHORT = ["series", "hardware"]
"""Runs that are equal in these columns share a pooled spread."""


@dataclass(frozen=True)
class RunSpread:
    """The spread between runs of one configuration, for all configurations of a cohort."""

    share: float
    """Standard deviation between runs of the log of their mean step (about: over the mean),
    beyond what the steps within a run explain."""
    freedom: float
    """Degrees of freedom of `share`; infinite if it is assumed, and so taken as known."""
    configurations: int
    """How many configurations with repetitions it was measured on."""

    @property
    def is_measured(self) -> bool:
        """Whether repetitions show it; otherwise it is assumed."""
        return math.isfinite(self.freedom)

    def half(self, runs: int = 1) -> float:
        """Half-width, from this spread alone, of the 95 % interval of the log of a mean of `runs`.

        To compare two configurations, add in quadrature this for each of them and their own
        half-widths (Zou & Donner 2008, "Construction of confidence limits about effect measures",
        Stat. Med. 27, equation 4)."""
        return student(self.freedom) * self.share / math.sqrt(runs)


def run_spread(
    runs: pd.DataFrame, column: str = "img_per_s", assumed: float = ASSUMED_SHARE
) -> RunSpread:
    """The spread between runs that may be compared; see :func:`pooled`.

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`), of one cohort.
        column: what is compared: throughput, or another quantity proportional to time.
        assumed: the spread where repetitions do not show it.
    """
    good = runs[is_measured(runs) & (runs[column] > 0) & (runs["steps"] > 1)]
    work = good[CONFIGURATION].assign(
        log=np.log(good[column].to_numpy(dtype=float)),
        own=np.nan_to_num(own_errors(good)) ** 2,
    )
    groups = work.groupby(CONFIGURATION, dropna=False, sort=False)
    count, scatter, own = groups["log"].count(), groups["log"].var(ddof=1), groups["own"].mean()
    is_repeated = count > 1
    counts, variances, errors = (
        table[is_repeated].to_numpy(dtype=float) for table in (count, scatter, own)
    )
    return pooled(counts, variances, errors, assumed)


def pooled(runs: Floats, scatter: Floats, own: Floats, assumed: float = ASSUMED_SHARE) -> RunSpread:
    """The spread between runs, pooled over configurations with repetitions.

    A configuration of n runs adds n-1 degrees of freedom. The runs' own squared errors, which the
    steps within a run explain, are subtracted from their variance. Fewer than :data:`LEAST_FREEDOM`
    degrees of freedom replace the assumption only if they show more.

    Args:
        runs: runs per configuration, each at least 2, shape [k].
        scatter: variance of the log of their mean steps, shape [k].
        own: mean squared standard error of a run, from its steps, shape [k].
        assumed: the spread without repetitions.
    """
    freedom = float((runs - 1).sum())
    variance = float(((scatter - own) * (runs - 1)).sum()) / freedom if freedom else 0.0
    share = math.sqrt(max(0.0, variance))
    if freedom < LEAST_FREEDOM and share <= assumed:
        return RunSpread(assumed, math.inf, len(runs))
    return RunSpread(share, freedom, len(runs))


def by_cohort(
    runs: pd.DataFrame, column: str = "img_per_s", assumed: float = ASSUMED_SHARE
) -> dict[Hashable, RunSpread]:
    """:func:`run_spread` for each combination of values of :data:`COHORT`.

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`).
        column: see :func:`run_spread`.
        assumed: the spread where repetitions do not show it.
    """
    groups = runs.groupby(COHORT, dropna=False)
    return {key: run_spread(group, column, assumed) for key, group in groups}


def own_halves(runs: pd.DataFrame) -> tuple[Floats, Floats]:
    """How far each run's 95 % interval reaches below and above, in log img/s; NaN if unknown."""
    rate, low, high = (
        runs[name].to_numpy(dtype=float)
        for name in ("img_per_s", "img_per_s_low", "img_per_s_high")
    )
    is_known = (low > 0) & np.isfinite(high) & (runs["steps"].to_numpy(dtype=float) > 1)
    return (
        np.log(rate / np.where(is_known, low, np.nan)),
        np.log(np.where(is_known, high, np.nan) / rate),
    )


def own_errors(runs: pd.DataFrame) -> Floats:
    """Standard error of each run's log img/s, from its own steps; NaN if unknown."""
    below, above = own_halves(runs)
    effective = np.nan_to_num(runs["effective_steps"].to_numpy(dtype=float), nan=np.inf)
    return np.asarray(
        (below + above) / 2 / quantile(0.975, np.maximum(LEAST_FREEDOM, effective - 1))
    )


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; of the normal distribution for infinite `freedom`."""
    return float(quantile(0.975, freedom))
