"""Whether a measured figure keeps the bound that is set for it."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from dpeval.stats.comparison import quantile


def verdict(low: float, high: float, *, least: float = -math.inf, most: float = math.inf) -> str:
    """``holds``, ``does not hold``, or ``undecided``: the interval has values of both kinds.

    Args:
        low: lower end of the figure's interval.
        high: upper end.
        least: the lowest value that is good enough.
        most: the highest.
    """
    if least <= low and high <= most:
        return "holds"
    return "does not hold" if high < least or most < low else "undecided"


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """The mean of independent values and its 95 % interval; of one value, the value itself."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(quantile(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def spread_ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """The standard deviation of some logarithms over that of others, with its 95 % interval.

    The ratio of the variances of normal samples has Fisher's distribution.

    Args:
        over: positive values.
        under: others.
    """
    ratio = float(np.log(over).std(ddof=1) / np.log(under).std(ddof=1))
    freedom = (len(over) - 1, len(under) - 1)
    low, high = (math.sqrt(float(stats.f.ppf(share, *freedom))) for share in (0.025, 0.975))
    return ratio, ratio / high, ratio / low


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Clopper & Pearson 1934)."""
    low = float(stats.beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high
