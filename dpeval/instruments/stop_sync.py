"""Stops all ranks at the same step without a collective in every step.

Rank 0 decides at steps that all ranks know in advance and posts its decision in the rendezvous
store, where the others read it. Between two such steps (half a second apart, up to two seconds in a
long run), nothing is exchanged. Decisions are made between steps, so no step includes their time.
The same applies to the reference work that monitors the speed of the machine; all ranks do it after
the same step, so that none waits for another.
"""

from __future__ import annotations

import time
from typing import Protocol

from dpeval.config import MeasureConfig
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import COLUMNS, Stage, StepBuffer
from dpeval.instruments.step_orders import StepOrders, go_on_to, stop
from dpeval.stats.steady_state import decide, next_asked

CHECK_EVERY_S, MAX_CHECK_EVERY_S = 0.5, 2.0
CHECK_SHARE = 0.05
"""Share of the elapsed time until the next check. Where ranks share cores, a check costs 3 ms and
puts ranks out of step, which is noticeable if short steps are checked often."""


class Store(Protocol):
    """The part of ``torch.distributed.Store`` used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


class StopSync(StepOrders):
    """Decides, with the other ranks, whether this rank takes another step."""

    def __init__(
        self,
        rank: int,
        local_rank: int,
        store: Store | None,
        step_buffer: StepBuffer,
        clock: PhaseClock,
        config: MeasureConfig,
        reference_work: ReferenceWork | None = None,
    ) -> None:
        """Take the first step without a decision.

        Args:
            rank: global rank.
            local_rank: its index in `step_buffer`.
            store: the rendezvous store; None for a single rank.
            step_buffer: receives heartbeats and estimates.
            clock: this rank's phase clock.
            config: precision and limits of the measurement.
            reference_work: done when it is due; None on CUDA.
        """
        self._rank, self._local_rank, self._store = rank, local_rank, store
        self._step_buffer, self._clock, self._config = step_buffer, clock, config
        super().__init__(reference_work, until=1)
        self._begin_s: float | None = None
        """When the first step was found finished. The time limit starts there: compiling,
        autotuning and the set-up of communication belong to that step."""
        self._reported = 0
        self._stage = Stage.WARM_UP

    def go_on(self, steps: int) -> bool:
        """Whether to take another step after `steps` steps; the same on all ranks."""
        finished = self._clock.finished
        if finished != self._reported:
            self._step_buffer.beat(self._local_rank, self._stage, finished)
            self._reported = finished
        if steps < self._until:
            return True
        self._clock.pause()
        order = self._post_decision(steps) if self._rank == 0 else self._read_decision(steps)
        return self._obey(order, steps)

    def _read_decision(self, steps: int) -> str:
        assert self._store is not None  # only a single rank has no store
        return self._store.get(f"control/{steps}").decode()

    def _post_decision(self, steps: int) -> str:
        message = self._decision(steps)
        if self._store is not None:
            self._store.set(f"control/{steps}", message)
        return message

    def _decision(self, steps: int) -> str:
        self._clock.drain()
        finished = self._clock.finished
        now_s = time.monotonic()
        if self._begin_s is None and finished > 0:
            self._begin_s = now_s
        elapsed_s = now_s - self._begin_s if self._begin_s is not None else 0.0
        if self._step_buffer.stop_requested:
            return stop("interrupted")
        rows = self._step_buffer.rows(self._local_rank)
        step_s = rows[:finished, COLUMNS.index("step")]
        # A device may lag behind by several steps, so the number of finished steps does not bound
        # the
        # loop.
        decision = decide(step_s, elapsed_s, self._config, taken=steps)
        if decision.interval is not None:
            self._stage = Stage.MEASURING
            self._step_buffer.publish(
                self._local_rank, decision.interval.mean, decision.interval.rel_half_width, 0.0
            )
        if decision.reason is not None:
            return stop(decision.reason)
        if finished == 0:
            return go_on_to(steps + 1, work=False)
        ahead = steps_ahead(steps, elapsed_s, max(float(step_s[-1]), 1e-6), self._config)
        is_due = self._reference_work is not None and self._reference_work.is_due(step_s)
        return go_on_to(steps + ahead, work=is_due)


def steps_ahead(steps: int, elapsed_s: float, recent_s: float, config: MeasureConfig) -> int:
    """How many steps to take until the next check.

    At least one, and no further than a limit or the next number of steps at which the run may be
    precise enough.

    Args:
        steps: number of steps taken so far.
        elapsed_s: time since the first step started.
        recent_s: time of a recent step.
        config: holds the run's limits.
    """
    pause_s = min(max(CHECK_EVERY_S, CHECK_SHARE * elapsed_s), MAX_CHECK_EVERY_S)
    pause_s = min(pause_s, config.time_limit_s - elapsed_s)
    until = min(config.max_steps, next_asked(steps, config)) - steps
    return max(1, min(int(pause_s / recent_s), steps, until))
