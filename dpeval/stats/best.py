"""Multiple comparisons with the best: which of several configurations could be the best one.

Two values are not equal just because their difference is not significant. Hsu's intervals answer
the real question: how far is each configuration, at least and at most, from the best of the others?
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
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
class Differences:
    """Every value less every other one: arrays of shape [k, k], row less column."""

    value: Floats
    error: Floats
    """Standard errors; infinite: unknown. The diagonal has no meaning."""
    freedom: Floats
    """Degrees of freedom of the errors; infinite: they are known."""

    @classmethod
    def of_independent(cls, values: Floats, errors: Floats, freedom: float) -> Differences:
        """Those of independent values.

        Args:
            values: shape [k].
            errors: their standard errors, shape [k]; NaN: unknown.
            freedom: degrees of freedom of all errors.
        """
        known = np.where(np.isnan(errors), math.inf, np.maximum(errors, LEAST_ERROR))
        return cls(
            np.subtract.outer(values, values),
            np.hypot(known[:, None], known[None, :]),
            np.full((len(values), len(values)), freedom),
        )

    @property
    def effects(self) -> Floats:
        """Least squares' values, whose mean is 0, shape [k]: differences may not add up."""
        return np.asarray(self.value.mean(axis=1))

    def among(self, places: Sequence[int]) -> Differences:
        """Those of some of the values."""
        chosen = np.ix_(places, places)
        return Differences(self.value[chosen], self.error[chosen], self.freedom[chosen])

    def less(self, values: Floats) -> Differences:
        """Those of the values less others that are known exactly, shape [k]."""
        return Differences(self.value - np.subtract.outer(values, values), self.error, self.freedom)

    def negated(self) -> Differences:
        """Those of the negative values: the lowest is then the best."""
        return Differences(-self.value, self.error, self.freedom)


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


def compared_with_best(given: Differences) -> Standing:
    """Hsu's constrained intervals of v_i - max of the other v_j, jointly at 95 %.

    Hsu 1984, "Constrained simultaneous confidence intervals for multiple comparisons with the
    best", Ann. Stat. 12(3); for unequal errors, Hsu 1996, Multiple Comparisons, section 4.2.2.
    With D_i the upper end, and G the values whose D_i is above 0:

    - D_i = max(0, min over j of (v_i - v_j + d_i s_ij))
    - the lower end is 0 where G holds i alone, else min(0, min over j in G of
      (v_i - v_j - d_j s_ij))

    d_i is Dunnett's one-sided quantile (:func:`dunnett`), with the smallest correlation of any two
    differences from i, which follows from their errors, and the fewest degrees of freedom.

    Args:
        given: what is compared; the highest value is the best. A value whose errors are unknown,
            and any other, could be the best.
    """
    count = len(given.value)
    if count < 2:
        return Standing(np.zeros(count), np.full(count, math.inf))
    error = np.maximum(given.error, LEAST_ERROR)
    factor = np.array([_factor(i, error, given.freedom) for i in range(count)])
    others = ~np.eye(count, dtype=bool)
    above = np.where(others, given.value + factor[:, None] * error, math.inf)
    high = np.maximum(0.0, above.min(axis=1))
    rivals = others & (high > 0)[None, :]
    below = np.where(rivals, given.value - factor[None, :] * error, math.inf)
    low = np.where(rivals.any(axis=1), np.minimum(0.0, below.min(axis=1)), 0.0)
    return Standing(low, high)


def _factor(i: int, error: Floats, freedom: Floats) -> float:
    """Dunnett's quantile for value `i` against the others."""
    others = np.delete(np.arange(len(error)), i)
    known = others[np.isfinite(error[i, others])]
    if not len(known):
        return 1.0  # times an infinite error
    correlation = 0.0
    if len(known) > 1:
        from_i = error[i, known]
        among = error[np.ix_(known, known)]
        # Var(a - b) + Var(a - c) - Var(b - c) is twice the covariance of a - b and a - c.
        twice = np.add.outer(from_i**2, from_i**2) - among**2
        pairs = ~np.eye(len(known), dtype=bool)
        correlation = float((twice / (2 * np.outer(from_i, from_i)))[pairs].min())
    # A smaller correlation gives a larger quantile (Slepian), so rounding down is safe.
    rounded = math.floor(50 * min(max(correlation, 0.0), _MOST_CORRELATION)) / 50
    return dunnett(len(others), rounded, float(freedom[i, known].min()))


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
