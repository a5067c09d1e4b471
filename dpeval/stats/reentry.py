"""The extra cost of the first steps of a turn, estimated from the turns themselves.

After another run's turn, caches are cold, pages may be gone and clocks may have fallen. That is not
part of training, so exactly the steps that show it are left out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from dpeval.record.measurement import Reentry
from dpeval.stats.comparison import quantile
from dpeval.util.arrays import Bools, Floats, Ints

MIN_TURNS = 6
"""Fewer turns cannot show it."""
MOST_STEPS = 3
CONFIDENCE = 0.99
"""Confidence of the interval that must exclude zero cost; high, because the test is repeated after
every few turns."""
LEAST_COST = 0.005
"""An extra cost below this fraction of a step does not bias a ratio, since both runs pay it."""


def reentry(step_s: Sequence[float] | Floats, rounds: Sequence[int], first: int) -> Reentry:
    """Which steps at the start of a turn differ from the rest.

    Each step is compared with the later steps of its turn, by Student's t over the logarithms of
    the turns' ratios, until one does not clearly take longer.

    Args:
        step_s: all steps, s, shape [n].
        rounds: the round of each, ascending, shape [at least n].
        first: the first step of the steady state; turns that begin earlier do not count.
    """
    values = np.asarray(step_s, dtype=np.float64)
    turns = _turns(values, np.asarray(rounds[: len(values)]), first)
    found = Reentry()
    for steps in range(MOST_STEPS):
        ratios = [
            float(np.log(turn[steps] / turn[steps + 1 :].mean()))
            for turn in turns
            if len(turn) >= steps + 2
        ]
        if len(ratios) < MIN_TURNS:
            break
        error = float(np.std(ratios, ddof=1)) / np.sqrt(len(ratios))
        mean, freedom = float(np.mean(ratios)), len(ratios) - 1
        if steps == 0:
            half = float(quantile(0.975, freedom)) * error
            found = Reentry(cost=float(np.expm1(mean)), cost_half=half)
        differs = mean > float(quantile((1 + CONFIDENCE) / 2, freedom)) * error
        if not (differs and mean > LEAST_COST):
            break
        found = found.model_copy(update={"steps": steps + 1})
    return found


def _turns(values: Floats, rounds: Ints, first: int) -> list[Floats]:
    """The steps of each turn that begins in the steady state."""
    if len(values) == 0:
        return []
    begins = [0, *(np.flatnonzero(np.diff(rounds)) + 1).tolist(), len(values)]
    pairs = itertools.pairwise(begins)
    return [values[begin:end] for begin, end in pairs if begin >= first]


def kept(rounds: Sequence[int], steps: int) -> Bools:
    """Which steps are not among the first `steps` of their turn, shape [len(rounds)], bool.

    The first step of a run is kept: it shows what starting costs, and lies in the warm-up.
    """
    numbers = np.asarray(rounds)
    if not len(numbers):
        return np.zeros(0, dtype=bool)
    begins = np.flatnonzero(np.concatenate([[True], np.diff(numbers) != 0]))
    lengths = np.diff([*begins, len(numbers)])
    place = np.arange(len(numbers)) - np.repeat(begins, lengths)
    found: Bools = place >= steps
    found[0] = True
    return found
