"""What intervals are worth that were made of simulated noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpeval.util.arrays import Floats


def autoregressive(rho: float, generator: np.random.Generator, series: int, steps: int) -> Floats:
    """Stationary normal AR(1) of variance 1."""
    state = generator.normal(0, np.sqrt(1 - rho**2), (series, steps))
    state[:, 0] = generator.normal(size=series)
    for index in range(1, steps):
        state[:, index] += rho * state[:, index - 1]
    return state


def autoregressive_series(generator: np.random.Generator, count: int, rho: float) -> Floats:
    """One series of :func:`autoregressive`."""
    series: Floats = autoregressive(rho, generator, 1, count)[0]
    return series


@dataclass(frozen=True)
class Score:
    """What intervals of one kind are worth."""

    covered: float
    median: float
    """Median half-width, over the truth."""
    wide: float
    """97.5 % quantile of the half-width, over the truth."""

    def __str__(self) -> str:
        return f"{self.covered:6.1%} ±{self.median:5.1%} ({self.wide:6.1%})"


def score(intervals: Sequence[tuple[float, float]], truth: float) -> Score:
    """Coverage and half-widths of `intervals` (low, high)."""
    low, high = np.array(intervals).T
    half = (high - low) / 2 / truth
    return Score(
        covered=float(((low <= truth) & (truth <= high)).mean()),
        median=float(np.median(half)),
        wide=float(np.quantile(half, 0.975)),
    )


def scored_logs(error: Floats, half: Floats) -> Score:
    """Of intervals of a logarithm: by how much each is off, and its half-width."""
    return score(list(zip(np.exp(error - half), np.exp(error + half), strict=True)), 1.0)
