"""How far a run is, in words, and how long the rest of a sweep takes at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dpeval.instruments.step_buffer import Stage
from dpeval.record.codes import SHORT_STOPS
from dpeval.run.job import Job, Snapshot
from dpeval.util.display.plural import counted
from dpeval.util.display.ranges import span

STAGE_NAMES = {
    Stage.STARTING: "starting",
    Stage.WARM_UP: "warm-up",
    Stage.MEASURING: "measuring",
    Stage.ABLATION: "ablation",
    Stage.FINISHED: "done",
}
_MINUTE_S, _HOUR_S = 60, 3600


class TimeLeft:
    """The longest time that the runs of a sweep may still measure, of which one does at a time.

    Starting processes and preparing data come on top: they have no limit to count with.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._left_s = {job.folder: _longest_s(job) for job in jobs}
        self._ended: set[Path] = set()

    def progress(self, job: Job, snapshot: Snapshot) -> None:
        """Note how far a run is."""
        measure = job.config.measure
        left_s = max(0.0, measure.longest_s - snapshot.elapsed_s)
        if snapshot.stage in (Stage.ABLATION, Stage.FINISHED):
            left_s = min(left_s, measure.longest_s - measure.time_limit_s)
        if job.folder in self._left_s:
            self._left_s[job.folder] = min(left_s, self._left_s[job.folder])

    def ended(self, job: Job) -> None:
        """Note that a run has ended, or was skipped."""
        self._left_s[job.folder] = 0.0
        self._ended.add(job.folder)

    @property
    def runs_done(self) -> int:
        """How many runs have ended."""
        return len(self._ended)

    @property
    def is_over(self) -> bool:
        """Whether every run has ended."""
        return self.runs_done >= len(self._left_s)

    def words(self) -> str:
        """``2 of 6 runs done, at most 4 min of measuring left``."""
        left = duration(sum(self._left_s.values()))
        runs = counted(len(self._left_s), "run")
        return f"{self.runs_done} of {runs} done, at most {left} of measuring left"


def progress_text(snapshot: Snapshot, job: Job | None = None, *, is_brief: bool = False) -> str:
    """Stage, steps done, throughput so far with its interval, and the longest time remaining.

    Args:
        snapshot: the progress.
        job: tells the limits; None: leave the time remaining out.
        is_brief: leave the intervals out, too.
    """
    stage = STAGE_NAMES[snapshot.stage]
    if snapshot.stopped_by is not None:
        stage = SHORT_STOPS[snapshot.stopped_by]
    words = f"{stage}, {counted(snapshot.steps, 'step')}"
    if snapshot.img_per_s:
        rate = f" {snapshot.unit}/s"
        width = None if is_brief else snapshot.rel_half_width
        words += f", {_shown(snapshot.img_per_s, width, 1, rate)}"
    if (ratio := snapshot.speedup) is not None:
        words += f", speedup {_shown(ratio.mean, None if is_brief else ratio.rel_half_width, 2)}"
    if job is not None and snapshot.stage in (Stage.WARM_UP, Stage.MEASURING):
        left_s = max(0.0, job.config.measure.time_limit_s - snapshot.elapsed_s)
        words += f", at most {left_s:.0f} s left"
    return words


def _shown(value: float, rel_half_width: float | None, decimals: int, unit: str = "") -> str:
    """A rate with its interval, if wanted, which is symmetric in the logarithm."""
    if rel_half_width is None:
        return f"{value:.{decimals}f}{unit}"
    factor = math.exp(math.asinh(rel_half_width))
    return f"{value:.{decimals}f}{unit} {span(value, value / factor, value * factor, decimals)}"


def share_done(job: Job, snapshot: Snapshot) -> float:
    """Fraction of the way to the requested precision or the time limit, whichever is nearer."""
    limit = snapshot.elapsed_s / job.config.measure.time_limit_s
    if not snapshot.rel_half_width:
        return min(0.99, limit)
    # An interval shrinks with the square root of the samples.
    precision = (job.config.measure.rel_precision / snapshot.rel_half_width) ** 2
    return min(0.99, max(limit, precision))


def _longest_s(job: Job) -> float:
    return job.config.measure.longest_s if job.plan.skip is None else 0.0


def duration(seconds: float) -> str:
    """A time as people say it: ``45 s``, ``4 min``, ``1 h 05 min``."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S - _MINUTE_S / 2:
        return f"{seconds / _MINUTE_S:.0f} min"
    minutes = round(seconds / _MINUTE_S)
    return f"{minutes // 60} h {minutes % 60:02d} min"
