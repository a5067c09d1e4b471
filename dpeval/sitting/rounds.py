"""The order of turns and their length.

A turn must be shorter than the correlation time of disturbances, about 2 s on a shared virtual
machine: then the runs of one round see the same machine speed, which cancels in their ratios
(randomised multiple interleaved trials: Abedi & Brecht 2017, "Conducting Repeatable Experiments in
Highly Variable Cloud Computing Environments", ICPE)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

TURN_S = 0.25
"""A turn lasts about this long: long compared with the extra cost of its first step, and short
compared with the disturbances."""


def orders(runs: int, seed: int) -> Iterator[list[int]]:
    """The order of turns in every round, endlessly.

    Rounds come in pairs: a random order, then its reverse, so that every run is on average in the
    middle of a pair and a linear drift within it cancels.

    Args:
        runs: how many runs take turns; they are numbered from 0.
        seed: of the random orders.
    """
    shuffler = random.Random(seed)
    while True:
        order = shuffler.sample(range(runs), runs)
        yield order
        yield order[::-1]


def turn_steps(typical_step_s: float | None) -> int:
    """Steps in one turn of a run whose steps take `typical_step_s`; None if that is unknown."""
    if not typical_step_s:
        return 1
    return max(1, math.ceil(TURN_S / typical_step_s - 0.25))


def groups_that_fit(needs: list[int | None], free: int) -> list[list[int]]:
    """Groups of runs that fit into memory together, by first fit; runs keep their order.

    Args:
        needs: memory of each run, bytes; None if unknown, which gives the run the machine to
            itself.
        free: memory for a group, bytes.
    """
    groups: list[list[int]] = []
    taken: list[int] = []
    for run, need in enumerate(needs):
        if need is not None:
            fitting = (
                index for index, held in enumerate(taken) if held >= 0 and held + need <= free
            )
            index = next(fitting, None)
            if index is not None:
                groups[index].append(run)
                taken[index] += need
                continue
        groups.append([run])
        taken.append(-1 if need is None else need)
    return groups
