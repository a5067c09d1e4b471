"""The coordinator of a sitting: starts its runs, grants turns, ends them.

All runs are alive, and exactly one is on turn. A run knows nothing about the others: its ranks stop
at a step boundary and block until their gates open (:mod:`dpeval.instruments.turn_sync`)."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from multiprocessing import connection

from dpeval.instruments import step_orders, turn_sync
from dpeval.record.codes import AblationKind
from dpeval.record.schema import Record
from dpeval.record.schema import Sitting as SittingRecord
from dpeval.run.execute import LiveRun, make_sampler, off_the_cores_of
from dpeval.run.job import ProgressListener
from dpeval.run.rank_supervisor import POLL_S
from dpeval.sitting import rounds, settling
from dpeval.sitting.seat import Seat
from dpeval.system.conditions import ConditionSampler
from dpeval.system.processes.signals import stop_signals

WORK_EVERY_S = 0.5
"""A run's reference work is due after this much time in its steps."""
LOOK_EVERY_S = 0.5
"""A run's progress is evaluated after this much time on turn …"""
LOOK_SHARE = 0.1
"""… or after this share of its time so far, if that is more: evaluation costs all runs time."""
KEEP_EVERY_S = 30.0
"""If dpeval is killed, at most this much is lost of what it has measured …"""
KEEP_SHARE = 0.02
"""… unless provisional records took more than this share of the time."""


class Coordinator:
    """Measures several runs in turns."""

    def __init__(
        self, waves: Sequence[Sequence[Seat]], listener: ProgressListener, seed: int
    ) -> None:
        """Start nothing yet.

        Args:
            waves: the runs that are alive together, each in the order in which they start. A run
                of several consecutive waves stays alive from the first to the last of them.
            listener: shows progress.
            seed: of the order of turns.
        """
        self.id = uuid.uuid4().hex
        self._waves, self._listener = waves, listener
        seats = list({id(seat): seat for wave in waves for seat in wave}.values())
        for seat in seats:
            seat.waves = sum(seat in wave for wave in waves)
        self._all = seats
        self._seats: Sequence[Seat] = ()
        """The runs of this wave."""
        self._kinds: list[tuple[Seat, AblationKind]] = [
            (seat, kind) for seat in seats for kind in seat.kinds
        ]
        self._orders = rounds.orders([len(seat.kinds) for seat in seats], seed)
        self._round = 0
        self._ablating: list[Seat] = []
        """Runs that ablate in this pair of rounds."""
        self._received: list[str] = []
        self._sampler: ConditionSampler | None = None
        self._started: list[Seat] = []
        self._keep_s = 0.0
        """When provisional records are due, on the monotonic clock."""

    def measure(self) -> Iterator[tuple[LiveRun, Record]]:
        """Measure all runs; yield each with its record once that is written."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(off_the_cores_of([seat.run.job for seat in self._all]))
            for seat in self._all:
                stack.enter_context(seat.run.bugs_recorded())
            self._received = stack.enter_context(stop_signals())
            try:
                for wave, after in zip_longest(self._waves, self._waves[1:], fillvalue=()):
                    self.start(wave)
                    while not self._received and any(seat.is_measuring for seat in wave):
                        self._take_round()
                    leaving = [seat for seat in wave if self._received or seat not in after]
                    self._end(leaving)
                    if self._received:
                        break
                    if after:  # the comparison with a base that stays is added at the end
                        for seat in leaving:
                            seat.run.finish(seat.conditions, self._taken(seat))
                yield from self._records()
            finally:
                for seat in self._started:
                    seat.run.ranks.end()

    def start(self, wave: Sequence[Seat]) -> None:
        """Start a wave's runs one after another, so that each sets up with the machine to itself.

        Those that have stayed take turns with them as they did with the runs before.
        """
        self._seats = wave
        for seat in wave:
            if self._received:
                return
            if seat in self._started:
                seat.stay()
                continue
            seat.run.start(gated=True)
            self._started.append(seat)
            said = self._await_gates(seat)
            seat.can_ablate = said == turn_sync.READY_FOR_BLOCKS
        live = [seat.run for seat in wave if seat.is_running]
        watched = live and live[0].job.config.measure.conditions
        self._sampler = make_sampler(live) if watched else None

    def _take_round(self) -> None:
        """Take one round: every kind of turn of every run that is still measured."""
        measuring = [seat for seat in self._seats if seat.is_measuring]
        if self._round % 2 == 0:  # a round and its mirror image hold the same kinds
            self._ablating = [seat for seat in measuring if seat.is_ablation_due]
        for number in next(self._orders):
            seat, kind = self._kinds[number]
            if self._received:
                return
            if seat in measuring and seat.is_running:
                if kind == "normal":
                    self.take_turn(seat)
                elif seat in self._ablating:
                    self._take_block(seat, kind)
        for seat in self._ablating:
            seat.ablated += 1
        if self._round % 2:
            settling.judge_races(self._seats)
        self._round += 1
        for seat in self._seats:
            if seat.is_running and not seat.is_measuring:
                seat.run.ranks.poll(on_turn=False)
        if any(seat.is_measuring for seat in self._seats):
            self._keep_so_far()

    def _keep_so_far(self) -> None:
        """Write provisional records: at intervals, and of every run that has left the rounds."""
        begin_s = time.monotonic()
        is_due = begin_s >= self._keep_s
        for seat in self._seats:
            has_left = seat.reason is not None
            if seat.is_running and not seat.is_kept and (is_due or has_left):
                seat.is_kept = has_left
                seat.run.keep_so_far(self._taken(seat), seat.reason or "interrupted")
                if has_left:
                    self._listener.progress(seat.run.job, seat.snapshot())
                    self._send(seat, step_orders.RELEASE)
                    self._await_gates(seat)
        if is_due:
            now_s = time.monotonic()
            self._keep_s = now_s + max(KEEP_EVERY_S, (now_s - begin_s) / KEEP_SHARE)

    def take_turn(self, seat: Seat) -> None:
        """Let a run take its steps of this round while all others wait."""
        steps = seat.turn_steps()
        is_first = seat.steps == 0
        work_due = seat.elapsed_s - seat.worked_s >= WORK_EVERY_S
        if work_due:
            seat.worked_s = seat.elapsed_s
        before_j = self._energy_j(seat)
        begin_s = time.monotonic()
        self._send(seat, step_orders.go_on_to(seat.steps + steps, work=work_due))
        seat.rounds += [self._round] * steps
        self._await_gates(seat)
        if not is_first:
            seat.elapsed_s += time.monotonic() - begin_s
            after_j = self._energy_j(seat)
            if before_j is not None and after_j is not None:
                seat.energy_j[self._round] = after_j - before_j, steps
        if self._sampler is not None:
            self._sampler.sample()
        if seat.is_running:
            self._judge(seat)
        self._listener.progress(seat.run.job, seat.snapshot())

    def _take_block(self, seat: Seat, kind: AblationKind) -> None:
        """Take a block of ablation steps, which does not change the state of the training."""
        begin_s = time.monotonic()
        block = step_orders.block(kind, seat.block_steps(), self._round)
        for order in (step_orders.SAVE, step_orders.SETTLE, block, step_orders.RESTORE):
            # Each rank waits until all have obeyed, so that no copy slows another's step.
            self._send(seat, order, only_first=kind == "alone" and order is block)
            if not seat.is_running:
                break
            self._await_gates(seat)
        seat.ablated_s += time.monotonic() - begin_s

    def _energy_j(self, seat: Seat) -> float | None:
        if self._sampler is None or seat.has_no_energy:
            return None
        found = self._sampler.energy_now_j(seat.gpus)
        seat.has_no_energy = found is None and self._sampler.has_sampled
        return found

    def _judge(self, seat: Seat) -> None:
        """Decide whether the run needs further turns, and publish its estimates."""
        due_s = seat.looked_s + max(LOOK_EVERY_S, LOOK_SHARE * seat.elapsed_s)
        if seat.elapsed_s < due_s and not seat.is_at_limit:
            return
        seat.looked_s = seat.elapsed_s
        settling.judge(seat, self._seats)

    def _end(self, leaving: Sequence[Seat]) -> None:
        """End the runs that leave, one after another; their memory is free then."""
        conditions = self._sampler.finish() if self._sampler is not None else None
        for seat in leaving:
            if seat not in self._started:
                continue
            seat.conditions = conditions
            if not seat.is_running:
                seat.run.waited(time.monotonic() - seat.idle_since_s)
            else:
                reason = "interrupted" if self._received else seat.reason or "interrupted"
                self._send(seat, step_orders.stop(reason))
            seat.run.ranks.watch(lambda: None, lambda: None, self._received)

    def _records(self) -> Iterator[tuple[LiveRun, Record]]:
        """Write the records, bases first: the others' say how they compare with them."""
        records: dict[int, Record] = {}
        for seat in sorted(self._started, key=lambda seat: seat.base is not None):
            base = records.get(id(seat.base))
            made = seat.run.finish(seat.conditions, self._taken(seat), base, self._received)
            records[id(seat)] = made
            yield seat.run, made

    def _taken(self, seat: Seat) -> SittingRecord:
        """The turns that a run has taken."""
        return SittingRecord(
            id=self.id,
            # A script's loop may have ended during a turn.
            rounds=seat.rounds[: seat.run.step_buffer.steps(0)],
            runs=len(self._all),
            reentry=seat.reentry,
            energy_j_per_step=seat.energy_j_per_step,
            energy_j_by_round={at: joules / n for at, (joules, n) in seat.energy_j.items()},
        )

    def _send(self, seat: Seat, order: str, *, only_first: bool = False) -> None:
        seat.run.waited(time.monotonic() - seat.idle_since_s)
        gates = seat.run.ranks.gates
        seat.addressed = [0] if only_first else list(gates)
        for rank in seat.addressed:
            # The supervisor notices a rank that has just died.
            with contextlib.suppress(OSError):
                gates[rank].send_bytes(order.encode())

    def _await_gates(self, seat: Seat) -> bytes:
        """Wait until every rank that was given an order is waiting again, or the run has failed.

        Returns:
            The message of a rank; empty if none sent one.
        """
        ranks, said = seat.run.ranks, b""
        waiting = {rank: ranks.gates[rank] for rank in seat.addressed or ranks.gates}
        is_lost = False
        polled_s = time.monotonic()
        ranks.hang.rest()
        while (waiting or is_lost) and ranks.is_running:
            ready = connection.wait([*waiting.values(), *ranks.waitables()], POLL_S)
            for rank, gate in list(waiting.items()):
                if gate in ready:
                    del waiting[rank]
                    try:
                        said = gate.recv_bytes()
                    except (EOFError, OSError):
                        is_lost = True  # its process ends, and the supervisor will report how
            if waiting or is_lost or time.monotonic() - polled_s > POLL_S:
                polled_s = time.monotonic()
                ranks.poll()
                ranks.heed(self._received)
        seat.idle_since_s = time.monotonic()
        if not ranks.is_running:
            ranks.end()  # frees its memory for the others
        return said
