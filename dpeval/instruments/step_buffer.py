"""The step buffer: memory shared by the ranks of one node and their supervisor.

Every rank writes its step times and a heartbeat here, so nothing is sent while steps are
measured, a slow supervisor never delays a rank, and measurements outlive the rank that made them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from enum import IntEnum
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np

from dpeval.record.phases import PHASES
from dpeval.util.arrays import Floats

COLUMNS = ("begin", *PHASES, "step", "comm", "comm_hidden")
"""One row per step, in seconds; `begin` is on the host's monotonic clock."""


def column_of(rows: Floats, name: str) -> Floats:
    """A column of `rows`, whose shape is [steps, len(COLUMNS)]."""
    return rows[:, COLUMNS.index(name)]


def sum_columns(rows: Floats, names: Iterable[str]) -> Floats:
    """The sum of the named columns, per step."""
    total: Floats = rows[:, [COLUMNS.index(name) for name in names]].sum(axis=1)
    return total


class Stage(IntEnum):
    """Stage of a rank's run."""

    STARTING = 0
    WARM_UP = 1
    MEASURING = 2
    ABLATION = 3
    FINISHED = 4


class _Head(IntEnum):
    STAGE = 0
    STEPS = 1
    HEARTBEAT = 2
    MEAN_STEP_S = 3
    REL_HALF_WIDTH = 4
    EXPECTED_STEPS = 5


_WIDTH = len(_Head)
UNIT_BYTES = 80
"""Size of a name of at most 20 characters in UTF-8, in bytes."""


class StepBuffer:
    """Step series and heartbeats of `ranks` ranks, at most `max_steps` steps each."""

    def __init__(self, context: BaseContext, ranks: int, max_steps: int) -> None:
        """Allocate the shared memory.

        Args:
            context: the multiprocessing context that starts the ranks.
            ranks: number of ranks.
            max_steps: maximum number of steps of a rank.
        """
        self.ranks, self.max_steps = ranks, max_steps
        self._heads: Any = context.RawArray(ctypes.c_double, ranks * _WIDTH)
        self._rows: Any = context.RawArray(ctypes.c_double, ranks * max_steps * len(COLUMNS))
        self._stop: Any = context.RawValue(ctypes.c_int, 0)
        self._unit: Any = context.RawArray(ctypes.c_char, UNIT_BYTES)
        self._samples_per_item: Any = context.RawValue(ctypes.c_double, 1.0)

    def rows(self, rank: int) -> Floats:
        """All rows of one rank, shape [max_steps, len(COLUMNS)], backed by the shared memory."""
        whole = np.frombuffer(self._rows, dtype=np.float64)
        table: Floats = whole.reshape(self.ranks, self.max_steps, len(COLUMNS))[rank]
        return table

    def _put(self, rank: int, field: _Head, value: float) -> None:
        self._heads[rank * _WIDTH + field] = value

    def _get(self, rank: int, field: _Head) -> float:
        return float(self._heads[rank * _WIDTH + field])

    def beat(self, rank: int, stage: Stage, steps: int) -> None:
        """Write a heartbeat of `rank`.

        Args:
            rank: local rank.
            stage: its current stage.
            steps: steps finished so far.
        """
        # Called in every step, so all three are written in one assignment.
        first = rank * _WIDTH
        self._heads[first : first + 3] = stage, steps, time.monotonic()

    def publish(self, rank: int, mean_step_s: float, rel_half_width: float, steps: float) -> None:
        """Publish the current estimate of the mean step time.

        Args:
            rank: local rank.
            mean_step_s: mean step time, s.
            rel_half_width: half-width of its interval, divided by the mean.
            steps: total number of steps expected.
        """
        self._put(rank, _Head.MEAN_STEP_S, mean_step_s)
        self._put(rank, _Head.REL_HALF_WIDTH, rel_half_width)
        self._put(rank, _Head.EXPECTED_STEPS, steps)

    def describe(self, unit: str, samples_per_item: float | None) -> None:
        """Publish what the samples are; called once, by any rank.

        Args:
            unit: what a sample is: img, tokens, …
            samples_per_item: samples in each item that the global batch counts; None: unknown until
                the end.
        """
        if samples_per_item is not None:
            self._samples_per_item.value = samples_per_item
            self._unit.value = unit.encode()[: UNIT_BYTES - 1]

    @property
    def unit(self) -> str:
        """What a sample is; "" until a rank has published it."""
        return str(self._unit.value.decode(errors="ignore"))

    @property
    def samples_per_item(self) -> float:
        return float(self._samples_per_item.value)

    def stage(self, rank: int) -> Stage:
        return Stage(int(self._get(rank, _Head.STAGE)))

    def steps(self, rank: int) -> int:
        """Number of finished steps of `rank`, whose rows are complete."""
        return int(self._get(rank, _Head.STEPS))

    def heartbeat_s(self, rank: int) -> float:
        """Time of the last heartbeat of `rank` on the monotonic clock; 0 before the first."""
        return self._get(rank, _Head.HEARTBEAT)

    def estimate(self, rank: int) -> tuple[float, float, float]:
        """Mean step time (s), relative half-width of its interval, total number of steps
        expected."""
        fields = (_Head.MEAN_STEP_S, _Head.REL_HALF_WIDTH, _Head.EXPECTED_STEPS)
        mean_step_s, rel_half_width, steps = (self._get(rank, field) for field in fields)
        return mean_step_s, rel_half_width, steps

    def column(self, rank: int, name: str) -> Floats:
        """A copy of one column over the finished steps of `rank`."""
        return self.rows(rank)[: self.steps(rank), COLUMNS.index(name)].copy()

    def fill(self, rank: int, rows: Floats) -> None:
        """Copy the finished steps of a rank that ran on another node."""
        self.rows(rank)[: len(rows)] = rows
        self.beat(rank, Stage.FINISHED, len(rows))

    def request_stop(self) -> None:
        """Request that all ranks end their main window at the next common step."""
        self._stop.value = 1

    @property
    def stop_requested(self) -> bool:
        return bool(self._stop.value)
