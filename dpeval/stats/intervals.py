"""Confidence intervals of a mean that allow for autocorrelated steps.

Training steps are not independent (caches, clocks, other processes), so the textbook
interval is too narrow: Hoefler & Belli 2015 ("Scientific Benchmarking of Parallel Computing
Systems", SC'15), rules 5 and 6.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpeval.record.measurement import Interval
from dpeval.util.arrays import Bools, Floats
from dpeval.util.display.units import MAD_TO_STD

MOST_CORRELATION = 0.98
"""A larger lag-1 correlation cannot be told from a series without a mean."""
INDEPENDENT, HEAVY = 0.5, 0.2
"""Prior of r: with the first probability, steps are independent; otherwise its density is that of
(1 - r) to minus the second. A flat prior is too wide for independent steps (98 to 100 % coverage
below 60 of them) and too narrow where r is 0.9. What that costs: 26 steps with CV 14 % and one slow
hump (r = 0.63) are known to ± 27 %, with a flat prior to ± 24 %, for coverage at r = 0, 0.3, 0.6,
0.8 and 0.9 of 97, 94, 95, 95 and 91 % instead of 99, 98, 96, 94 and 89 %."""
LEAST_LOG_WEIGHT = -14.0
"""A value of r this much less likely (in logarithms) than the likeliest is left out."""
PRECISION, MOST_ROUNDS = 1e-10, 60
"""Relative precision of a quantile, and the most steps to find it."""

BATCHES = 10
"""Batch means of a long series; 10 to 30 serve best (Schmeiser 1982, Oper. Res. 30(3))."""
MIN_BATCH = 3
BATCH_EXCESS = 1.63
"""Batch means count once their variance exceeds by this factor what AR(1) promises: the 90 %
quantile of chi-squared with BATCHES - 1 degrees of freedom, over those degrees."""
MOST_LOG_HALF = 7.0
"""A wider interval of a positive mean ends here: within a factor of 1,100, nothing is known."""
RANGE_SHARE = 1e-12
"""Rounding makes a constant series vary by about this fraction; such a series is constant."""


class Means(NamedTuple):
    """Means of several series of one length, each with its interval; arrays of shape [d]."""

    mean: Floats
    half: Floats
    """Half-width of the interval."""
    effective: Floats
    """Independent values that a series is worth."""


def mean_interval(series: Sequence[float] | Floats, confidence: float = 0.95) -> Interval:
    """The mean of an autocorrelated series with its confidence interval; see :func:`means`.

    Args:
        series: shape [n], n >= 1, any unit. The interval of one value is infinite; it is given
            as ±100 % because a record cannot hold infinities.
        confidence: of the two-sided interval, in (0, 1).
    """
    values = np.asarray(series, dtype=np.float64)
    if len(values) < 2:
        mean = float(values.mean())
        return Interval(mean=mean, low=0.0, high=2 * mean, effective_samples=1.0)
    mean, half, effective = (float(found[0]) for found in means(values[None], confidence))
    return Interval(mean=mean, low=mean - half, high=mean + half, effective_samples=effective)


def means(series: Floats, confidence: float) -> Means:
    """The means of autocorrelated series with their confidence intervals.

    The steps are taken as a stationary Gaussian AR(1) series (:func:`coefficient`); the interval
    lies symmetrically around their arithmetic mean and holds the process mean with posterior
    probability `confidence`. The uncertainty of r enters once, in the mixture over r: short series
    get wide intervals, long ones that of generalised least squares.

    AR(1) cannot see a slow disturbance under fast noise. From 30 values on, the variance of the
    mean is therefore also taken from :data:`BATCHES` batch means, and counts if clearly larger.

    ``benchmarks/coverage.py`` prints how often these intervals cover the truth, under AR(1) noise
    and under noise that is not.

    Args:
        series: shape [d, n], n >= 2, any unit.
        confidence: of the two-sided intervals, in (0, 1).
    """
    # Imported late: it takes a tenth of a second, and only this module needs it.
    from scipy.special import stdtrit

    mean = series.mean(axis=-1)
    known, batch_error = _posterior(series)
    half = known.half_width(confidence)
    quantile = float(stdtrit(BATCHES - 1, (1 + confidence) / 2))
    wide: Floats = np.where(is_constant(series), 0.0, np.maximum(half, quantile * batch_error))
    return Means(mean, wide, _worth(series, known, batch_error))


def independent_values(series: Floats) -> float:
    """How many independent values a series, shape [n], n >= 2, is worth for its mean."""
    values = series[None]
    return float(_worth(values, *_posterior(values))[0])


def _worth(series: Floats, known: Coefficient, batch_error: Floats) -> Floats:
    """:func:`independent_values` of several series, shape [d, n], from :func:`_posterior`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        by_batches = np.maximum(1.0, series.var(axis=-1) / batch_error**2)
    worth = np.minimum(known.information, by_batches)
    return np.where(is_constant(series), float(series.shape[-1]), worth)


def are_within(series: Floats, share: Floats | float, confidence: float) -> Bools:
    """Whether the intervals of :func:`means` reach no further than `share` of the mean.

    Their ends need not be found for that, which takes several times as long.

    Args:
        series: shape [d, n], n >= 2, with positive means.
        share: half-width, as a fraction of the mean; one, or one per series.
        confidence: of the two-sided intervals, in (0, 1).
    """
    from scipy.special import stdtrit

    bound = share * series.mean(axis=-1)
    known, batch_error = _posterior(series)
    quantile = float(stdtrit(BATCHES - 1, (1 + confidence) / 2))
    is_known = known.probability_within(bound) >= confidence
    within: Bools = is_constant(series) | (is_known & (quantile * batch_error <= bound))
    return within


def _posterior(series: Floats) -> tuple[Coefficient, Floats]:
    """Of the means' errors: AR(1)'s; and that of batch means where it is clearly larger, else 0."""
    centred = series - series.mean(axis=-1, keepdims=True)
    known = coefficient(centred, [np.ones(series.shape[-1])])
    batch_error = _batch_error(series)
    return known, np.where(batch_error**2 > BATCH_EXCESS * known.variance, batch_error, 0.0)


def on_log_scale(interval: Interval) -> Interval:
    """The interval of a positive mean, symmetric in its logarithm.

    So the interval of a rate is exactly the reciprocal of that of the time, no end reaches zero,
    and half-widths of a ratio add in quadrature. The half-width of the logarithm is the relative
    one of the mean (first-order propagation).
    """
    factor = math.exp(min(interval.rel_half_width, MOST_LOG_HALF))
    ends = {"low": interval.mean / factor, "high": interval.mean * factor}
    return interval.model_copy(update=ends)


def ratio_interval(over: Floats, under: Floats, confidence: float = 0.95) -> Interval:
    """The interval of mean(over) / mean(under) as a multiple of that ratio: its mean is 1.

    From over_i / mean(over) - under_i / mean(under), the linearised ratio estimator (Cochran 1977,
    "Sampling Techniques", 3rd ed., section 6.4): what both have in common cancels.

    Args:
        over: shape [n], with a positive mean.
        under: likewise; values of the same index belong together.
        confidence: of the two-sided interval, in (0, 1).
    """
    return mean_interval(1.0 + over / over.mean() - under / under.mean(), confidence)


class Coefficient(NamedTuple):
    """Posterior of a regression coefficient: a mixture of Student's t over the values of r.

    Of one series, or of each of several: arrays then have their number as first axis.
    """

    correlations: Floats
    """The values of r, shape [k]."""
    weights: Floats
    """Their posterior weights, shape [..., k]."""
    centres: Floats
    """Generalised least squares' estimate for each r, shape [..., k]."""
    errors: Floats
    """Its standard error, shape [..., k]."""
    freedom: int
    information: Floats
    """The regressor's squared length under the correlation, averaged over r: of a constant, the
    number of independent values that a series is worth; shape [...]."""

    @property
    def variance(self) -> Floats:
        """Mean squared error of zero as an estimate, without the t's tails; shape [...]."""
        return dot(self.weights, self.errors**2 + self.centres**2)

    def probability_within(self, bound: Floats | float) -> Floats:
        """The probability that the coefficient lies within ± `bound`; one, or one per series."""
        from scipy.special import stdtr

        ends = np.asarray(bound, dtype=np.float64)[..., None]
        above = stdtr(self.freedom, (ends - self.centres) / self.errors)
        below = stdtr(self.freedom, (-ends - self.centres) / self.errors)
        return dot(self.weights, above - below)

    def half_width(self, confidence: float) -> Floats:
        """The bound within which the coefficient lies with probability `confidence`."""
        from scipy.special import stdtrit

        quantile = float(stdtrit(self.freedom, (1 + confidence) / 2))
        high: Floats = (quantile * self.errors + np.abs(self.centres)).max(axis=-1)
        low: Floats = np.zeros_like(high)
        half = np.minimum(high, quantile * np.sqrt(self.variance))
        # Newton's steps, or halving where one would leave the bracket.
        for _ in range(MOST_ROUNDS):
            lacking = confidence - self.probability_within(half)
            low, high = np.where(lacking > 0, half, low), np.where(lacking > 0, high, half)
            step = lacking / self._density(half)
            if np.all(np.abs(step) <= PRECISION * half):
                break
            is_inside = (low < half + step) & (half + step < high)
            half = np.where(is_inside, half + step, (low + high) / 2)
        return half

    def _density(self, bound: Floats) -> Floats:
        """Of the coefficient at ± `bound`, together: the derivative of probability_within."""
        nu = self.freedom
        scale = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(math.pi * nu)
        both = [(side * bound[..., None] - self.centres) / self.errors for side in (1, -1)]
        density: Floats = sum((1 + t * t / nu) ** (-(nu + 1) / 2) for t in both) / self.errors
        return scale * dot(self.weights, density)


def coefficient(values: Floats, regressors: Sequence[Floats]) -> Coefficient:
    """The last regressor's coefficient where residuals are AR(1), with r integrated out.

    The model is values = sum of b_j * regressor_j + a stationary Gaussian AR(1) residual; priors
    are flat for the b_j, 1/sigma for the residual's standard deviation, and for r as
    :data:`INDEPENDENT` and :data:`HEAVY` say (negative r counts as 0). For a given r the posterior
    of b_j is generalised least squares' Student t, and r has the weight of its marginal likelihood,
    |R|^-1/2 times (product of x_j' R^-1 x_j)^-1/2 times Q^-(n-k)/2 with Q the residual sum of
    squares under R (Zellner & Tiao 1964, "Bayesian Analysis of the Regression Model with
    Autocorrelated Errors", J. Am. Stat. Assoc. 59).

    Args:
        values: one series, shape [n], or several, shape [d, n].
        regressors: each of shape [n], n > their number, mutually orthogonal under every AR(1)
            correlation: a constant, and time around its middle.
    """
    count = values.shape[-1]
    nodes, log_prior = _correlations(count)
    freedom = count - len(regressors)
    rest = _form(values, values, nodes)
    length = estimate = np.ones_like(nodes)
    log_weight = log_prior - (count - 1) / 2 * np.log1p(-(nodes**2))
    for regressor in regressors:
        length = _form(regressor, regressor, nodes)
        estimate = _form(regressor, values, nodes) / length
        rest = rest - estimate**2 * length
        log_weight = log_weight - np.log(length) / 2
    rest = np.maximum(rest, np.finfo(np.float64).tiny)
    log_weight = log_weight - freedom / 2 * np.log(rest)
    log_weight -= log_weight.max(axis=-1, keepdims=True)
    kept = (log_weight > LEAST_LOG_WEIGHT).reshape(-1, len(nodes)).any(axis=0)
    weights = np.exp(log_weight[..., kept])
    weights /= weights.sum(axis=-1, keepdims=True)
    return Coefficient(
        correlations=nodes[kept],
        weights=weights,
        centres=estimate[..., kept],
        errors=np.sqrt(rest / freedom / length)[..., kept],
        freedom=freedom,
        information=dot(weights, length[kept]),
    )


def _form(left: Floats, right: Floats, r: Floats) -> Floats:
    """left' R^-1 right for the AR(1) correlation matrix R of each of `r`; shape [..., k]."""
    product = dot(left, right)
    inner = product - left[..., 0] * right[..., 0] - left[..., -1] * right[..., -1]
    lagged = dot(left[..., 1:], right[..., :-1]) + dot(left[..., :-1], right[..., 1:])
    sums = (np.asarray(part)[..., None] for part in (product, inner, lagged))
    whole, within, beside = sums
    form: Floats = (whole + r**2 * within - r * beside) / (1 - r**2)
    return form


@functools.cache
def _nodes(count: int) -> tuple[Floats, Floats]:
    """Values of r, and the logarithms of their weights, that integrate the prior over r.

    Gauss and Legendre's, in arcsin r: there a likelihood is about equally wide everywhere. Then
    r = 0 itself.
    """
    points, weights = np.polynomial.legendre.leggauss(count)
    angle = math.asin(MOST_CORRELATION) / 2 * (points + 1)
    r = np.sin(angle)
    prior = weights * np.cos(angle) * (1 - r) ** -HEAVY
    prior *= (1 - INDEPENDENT) / prior.sum()
    return np.append(r, 0.0), np.log(np.append(prior, INDEPENDENT))


def _correlations(count: int) -> tuple[Floats, Floats]:
    """The nodes of `count` values: the more values, the narrower is what must be resolved."""
    return _nodes(16 if count < 64 else 32 if count < 256 else 64 if count < 1024 else 128)


def is_constant(values: Floats) -> Bools:
    """Whether series, shape [..., n], vary by no more than rounding."""
    centred = values - values.mean(axis=-1, keepdims=True)
    constant: Bools = dot(centred, centred) <= RANGE_SHARE**2 * dot(values, values)
    return constant


def naive_interval(series: Sequence[float] | Floats) -> Interval:
    """The interval that assumes independent steps, as most studies do; for comparison only."""
    values = np.asarray(series, dtype=np.float64)
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return Interval(mean=mean, low=mean - half, high=mean + half, effective_samples=len(values))


def robust_deviation(values: Floats) -> float:
    """:func:`robust_deviations` of one series, shape [n]."""
    return float(robust_deviations(values))


def robust_deviations(values: Floats) -> Floats:
    """Median absolute deviation, scaled to the standard deviation of a normal distribution.

    As ``scipy.stats.median_abs_deviation(values, scale="normal")``, but ranks call it while they
    measure: importing scipy.stats costs each of them 45 MiB and 0.5 s, and a call takes ten times
    as long.

    Args:
        values: shape [..., n].
    """
    apart = np.abs(values - np.median(values, axis=-1, keepdims=True))
    return np.asarray(MAD_TO_STD * np.median(apart, axis=-1))


def dot(left: Floats, right: Floats) -> Floats:
    """Sum of products over the last axis. Not ``@``: on long series BLAS starts threads on the
    measured cores."""
    return np.asarray(np.sum(left * right, axis=-1))


def _batch_error(series: Floats) -> Floats:
    """Standard errors of means, shape [...], from non-overlapping batch means; 0: too short."""
    size = series.shape[-1] // BATCHES
    if size < MIN_BATCH:
        return np.zeros(series.shape[:-1])
    late = series[..., series.shape[-1] - size * BATCHES :]
    of_batches = late.reshape(*series.shape[:-1], BATCHES, size).mean(axis=-1)
    return np.asarray(of_batches.std(axis=-1, ddof=1) / math.sqrt(BATCHES))
