"""The order of turns and their length.

A turn must be shorter than the memory of what disturbs a machine, some 2 s on a shared virtual
machine: then the runs of one round meet the same machine, and its speed cancels in their ratios
(randomised multiple interleaved trials: Abedi & Brecht 2017, "Conducting Repeatable Experiments in
Highly Variable Cloud Computing Environments", ICPE).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

TURN_S = 0.25
"""A turn lasts about this long: long against what its first step may cost more than the others,
and short against the disturbances."""


def orders(runs: int, seed: int) -> Iterator[list[int]]:
    """The order of turns in every round, without end.

    Rounds come in pairs: a random order, then the same backwards, so that each run is as early as
    late in a pair, and a drift within it cancels.

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
    """Runs that memory can hold together, first fit; the order of runs is kept within a group.

    Args:
        needs: memory of each run, bytes; None if unknown: such a run has the machine for itself.
        free: bytes for all of them.
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
