"""How simulated steps stray from their mean.

AR(1) is what intervals assume; weakly correlated steps are what they are held against. Strong
correlation in short windows, two regimes, slow humps, heavy tails and a drift are the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from benchmarks.scoring import autoregressive
from dpeval.util.arrays import Floats

SOJOURN, REGIME_SHARE = 20, 0.5
"""Steps that a regime lasts on average, and the share of the variance that regimes have."""
PERIOD, HUMP = 60, 15
"""One hump every so many steps, of so many steps and three standard deviations of the noise."""
DRIFT = 0.05
"""Change of the step over the mean: over a window that drifts, or within 100 steps of a run."""
DRIFTING = f"linear drift ({DRIFT:.0%})"
Noise = Callable[[np.random.Generator, int, int], Floats]
"""Noise of mean 0 over the long run: generator, series, steps → shape [series, steps]."""


def regimes(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """Two levels, between which a series switches at random, under white noise."""
    begin = generator.integers(0, 2, (series, 1))
    switches = generator.random((series, steps - 1)) < 1 / SOJOURN
    level = np.c_[begin, begin + np.cumsum(switches, axis=1)] % 2 * 2 - 1
    white = generator.normal(size=(series, steps))
    made: Floats = np.sqrt(REGIME_SHARE) * level + np.sqrt(1 - REGIME_SHARE) * white
    return made


def humps(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """White noise under humps that come at regular times; a series begins anywhere."""
    phase = (generator.integers(0, PERIOD, (series, 1)) + np.arange(steps)) % PERIOD
    hump = 3 * np.where(phase < HUMP, np.sin(np.pi * (phase + 0.5) / HUMP), 0.0)
    mean = 3 * float(np.sin(np.pi * (np.arange(HUMP) + 0.5) / HUMP).sum()) / PERIOD
    made: Floats = generator.normal(size=(series, steps)) + hump - mean
    return made


def heavy_tails(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """Independent, Student's t with 3 degrees of freedom, of variance 1."""
    made: Floats = generator.standard_t(3, (series, steps)) / np.sqrt(3.0)
    return made


def drift(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """White noise; the line is added by what knows how long it is."""
    made: Floats = generator.normal(size=(series, steps))
    return made


MODELLED: dict[str, Noise] = {
    f"AR(1), r = {rho:g}": functools.partial(autoregressive, rho) for rho in (0.0, 0.3, 0.6)
}
OTHERS: dict[str, Noise] = {
    **{f"AR(1), r = {rho:g}": functools.partial(autoregressive, rho) for rho in (0.8, 0.9)},
    "two regimes": regimes,
    "slow humps": humps,
    "heavy tails (t3)": heavy_tails,
    DRIFTING: drift,
}
