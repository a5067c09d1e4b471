"""Machine speed during a run, from reference work that never changes.

Neighbours of a virtual machine slow it down by several per cent for minutes, and no counter inside
it shows this. A small piece of constant work between steps does show it: products of small matrices
(arithmetic and clock) and fresh pages (memory and the cost of a page fault). Copying memory would
measure the latter more directly, but with two ranks a copy of 4 MiB takes 0.2 or 0.4 ms depending
on the state of the caches. This module evaluates the times that
:mod:`dpeval.instruments.reference_work` takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpeval.record.reference_times import ReferenceTimes
from dpeval.util.display.ranges import percent

CHANGE = 0.03
"""Most machines always change speed by up to this fraction."""
SCORE = 5.0
"""… and a change must be as unlikely as this many standard errors of a normal distribution: over
many runs, none is due to chance."""
PARTS = 3
"""The window is compared in thirds …"""
MANY_READINGS = 6 * PARTS
"""… with this many readings or more, and in halves with fewer."""
MIN_READINGS = 8
"""With fewer, every change could be due to chance."""


def typical_s(readings: Sequence[ReferenceTimes]) -> float | None:
    """Median time of the reference work over ranks and readings, s; None without readings."""
    values = [value for one in readings for value in one.work_s]
    return float(np.median(values)) if values else None


def page_s(readings: Sequence[ReferenceTimes]) -> float | None:
    """Time of an undisturbed page fault, s; None without readings."""
    return min((value for one in readings for value in one.page_s), default=None)


def changed(readings: ReferenceTimes) -> tuple[float, float] | None:
    """Median times of the fastest and slowest part, s; None if they may differ by chance.

    The spread within the parts is an estimate, so the bound is a quantile of Student's t: with 8
    readings only a change of more than about 19 times the spread counts, with 12 of 8 times.
    """
    from scipy.special import ndtr, stdtrit  # late: only records and reports need it

    work = readings.work_s
    if len(work) < MIN_READINGS:
        return None
    count = PARTS if len(work) >= MANY_READINGS else 2
    parts = np.array_split(work, count)
    medians = [float(np.median(part)) for part in parts]
    rest = np.concatenate([part - m for part, m in zip(parts, medians, strict=True)])
    freedom = len(work) - count
    spread = float(np.sqrt((rest**2).sum() / freedom))
    # The standard error of a median of normal values is 1.25 times that of their mean.
    error = 1.25 * spread / np.sqrt(len(work) / count)
    low, high = min(medians), max(medians)
    score = float(stdtrit(freedom, ndtr(SCORE)))
    if high - low <= max(CHANGE * low, score * np.sqrt(2) * error):
        return None
    return low, high


def not_measured(readings: Sequence[ReferenceTimes]) -> str | None:
    """What too few readings leave unmeasured; None if every rank has enough."""
    fewest = min((len(one.step) for one in readings), default=MIN_READINGS)
    if fewest >= MIN_READINGS:
        return None
    return (
        f"changes of the machine's own speed ({fewest} readings of the reference work in the "
        f"window; {MIN_READINGS} are needed)"
    )


def disturbances(readings: Sequence[ReferenceTimes]) -> list[str]:
    """Changes in machine speed that make a run's figures less trustworthy."""
    found = [(pair, rank) for rank, one in enumerate(readings) if (pair := changed(one))]
    if not found:
        return []
    (low, high), rank = max(found, key=lambda item: item[0][1] / item[0][0])
    return [
        f"the machine itself was up to {percent(high / low - 1)} slower in parts of the window: "
        f"reference work took rank {rank} {1e3 * low:.2f} to {1e3 * high:.2f} ms"
    ]
