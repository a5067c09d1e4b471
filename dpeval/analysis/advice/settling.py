"""What would settle an undecided comparison: a command and the time that it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpeval.analysis.advice.commands import listed, sweeping
from dpeval.analysis.scaling.best_configuration import (
    LEAST_GAP,
    THROUGHPUT,
    Candidate,
    Choice,
    differences,
)
from dpeval.analysis.scaling.contrasts import Contrasts, contrasts
from dpeval.analysis.scaling.speedup import having
from dpeval.config import SERIAL, MeasureConfig
from dpeval.stats.best import dunnett
from dpeval.stats.comparison import quantile
from dpeval.util.arrays import Floats
from dpeval.util.display.ranges import percent

POWER = 0.8
"""Probability that the repetitions settle the comparison."""
LEAST_REPEATS, MOST_REPEATS = 2, 100
"""What would take more runs of each is to be measured on a machine with less noise …"""
LONGEST_S = 24 * 3600.0
"""… and so is what would take longer: nobody would wait, and no preset measures that long."""
STANDARD = MeasureConfig()
LONGER, LONGER_ERROR = STANDARD.name, STANDARD.rel_precision / 2
"""How to measure where runs were too short, and the standard error that such a run aims at."""


@dataclass(frozen=True)
class Settling:
    """Runs that would tell the candidates apart."""

    repeats: int
    """Of each candidate, beyond those that there are."""
    measure: str
    """How to measure them, if more precisely than those that there are; empty: as they are."""
    seconds: float
    """How long they take together, from the records; NaN if unknown."""
    command: str
    """What to type; empty if no record names its command."""
    is_close: bool = False
    """Whether the best means differ by less than :data:`LEAST_GAP`, so that these runs would only
    show a difference of that size."""

    @property
    def purpose(self) -> str:
        """What they would do."""
        gap = f"tell whether they differ by {percent(LEAST_GAP)}"
        return gap if self.is_close else "tell them apart"

    @property
    def is_reasonable(self) -> bool:
        """Whether anybody would measure that often and wait that long."""
        is_short = not self.seconds > LONGEST_S  # true of NaN, too
        return is_short and self.repeats <= MOST_REPEATS


def settling(runs: pd.DataFrame, points: pd.DataFrame, choice: Choice) -> Settling | None:
    """How to tell which of the configurations that could be the best is the best.

    The number of runs n resolves the difference g between the best mean and the next one where a
    run has the standard error s: n = 2 (s (d + z) / g)², with Dunnett's quantile d and the normal
    quantile z of :data:`POWER`. Of runs that took turns, a sitting knows g to √2 s. A g below
    :data:`LEAST_GAP` counts as that. Where the runs' own
    steps leave more open than the spread between runs, longer runs are proposed
    (:data:`LONGER`), which take longer by the square of the gain in precision, up to their limit.
    Local runs that took no turns are to take them: what slows the machine then slows all alike.
    Where the question is which is the fastest, a sitting is to end when that is known.

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`).
        points: one row per measured configuration.
        choice: what is undecided.

    Returns:
        None where there is nothing to settle, also because they are known to be equal, or an error
        is unknown.
    """
    if choice.best is None or not choice.ties or choice.are_equal:
        return None
    rows = [row_of(points, choice, one) for one in choice.able]
    if any(math.isnan(row["error_share"]) for row in rows):
        return None
    spread, within = (
        max(float(row[name]) for row in rows) for name in ("spread_share", "within_share")
    )
    compared = contrasts(pd.DataFrame(rows))
    is_paired = compared.are_paired
    is_longer = within > max(spread, LONGER_ERROR) and not is_paired
    counts = sorted({one.num_devices for one in choice.able})
    batches = sorted({one.batch for one in choice.able})
    same = having(runs, choice.key)
    again = same[same["num_devices"].isin(counts) & same["batch"].isin(batches)]
    wall_s, longer = float(again["wall_s"].mean()), 1.0
    if is_longer:
        longer = min((within / LONGER_ERROR) ** 2, 1 + STANDARD.longest_s / max(wall_s, 1.0))
    errors = np.full(len(rows) - 1, math.hypot(spread, np.nan_to_num(within) / math.sqrt(longer)))
    if is_paired:
        errors = _paired_errors(compared)
    gaps = differences([row.to_dict() for row in rows], compared, choice.objective).value[0, 1:]
    score = dunnett(len(choice.ties), 0.5, math.inf) + float(quantile(POWER, math.inf))
    wanted = math.ceil(float((2 * (errors * score / np.maximum(gaps, LEAST_GAP)) ** 2).max()))
    done = 0 if is_longer else int(min(row["n_runs"] for row in rows))
    repeats = max(LEAST_REPEATS, wanted - done)
    seconds = wall_s * longer * repeats * len(counts) * len(batches)
    measure = LONGER * is_longer
    swept = {"measure": measure} if measure else {}
    if choice.objective is THROUGHPUT:
        swept["measure.until"] = "best"
    swept |= {"num_devices": listed(counts), "batch": listed(batches), "repeat": str(repeats)}
    if any(row["strategy"] == SERIAL for row in rows):
        swept["baseline"] = "serial"
    # All limits of a shorter measurement go with it.
    left_out = ["measure."] if measure else []
    command = sweeping(again, swept, left_out=left_out, turns=not is_paired)
    return Settling(repeats, measure, seconds, command, bool(gaps.min() < LEAST_GAP))


def _paired_errors(compared: Contrasts) -> Floats:
    """Standard errors of runs that took turns with the first, as those of independent ones."""
    return np.asarray(compared.differences.error[0, 1:] * np.sqrt(compared.sittings[0, 1:] / 2))


def row_of(points: pd.DataFrame, choice: Choice, one: Candidate) -> pd.Series[float]:
    """The row of one candidate.

    Args:
        points: one row per measured configuration.
        choice: names the family.
        one: the candidate.
    """
    wanted = {**choice.key, "num_devices": one.num_devices, "batch": one.batch}
    return having(points, wanted).iloc[0]


def time_text(seconds: float) -> str:
    """A duration to one or two digits: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
