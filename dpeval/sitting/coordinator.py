"""The coordinator of a sitting: starts its runs, grants turns, ends them.

All runs are alive, and exactly one is on turn. A run learns nothing of the others: its ranks stop
at a step boundary and block until their gates open (:mod:`dpeval.instruments.turn_sync`).
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection

import numpy as np

from dpeval.config import MeasureConfig
from dpeval.instruments import step_orders
from dpeval.instruments.step_buffer import Stage
from dpeval.record.codes import StopReason
from dpeval.record.conditions import Conditions
from dpeval.record.measurement import Interval
from dpeval.record.schema import Record
from dpeval.record.schema import Sitting as SittingRecord
from dpeval.run.execute import LiveRun, make_sampler, off_the_cores_of
from dpeval.run.job import ProgressListener, Snapshot
from dpeval.run.rank_supervisor import POLL_S
from dpeval.sitting import rounds
from dpeval.stats import paired, steady_state
from dpeval.system.conditions import ConditionSampler
from dpeval.system.signals import stop_signals
from dpeval.util.arrays import Floats

WORK_EVERY_S = 0.5
"""A run's reference work is due after this much time in its steps."""
LOOK_EVERY_S = 0.5
"""A run is judged after this much time on turn …"""
LOOK_SHARE = 0.1
"""… or after this share of what it has had, if that is more: looks take time from all."""


@dataclass
class Seat:
    """One run of the sitting, and the turns that it has had."""

    run: LiveRun
    base: Seat | None = None
    """The run that its speedup is against; None: it has none, or is one itself."""
    rounds: list[int] = field(default_factory=list[int])
    """The round of every step granted so far."""
    elapsed_s: float = 0.0
    """Time on turn since its first step finished, which ``measure.time_limit_s`` limits."""
    looked_s: float = 0.0
    worked_s: float = 0.0
    idle_since_s: float = math.inf
    """When its last turn ended, on the monotonic clock."""
    reason: StopReason | None = None
    """Why it needs no further turn."""
    is_narrow: bool = False
    """Whether its speedup was known precisely enough at the last look."""
    mean: Interval | None = None
    speedup: Interval | None = None

    @property
    def is_running(self) -> bool:
        return self.run.ranks.is_running

    @property
    def is_measuring(self) -> bool:
        return self.reason is None and self.is_running

    @property
    def steps(self) -> int:
        return len(self.rounds)

    @property
    def is_at_limit(self) -> bool:
        return self.steps >= self.measure.max_steps or self.elapsed_s >= self.measure.time_limit_s

    def step_s(self) -> Floats:
        """All its steps so far, s, as rank 0 timed them; an all-reduce keeps ranks together."""
        return self.run.step_buffer.column(0, "step")

    def by_round(self) -> dict[int, float]:
        """Mean step of every round after the warm-up, s."""
        step_s = self.step_s()
        first = steady_state.steady_start(step_s, self.measure.min_warmup_steps).first
        return paired.by_round(step_s, self.rounds, first)

    @property
    def measure(self) -> MeasureConfig:
        return self.run.job.config.measure


class Coordinator:
    """Measures several runs in turns."""

    def __init__(self, seats: Sequence[Seat], listener: ProgressListener, seed: int) -> None:
        """Start nothing yet.

        Args:
            seats: the runs, in the order in which they start.
            listener: shows progress.
            seed: of the order of turns.
        """
        self.id = uuid.uuid4().hex
        self._seats, self._listener = seats, listener
        self._orders = rounds.orders(len(seats), seed)
        self._round = 0
        self._received: list[str] = []
        self._sampler: ConditionSampler | None = None
        self._started: list[Seat] = []

    def measure(self) -> Iterator[tuple[LiveRun, Record]]:
        """Measure all runs; yield each with its record, which is written by then."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(off_the_cores_of([seat.run.job for seat in self._seats]))
            for seat in self._seats:
                stack.enter_context(seat.run.bugs_recorded())
            self._received = stack.enter_context(stop_signals())
            try:
                self._start()
                while not self._received and any(seat.is_measuring for seat in self._seats):
                    self._take_round()
                conditions = self._sampler.finish() if self._sampler is not None else None
                yield from self._end(conditions)
            finally:
                for seat in self._started:
                    seat.run.ranks.end()

    def _start(self) -> None:
        """Start the runs one after another, so that each one's set-up has the machine."""
        for seat in self._seats:
            if self._received:
                return
            seat.run.start(gated=True)
            self._started.append(seat)
            self._await_gates(seat)
        live = [seat.run for seat in self._seats if seat.is_running]
        if live and live[0].job.config.measure.conditions:
            self._sampler = make_sampler(live)

    def _take_round(self) -> None:
        for number in next(self._orders):
            seat = self._seats[number]
            if self._received:
                return
            if seat.is_measuring:
                self._take_turn(seat)
        self._round += 1
        for seat in self._seats:
            if seat.is_running and not seat.is_measuring:
                seat.run.ranks.poll(on_turn=False)

    def _take_turn(self, seat: Seat) -> None:
        step_s = seat.step_s()
        typical_s = float(np.median(step_s[-20:])) if len(step_s) else None
        steps = min(rounds.turn_steps(typical_s), seat.measure.max_steps - seat.steps)
        work_due = seat.elapsed_s - seat.worked_s >= WORK_EVERY_S
        if work_due:
            seat.worked_s = seat.elapsed_s
        begin_s = time.monotonic()
        self._send(seat, step_orders.go_on_to(seat.steps + steps, work=work_due))
        seat.rounds += [self._round] * steps
        self._await_gates(seat)
        if len(step_s):
            seat.elapsed_s += time.monotonic() - begin_s
        if self._sampler is not None:
            self._sampler.sample()
        if seat.is_running:
            self._judge(seat)
        self._listener.progress(seat.run.job, _snapshot(seat))

    def _judge(self, seat: Seat) -> None:
        """Decide whether the run needs further turns, and publish what is known."""
        due_s = seat.looked_s + max(LOOK_EVERY_S, LOOK_SHARE * seat.elapsed_s)
        if seat.elapsed_s < due_s and not seat.is_at_limit:
            return
        seat.looked_s = seat.elapsed_s
        decision = steady_state.decide(
            seat.step_s(), seat.elapsed_s, seat.measure, taken=seat.steps
        )
        seat.mean = decision.interval
        if seat.base is not None:
            seat.speedup = paired.ratio(seat.base.by_round(), seat.by_round(), "precision")
        seat.reason = self._reason(seat, decision.reason)

    def _reason(self, seat: Seat, reason: StopReason | None) -> StopReason | None:
        """Why `seat` needs no further turn; `reason`: why its own mean needs none."""
        compared = [other for other in self._seats if other.base is seat]
        if seat.measure.until == "means" or seat.is_at_limit or not (seat.base or compared):
            return reason
        if seat.base is None:
            return None if any(other.is_measuring for other in compared) else "ratios"
        if not seat.base.is_measuring:  # no further round can make the speedup more precise
            return reason or seat.base.reason
        was_narrow, seat.is_narrow = seat.is_narrow, _is_settled(seat)
        return "ratios" if was_narrow and seat.is_narrow else None

    def _end(self, conditions: Conditions | None) -> Iterator[tuple[LiveRun, Record]]:
        """End the runs one after another, bases first; an ablation has the machine for itself."""
        records: dict[int, Record] = {}
        for seat in sorted(self._started, key=lambda seat: seat.base is not None):
            if not seat.is_running:
                seat.run.waited(time.monotonic() - seat.idle_since_s)
            else:
                reason = "interrupted" if self._received else seat.reason or "interrupted"
                self._send(seat, step_orders.stop(reason))
            seat.run.ranks.watch(lambda: None, lambda: None, self._received)
            taken = SittingRecord(id=self.id, rounds=seat.rounds, runs=len(self._seats))
            base = records.get(id(seat.base))
            records[id(seat)] = seat.run.finish(conditions, taken, base, self._received)
            yield seat.run, records[id(seat)]

    def _send(self, seat: Seat, order: str) -> None:
        seat.run.waited(time.monotonic() - seat.idle_since_s)
        for gate in seat.run.ranks.gates.values():
            # A rank that has just died is noticed by its supervisor.
            with contextlib.suppress(OSError):
                gate.send_bytes(order.encode())

    def _await_gates(self, seat: Seat) -> None:
        """Wait until every rank of the run on turn waits again, or the run has failed."""
        ranks = seat.run.ranks
        waiting = dict(ranks.gates)
        is_lost = False
        polled_s = time.monotonic()
        ranks.hang.rest()
        while (waiting or is_lost) and ranks.is_running:
            ready = connection.wait([*waiting.values(), *ranks.waitables()], POLL_S)
            for rank, gate in list(waiting.items()):
                if gate in ready:
                    del waiting[rank]
                    try:
                        gate.recv_bytes()
                    except (EOFError, OSError):
                        is_lost = True  # its process ends, and its supervisor will say how
            if waiting or is_lost or time.monotonic() - polled_s > POLL_S:
                polled_s = time.monotonic()
                ranks.poll()
                ranks.heed(self._received)
        seat.idle_since_s = time.monotonic()
        if not ranks.is_running:
            ranks.end()  # its memory is free for the others


def _is_settled(seat: Seat) -> bool:
    """Whether the speedup is known as precisely as asked, from enough steps."""
    speedup, least = seat.speedup, seat.measure.min_steps + seat.measure.min_warmup_steps
    if speedup is None or seat.steps < least:
        return False
    return speedup.rel_half_width <= seat.measure.rel_precision


def _snapshot(seat: Seat) -> Snapshot:
    mean = seat.mean
    job = seat.run.job
    return Snapshot(
        stage=Stage.FINISHED if seat.reason is not None else Stage.MEASURING,
        steps=seat.steps,
        elapsed_s=seat.elapsed_s,
        img_per_s=job.plan.global_batch_size / mean.mean if mean is not None else 0.0,
        rel_half_width=mean.rel_half_width if mean is not None else 0.0,
        speedup=seat.speedup,
    )
