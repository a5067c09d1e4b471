"""How far a run is, and how long the rest of a sweep takes at most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpeval.instruments.step_buffer import Stage
from dpeval.run.job import Job, Snapshot
from dpeval.util.display.plural import counted

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
