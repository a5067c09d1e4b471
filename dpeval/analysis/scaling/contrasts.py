"""Configurations against each other: by the rounds that they shared, or else as independent.

What compares two configurations, be it a speedup, the best of several, or what would tell them
apart, takes the difference of their log throughput and its error from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from dpeval.analysis.pooling.repetitions import TURNS
from dpeval.stats import paired
from dpeval.stats.best import Differences
from dpeval.stats.comparison import quantile
from dpeval.util.arrays import Bools, Floats


@dataclass(frozen=True)
class Contrasts:
    """The differences of log throughput between configurations, in the order of their rows."""

    differences: Differences
    is_paired: Bools
    """Which come from rounds that both shared, shape [k, k]; the diagonal has no meaning."""
    sittings: Floats
    """From how many sittings; 0: not paired."""

    def among(self, places: Sequence[int]) -> Contrasts:
        """Those of some of the rows."""
        chosen = np.ix_(places, places)
        return Contrasts(
            self.differences.among(places), self.is_paired[chosen], self.sittings[chosen]
        )

    def ratio(self, over: int, under: int) -> tuple[float, float, float]:
        """The throughput of one row over that of another, and its 95 % interval."""
        value, error, freedom = (
            float(table[over, under])
            for table in (self.differences.value, self.differences.error, self.differences.freedom)
        )
        half = float(quantile(0.975, freedom)) * error
        centre, low, high = (math.exp(value + side * half) for side in (0, -1, 1))
        return centre, low, high

    @property
    def are_paired(self) -> bool:
        """Whether every two of them took turns."""
        return bool((self.is_paired | np.eye(len(self.is_paired), dtype=np.bool_)).all())


def took_turns(rows: pd.DataFrame) -> bool:
    """Whether every two of these configurations took turns."""
    return len(rows) > 1 and all(paired.share_rounds(*two) for two in combinations(rows[TURNS], 2))


def contrasts(rows: pd.DataFrame) -> Contrasts:
    """The throughput of every two configurations compared.

    Two that took turns are compared by their rounds, in which the drift of the machine cancels.
    Others count as independent, with the spread between runs.

    Args:
        rows: of :func:`~dpeval.analysis.pooling.repetitions.pool`, measured, in any order.
    """

    def column(name: str) -> Floats:
        return np.asarray(rows[name].to_numpy(dtype=float))

    # An assumed spread (NaN) counts as known.
    freedom = np.nan_to_num(column("spread_freedom"), nan=math.inf)
    found = Differences.of_independent(np.log(column("img_per_s")), column("error_share"), math.inf)
    found.freedom[...] = np.minimum.outer(freedom, freedom)
    sittings = _by_rounds(found, list(rows[TURNS]))
    return Contrasts(found, sittings > 0, sittings)


def with_energy_by_rounds(
    found: Differences, turns: Sequence[Sequence[paired.Turns]]
) -> Differences:
    """`found`, with those of runs whose energy is known by round from the rounds that both shared.

    Args:
        found: differences of log samples per joule.
        turns: of every configuration.
    """
    made = Differences(found.value.copy(), found.error.copy(), found.freedom.copy())
    _by_rounds(made, [[one.in_energy for one in several] for several in turns])
    return made


def _by_rounds(found: Differences, turns: Sequence[Sequence[paired.Turns]]) -> Floats:
    """Replace the differences of those that took turns; return from how many sittings each is."""
    sittings = np.zeros(found.value.shape)
    for i, j in combinations([place for place, one in enumerate(turns) if one], 2):
        one = paired.contrast(turns[i], turns[j])
        if one is not None:
            found.value[i, j], found.value[j, i] = one.value, -one.value
            for place in ((i, j), (j, i)):
                found.error[place], found.freedom[place] = one.error, one.freedom
                sittings[place] = one.sittings
    return sittings
