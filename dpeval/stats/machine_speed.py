"""How fast the machine itself was while a run was measured, by work that never changes.

The neighbours of a virtual machine slow it down by several per cent for minutes, and no counter
inside shows it. The same small work done between steps does: products of small matrices
(arithmetic and clock), and fresh pages (memory, and what a page fault costs). A copy within
memory would be the plainer measure of the latter, but with two ranks one of 4 MiB takes 0.2 or
0.4 ms as it happens to find the caches. This module only reads the times;
:mod:`dpeval.instruments.reference_work` takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpeval.record.reference_times import ReferenceTimes

CHANGE = 0.03
"""A change of the machine's speed below this is on most machines always there."""
SCORE = 5.0
"""… and it must be this many standard errors: of the many pairs of many runs none by chance."""
PARTS = 3
"""A window is judged by its thirds."""
MIN_READINGS = 6 * PARTS


def typical_s(readings: Sequence[ReferenceTimes]) -> float | None:
    """The median time of the fixed work over ranks and readings, s; None without any."""
    values = [value for one in readings for value in one.work_s]
    return float(np.median(values)) if values else None


def page_s(readings: Sequence[ReferenceTimes]) -> float | None:
    """What a page fault takes where nothing holds it up, s; None without any reading."""
    return min((value for one in readings for value in one.page_s), default=None)


def changed(readings: ReferenceTimes) -> tuple[float, float] | None:
    """The fastest and the slowest third's median work, s, where they differ beyond chance."""
    work = readings.work_s
    if len(work) < MIN_READINGS:
        return None
    parts = np.array_split(work, PARTS)
    medians = [float(np.median(part)) for part in parts]
    rest = np.concatenate([part - m for part, m in zip(parts, medians, strict=True)])
    spread = float(np.sqrt((rest**2).sum() / (len(work) - PARTS)))
    # Of a median of normal values the standard error is 1.25 times that of their mean.
    error = 1.25 * spread / np.sqrt(len(work) / PARTS)
    low, high = min(medians), max(medians)
    if high - low <= max(CHANGE * low, SCORE * np.sqrt(2) * error):
        return None
    return low, high


def words(readings: Sequence[ReferenceTimes]) -> list[str]:
    """What the readings of a run's ranks say against its figures, in words."""
    found = [(pair, rank) for rank, one in enumerate(readings) if (pair := changed(one))]
    if not found:
        return []
    (low, high), rank = max(found, key=lambda item: item[0][1] / item[0][0])
    return [
        f"the machine itself was up to {high / low - 1:.0%} slower in parts of the window: fixed "
        f"work between steps took rank {rank} {1e3 * low:.2f} to {1e3 * high:.2f} ms"
    ]
