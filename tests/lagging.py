"""A device that lags behind the host, as a GPU does; it computes on the CPU.

What a CPU cannot show appears with it: steps that were taken and cannot yet be read, and times
that may be asked for only after the device has passed them.

    device = LaggingDevice(lag=20)                  # in this process, wherever a Device is wanted
    Process(target=run_lagging_rank, args=(20, task, step_buffer, pipe))   # a whole rank
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from dpeval.devices import select
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.step_buffer import StepBuffer
from dpeval.worker.messages import RankTask
from dpeval.worker.rank_process import run_rank

ENDLESS = 10**9
"""A lag that only :meth:`LaggingDevice.finish` catches up."""


@dataclass(frozen=True)
class LaggingStamp:
    """A point in the device's order of work."""

    number: int
    at_s: float


class LaggingDevice(CpuDevice):
    """A CPU device that reaches each stamp only after `lag` further stamps were made.

    A step without communication makes five stamps, one for each phase, and begins where the last
    step ended. Like a CUDA
    event, a stamp that the device has not reached has no time.
    """

    def __init__(self, lag: int) -> None:
        super().__init__()
        self._lag = lag
        self._made = self._reached = 0
        self.finished_calls = 0
        """How often the host waited for the device."""

    def stamp(self) -> LaggingStamp:  # type: ignore[override]  # the clock takes any kind of stamp
        self._made += 1
        self._reached = max(self._reached, self._made - self._lag)
        return LaggingStamp(self._made, time.perf_counter())

    def is_past(self, stamp: LaggingStamp) -> bool:  # type: ignore[override]
        return stamp.number <= self._reached

    def elapsed_s(self, begin: LaggingStamp, end: LaggingStamp) -> float:  # type: ignore[override]
        if not (self.is_past(begin) and self.is_past(end)):
            raise RuntimeError("a time was read before the device had reached it")
        return end.at_s - begin.at_s

    def finish(self) -> None:
        self.finished_calls += 1
        self._reached = self._made


def run_lagging_rank(lag: int, task: RankTask, step_buffer: StepBuffer, pipe: Connection) -> None:
    """:func:`dpeval.worker.rank_process.run_rank` on a lagging device; for a process of its own.

    Args:
        lag: of its device, in stamps.
        task: what to train, and as which rank.
        step_buffer: shared memory for step times and heartbeats.
        pipe: carries the rank's result or failure to the parent.
    """
    setattr(select, "CpuDevice", functools.partial(LaggingDevice, lag))  # noqa: B010  # mypy
    run_rank(task, step_buffer, pipe)
