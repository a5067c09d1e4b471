"""Multiple comparisons with the best: which of several configurations could be the best one.

Two values are not equal just because their difference is not significant. Hsu's intervals answer
the real question: how far is each configuration, at least and at most, from the best of the others?
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from dpeval.stats.comparison import quantile
from dpeval.util.arrays import Floats

CONFIDENCE = 0.95
LEAST_ERROR = 1e-9
"""Standard error of identical times (constructed, or a coarse clock)."""
_NODES = 64
_MOST_CORRELATION = 0.99


@dataclass(frozen=True)
class Standing:
    """The 95 % interval of each value minus the best of the others, constrained to contain 0."""

    low: Floats
    """At most 0; 0: it is the best. Shape [k]."""
    high: Floats
    """At least 0; 0: it is not the best."""

    @property
    def could_be_best(self) -> list[bool]:
        """Which values cannot be excluded from being the best."""
        return [bool(high > 0) for high in self.high]


def compared_with_best(values: Floats, errors: Floats, freedom: float) -> Standing:
    """Hsu's constrained intervals of v_i - max of the other v_j, jointly at 95 %.

    Hsu 1984, "Constrained simultaneous confidence intervals for multiple comparisons with the
    best", Ann. Stat. 12(3); for unequal errors, Hsu 1996, Multiple Comparisons, section 4.2.2.
    With D_i the upper end, and G the values whose D_i is above 0:

    - D_i = max(0, min over j of (v_i - v_j + d_i s_ij))
    - the lower end is 0 where G holds i alone, else min(0, min over j in G of
      (v_i - v_j - d_j s_ij))

    d_i is Dunnett's one-sided quantile (:func:`dunnett`), with the smallest of the correlations.

    Args:
        values: what is compared, the highest is the best, shape [k].
        errors: their standard errors, independent, shape [k]; NaN: unknown, so that value and any
            other could be the best.
        freedom: degrees of freedom of the errors; infinite: they are known.
    """
    count = len(values)
    if count < 2:
        return Standing(np.zeros(count), np.full(count, math.inf))
    known = np.where(np.isnan(errors), math.inf, np.maximum(errors, LEAST_ERROR))
    factor = np.array([_factor(one, np.delete(known, i), freedom) for i, one in enumerate(known)])
    difference = values[:, None] - values[None, :]
    error = np.hypot(known[:, None], known[None, :])
    others = ~np.eye(count, dtype=bool)
    above = np.where(others, difference + factor[:, None] * error, math.inf)
    high = np.maximum(0.0, above.min(axis=1))
    rivals = others & (high > 0)[None, :]
    below = np.where(rivals, difference - factor[None, :] * error, math.inf)
    low = np.where(rivals.any(axis=1), np.minimum(0.0, below.min(axis=1)), 0.0)
    return Standing(low, high)


def _factor(own: float, others: Floats, freedom: float) -> float:
    """Dunnett's quantile for the value with error `own` against the others."""
    if math.isinf(own):
        return 1.0  # times an infinite error
    finite = others[np.isfinite(others)]
    share = float((own / np.hypot(own, finite)).min()) if len(finite) else 0.0
    # A smaller correlation gives a larger quantile (Slepian), so rounding down is safe.
    return dunnett(len(others), math.floor(50 * share**2) / 50, freedom)


@functools.lru_cache(maxsize=4096)
def dunnett(count: int, correlation: float, freedom: float) -> float:
    """The one-sided 95 % quantile of the largest of `count` equicorrelated t statistics.

    Dunnett 1955, J. Am. Stat. Assoc. 50; by Gauss and Hermite's rule over the shared part and by
    equally likely values of the estimated variance.

    Args:
        count: how many comparisons with one value, at least 1.
        correlation: of any two of them, in [0, 1).
        freedom: degrees of freedom of the variance; infinite: it is known.
    """
    from scipy.optimize import brentq
    from scipy.special import chdtri, log_ndtr

    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    scale = np.ones(1)
    if not math.isinf(freedom):
        chances = (np.arange(4 * _NODES) + 0.5) / (4 * _NODES)
        scale = np.sqrt(chdtri(freedom, 1 - chances) / freedom)
    shared = math.sqrt(min(correlation, _MOST_CORRELATION))
    own = math.sqrt(1 - shared**2)

    def lacking(bound: float) -> float:
        inner = (bound * scale[:, None] + shared * nodes[None, :]) / own
        return float((np.exp(count * log_ndtr(inner)) @ weights).mean()) - CONFIDENCE

    # Bonferroni's quantile is the highest possible, that of a single comparison the lowest.
    low, high = (float(quantile(1 - (1 - CONFIDENCE) / n, freedom)) for n in (1, count))
    if count == 1:
        return low
    return float(brentq(lacking, 0.98 * low, 1.02 * high, xtol=1e-6))
