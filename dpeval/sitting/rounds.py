"""The order of turns and their length.

A turn must be shorter than the correlation time of disturbances, about 2 s on a shared virtual
machine: then the runs of one round see the same machine speed, which cancels in their ratios
(randomised multiple interleaved trials: Abedi & Brecht 2017, "Conducting Repeatable Experiments in
Highly Variable Cloud Computing Environments", ICPE)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

TURN_S = 0.25
"""A turn lasts about this long: long compared with the extra cost of its first step, and short
compared with the disturbances."""


def orders(kinds: Sequence[int], seed: int) -> Iterator[list[int]]:
    """The order of turns in every round, endlessly.

    Rounds come in pairs: a random order, then its reverse, so that every turn is on average in the
    middle of a pair and a linear drift within it cancels. The kinds of turns of one run lie side
    by side, because its efficiency factors are their ratios.

    Args:
        kinds: how many kinds of turns each run takes; all turns are numbered from 0, run by run.
        seed: of the random orders.
    """
    ends = list(itertools.accumulate(kinds))
    runs = [range(end - size, end) for size, end in zip(kinds, ends, strict=True)]
    shuffler = random.Random(seed)
    while True:
        shuffled = shuffler.sample(runs, len(runs))
        order = [turn for run in shuffled for turn in shuffler.sample(run, len(run))]
        yield order
        yield order[::-1]


def turn_steps(typical_step_s: float | None) -> int:
    """Steps in one turn of a run whose steps take `typical_step_s`; None if that is unknown."""
    if not typical_step_s:
        return 1
    return max(1, math.ceil(TURN_S / typical_step_s - 0.25))


def waves_that_fit(
    needs: Sequence[int | None], free: int, bases: Sequence[int | None]
) -> list[list[int]]:
    """The runs that memory holds together, one wave of them after another.

    A base stays until the last wave that has a run compared with it, so that both have rounds in
    common. Each run is in the earliest wave that has room for it.

    Args:
        needs: memory of each run, bytes; None if unknown: such a run has the machine for itself.
        free: bytes for all of them.
        bases: per run, the one that it is compared with; None: it has none.

    Returns:
        Per wave, its runs in order; only bases are in several.
    """
    waves: list[set[int]] = []

    def fits(runs: set[int]) -> bool:
        known = [need for need in (needs[run] for run in runs) if need is not None]
        return len(runs) == 1 or (len(known) == len(runs) and sum(known) <= free)

    def widened(run: int) -> Iterator[list[set[int]]]:
        """The waves with `run` in one of them, and with its base there and in all before."""
        base = bases[run]
        first = next((n for n, wave in enumerate(waves) if base in wave), 0)
        for last in range(first, len(waves) + 1):
            made = [set(wave) for wave in waves] + [set[int]()] * (last == len(waves))
            if base is not None:
                for wave in made[first : last + 1]:
                    wave.add(base)
            made[last].add(run)
            yield made

    for run in sorted(range(len(needs)), key=lambda run: bases[run] is not None):
        fitting = (found for found in widened(run) if all(map(fits, found)))
        waves = next(fitting, [*waves, {run}])
    return [sorted(wave) for wave in waves]
