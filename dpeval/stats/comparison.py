"""Tests of many differences at once, each between two groups of runs.

Every function takes arrays whose last axis is the configurations; earlier axes are independent
families, as in a simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dpeval.util.arrays import Floats

LARGEST_SPREAD = 0.05
"""Relative standard deviation between runs, assumed if there are no repetitions: the upper end of
the 2–5 % measured on an undisturbed virtual machine. With less, identical sweeps would be called
different on such a machine."""
LEAST_FREEDOM = 3
"""Fewer degrees of freedom give no useful variance: with one, Student's factor is 12.7."""


@dataclass(frozen=True)
class Error:
    """The standard error of each difference of log throughput."""

    value: Floats
    freedom: Floats
    """Degrees of freedom; infinite where the spread between runs is assumed."""


def error_of_difference(
    seen: ArrayLike,
    own: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    assumed_spread: float = LARGEST_SPREAD,
) -> Error:
    """The standard error of the difference between the means of two groups of runs.

    Repetitions of the configuration itself give its variance, at before + after - 2 degrees of
    freedom: pooled over configurations of unequal spread, the noisiest would be called changed.
    With fewer than :data:`LEAST_FREEDOM`, a spread is assumed, or what the repetitions show if
    that is more.

    Args:
        seen: variance of log throughput among the runs of a group, both groups pooled; any value
            where nothing was repeated.
        own: squared standard error of a single run's log throughput, from its own steps.
        before: number of runs of the first group, at least 1.
        after: of the second.
        assumed_spread: standard deviation between runs where too few repetitions show it.
    """
    runs = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    freedom = runs[0] + runs[1] - 2
    within = np.asarray(own, dtype=float)
    shown = np.where(freedom > 0, np.asarray(seen, dtype=float), 0.0)
    is_measured = freedom >= LEAST_FREEDOM
    assumed = np.maximum(shown, assumed_spread**2 + within)
    # A few repetitions can agree by chance, so never assume less than the error from the runs' own
    # steps.
    variance = np.where(is_measured, np.maximum(shown, within), assumed)
    # Identical times (constructed, or a coarse clock) have no error at all.
    value = np.sqrt(np.maximum(variance * (1 / runs[0] + 1 / runs[1]), 1e-18))
    return Error(value, np.where(is_measured, freedom, np.inf) * np.ones_like(value))


def p_values(difference: ArrayLike, error: Error) -> Floats:
    """Two-sided p-values of no difference, adjusted by :func:`holm`."""
    score = np.abs(np.asarray(difference, dtype=float)) / error.value
    return holm(np.minimum(1.0, 2 * upper_tail(score, error.freedom)))


def p_lower(difference: ArrayLike, error: Error, limit: float) -> Floats:
    """One-sided p-values of "the difference is not below a limit", adjusted by :func:`holm`.

    Args:
        difference: of log throughput, shape [..., configurations].
        error: of each difference.
        limit: the limit, of log throughput.
    """
    return holm(
        upper_tail((limit - np.asarray(difference, dtype=float)) / error.value, error.freedom)
    )


def detectable(error: Error, family_error: float, power: float = 0.8) -> Floats:
    """The size of a difference that is found with probability `power`.

    That of the first step of Holm's method, where nothing else has changed.

    Args:
        error: of each difference, shape [..., configurations].
        family_error: probability of finding any difference where there is none.
        power: in (0, 1).
    """
    chance = 1 - family_error / 2 / error.value.shape[-1]
    return np.asarray(
        error.value * (quantile(chance, error.freedom) + quantile(power, error.freedom))
    )


def holm(values: ArrayLike) -> Floats:
    """p-values adjusted along the last axis by Holm's step-down method.

    It keeps the family-wise error under any dependence (Holm 1979, Scand. J. Statist. 6(2)).
    """
    given = np.asarray(values, dtype=float)
    order = np.argsort(given, axis=-1)
    left = given.shape[-1] - np.arange(given.shape[-1])
    stepped = np.minimum(1.0, np.take_along_axis(given, order, axis=-1) * left)
    adjusted = np.empty_like(given)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(stepped, axis=-1), axis=-1)
    return adjusted


def upper_tail(value: ArrayLike, freedom: ArrayLike) -> Floats:
    """P(T > value) of Student's t; of the normal distribution for infinite `freedom`."""
    # Late, here and below: it takes a tenth of a second.
    from scipy.special import ndtr, stdtr

    degrees, below = np.asarray(freedom, dtype=float), -np.asarray(value, dtype=float)
    is_normal = np.isinf(degrees)
    finite = np.where(is_normal, 1.0, degrees)
    return np.asarray(np.where(is_normal, ndtr(below), stdtr(finite, below)))


def quantile(probability: ArrayLike, freedom: ArrayLike) -> Floats:
    """The quantile of Student's t; of the normal distribution for infinite `freedom`."""
    from scipy.special import ndtri, stdtrit

    degrees, chance = np.asarray(freedom, dtype=float), np.asarray(probability, dtype=float)
    is_normal = np.isinf(degrees)
    finite = np.where(is_normal, 1.0, degrees)
    return np.asarray(np.where(is_normal, ndtri(chance), stdtrit(finite, chance)))
