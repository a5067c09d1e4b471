"""Start the ranks of one node, supervise them, and stop them all, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from dpeval.config import Config
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.run import forkserver
from dpeval.run.forkserver import context
from dpeval.run.hang_detector import HangDetector
from dpeval.run.recording.outcome import (
    Failure,
    Outcome,
    disagreement,
    first_exception,
    is_echo,
    killed_for_memory,
    may_be_echo,
    root_cause,
)
from dpeval.system import oom
from dpeval.system.processes.process import resident
from dpeval.util.display.units import MIB
from dpeval.worker.messages import RankFailure, RankResult, RankTask

POLL_S = 0.2
GRACE_S = 0.5
"""How long to wait for further failures after the first."""
ECHO_GRACE_S = 3.0
"""The same, if the first may be the consequence of one not seen yet."""
LONGEST_LOG_BYTES = 16 * MIB
"""A log longer than this is cut …"""
KEPT_LOG_BYTES = MIB
"""… to so much of its end."""


class RankSupervisor:
    """The processes of one node's ranks."""

    def __init__(
        self,
        tasks: list[RankTask],
        step_buffer: StepBuffer,
        config: Config,
        *,
        gated: bool = False,
    ) -> None:
        """Start the ranks.

        Args:
            tasks: one per rank of this node.
            step_buffer: shared memory for their step times and heartbeats.
            config: the run's; its timeouts apply.
            gated: the ranks step only on their turns, which `gates` grants them.
        """
        # Late: both import torch, which the ranks inherit from the forkserver.
        from dpeval.worker.rank_process import run_rank
        from dpeval.worker.script_rank import run_script_rank

        self._script = config.task if config.task.is_script else None
        main = run_script_rank if self._script is not None else run_rank
        self._logs = {task.rank: Path(task.log) for task in tasks if task.log is not None}
        self._step_buffer = step_buffer
        self._local = {task.rank: task.plan.ranks[task.rank].local_rank for task in tasks}
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self.gates: dict[int, Connection] = {}
        """Per rank: our end of its :class:`dpeval.instruments.turn_sync.TurnSync`."""
        self._messages: dict[int, RankResult | RankFailure] = {}
        self._closed: set[int] = set()
        self._deadline_s = float("inf")
        self._kills = oom.kill_counters()
        self._on_cpu = {task.rank for task in tasks if task.plan.ranks[task.rank].device == "cpu"}
        self.outcome = Outcome()
        """What is known so far of how the ranks ended."""
        for task in tasks:
            ours, theirs = context().Pipe()
            gate, their_gate = context().Pipe() if gated else (None, None)
            process = context().Process(
                target=main,
                args=(task, step_buffer, theirs, their_gate),
                name=f"rank{task.rank}",
                daemon=False,
            )
            forkserver.start_process(process)
            theirs.close()
            self._processes[task.rank], self._pipes[task.rank] = process, ours
            if gate is not None and their_gate is not None:
                their_gate.close()
                self.gates[task.rank] = gate
        self.hang = HangDetector(
            step_buffer,
            config.hardware,
            list(self._local.values()),
            self.pids,
            has_peers=len({rank.node for task in tasks for rank in task.plan.ranks}) > 1,
        )
        self.outcome.pauses = self.hang.pauses

    @property
    def pids(self) -> dict[int, int]:
        """Process id per rank."""
        return {rank: process.pid or 0 for rank, process in self._processes.items()}

    @property
    def is_running(self) -> bool:
        """Whether some rank has no result yet, and none has failed."""
        return len(self.outcome.results) < len(self._processes) and self.outcome.failure is None

    def watch(
        self,
        on_tick: Callable[[], None],
        elsewhere: Callable[[], Failure | None],
        received: Sequence[str],
    ) -> Outcome:
        """Wait until all ranks have returned results, one fails, or a stop signal arrives.

        All ranks have ended on return.

        Args:
            on_tick: called between polls.
            elsewhere: likewise; returns the failure of another node.
            received: the stop signals so far, from
                :func:`dpeval.system.processes.signals.stop_signals`, which must be active.
        """
        try:
            while self.is_running:
                connection.wait(self.waitables(), POLL_S)
                self.poll()
                self.outcome.failure = self.outcome.failure or elsewhere()
                self.heed(received)
                if self.outcome.failure is None:
                    on_tick()
            self._let_script_end(received)
        finally:
            self.end()
        return self.outcome

    def poll(self, *, on_turn: bool = True) -> None:
        """Read what the ranks have sent, and check whether one has ended or hangs.

        Args:
            on_turn: whether the ranks may work; ranks that wait for their turn do not hang.
        """
        self._receive()
        for log in self._logs.values():
            keep_short(log)
        self._record_peaks()
        self._sort_messages()
        if not on_turn:
            self.hang.rest()
        self.outcome.failure = self.outcome.failure or self._hang()

    def waitables(self) -> list[Connection | int]:
        """What becomes ready when a rank sends its result or ends."""
        return [
            *(
                pipe
                for rank, pipe in self._pipes.items()
                if rank not in self._messages and rank not in self._closed
            ),
            *(
                process.sentinel
                for rank, process in self._processes.items()
                if rank not in self._messages and process.exitcode is None
            ),
        ]

    def _receive(self) -> None:
        """Read the messages that have arrived."""
        for rank, pipe in self._pipes.items():
            if rank in self._messages or rank in self._closed:
                continue
            try:
                if pipe.poll():
                    self._messages[rank] = pipe.recv()
            except (EOFError, OSError):
                self._closed.add(rank)

    def _record_peaks(self) -> None:
        """Keep each rank's peak memory: a rank that the OOM killer kills cannot report it."""
        for rank, pid in self.pids.items():
            held = resident(pid) if rank in self._on_cpu else None
            if held is not None:
                known = self.outcome.peak_bytes
                known[rank] = max(held.peak_bytes, known.get(rank, 0))

    def _killed_for_memory(self, code: int) -> str | None:
        if code != -signal.SIGKILL:
            return None
        return oom.killed_for_memory(self._kills, oom.kill_counters())

    def _sort_messages(self) -> None:
        outcome = self.outcome
        for rank, message in self._messages.items():
            if isinstance(message, RankResult):
                outcome.results[rank] = message
        failures = [item for item in self._messages.values() if not isinstance(item, RankResult)]
        for item in failures:
            if item.peak_bytes is not None:
                outcome.peak_bytes[item.rank] = item.peak_bytes
        known = self._ended_without_message()
        if failures:
            known.append(first_exception(failures))
        if outcome.failure is not None and outcome.failure.exception is None:
            known.insert(0, outcome.failure)
        outcome.failure = root_cause(known) if known else None

    def _ended_without_message(self) -> list[Failure]:
        """The failures of the ranks that ended without sending a result or a failure."""
        ended = []
        for rank, process in self._processes.items():
            code = process.exitcode
            if code is None or rank in self._messages:
                continue
            if rank not in self._closed and self._pipes[rank].poll():
                continue  # its message has arrived and is not read yet
            ended.append(self._ended(rank, code))
        return ended

    def _ended(self, rank: int, code: int) -> Failure:
        if code >= 0:
            return Failure("exit", rank, f"rank {rank} exited with status {code} without a result")
        name = signal.Signals(-code).name
        place = self._killed_for_memory(code)
        if place is not None:
            return killed_for_memory(rank, place, name)
        return Failure("signal", rank, f"rank {rank} was killed by {name}", signal=name)

    def _wait_for_others(self) -> None:
        """Wait briefly for other ranks to end, so that the cause is reported and not its echo."""
        begin_s = time.monotonic()
        while self.outcome.failure is not None:
            grace_s = ECHO_GRACE_S if may_be_echo(self.outcome.failure) else GRACE_S
            live = [rank for rank in self._processes if rank not in self._messages]
            if all(self._processes[rank].exitcode is not None for rank in live):
                break
            if time.monotonic() - begin_s > grace_s:
                break
            connection.wait(self.waitables(), POLL_S)
            self._receive()
            self._sort_messages()
        self._receive()
        self._sort_messages()

    def heed(self, received: Sequence[str]) -> None:
        """Request a clean stop on the first signal; kill on the second, or if it takes long.

        Call this after every poll; `received` holds the names of the signals so far."""
        if not received:
            return
        outcome = self.outcome
        if outcome.interrupted_by is None:
            outcome.interrupted_by = received[0]
            self._step_buffer.request_stop()
            self._deadline_s = time.monotonic() + max(10.0, 3 * self.hang.longest_step_s)
        measuring = any(self._step_buffer.steps(local) for local in self._local.values())
        ablating = any(
            self._step_buffer.stage(local) >= Stage.ABLATION for local in self._local.values()
        )
        if len(received) > 1 or not measuring or ablating or time.monotonic() > self._deadline_s:
            outcome.failure = outcome.failure or Failure(
                "interrupt", None, f"interrupted by {received[0]}", signal=received[0]
            )

    def _hang(self) -> Failure | None:
        failure = self.hang.check()
        if failure is None or self._script is None:
            return failure
        if any(self._step_buffer.steps(local) for local in self._local.values()):
            return failure
        # Most likely it never gets there.
        where = f"{self._script.name} has finished no step of meter.steps"
        return replace(failure, message=f"{failure.message}; {where}")

    def _let_script_end(self, received: Sequence[str]) -> None:
        """Wait for scripts that go on after the measurement, and note what goes wrong there."""
        if self._script is None or self.outcome.failure is not None or received:
            return
        limit_s = self._script.exit_timeout_s
        deadline_s = time.monotonic() + limit_s
        while not received and time.monotonic() < deadline_s:
            live = [item.sentinel for item in self._processes.values() if item.exitcode is None]
            if not live:
                break
            connection.wait(live, POLL_S)
            for log in self._logs.values():
                keep_short(log)
        codes = {rank: process.exitcode for rank, process in self._processes.items()}
        going_on = [rank for rank, code in codes.items() if code is None]
        failed = next((rank for rank, code in codes.items() if code), None)
        name, notes = self._script.name, self.outcome.notes
        if going_on and not received:
            notes.append(
                f"{name} ran on for {limit_s:g} s after the measurement and was stopped; let it "
                "end after its loop, or set a longer task.exit_timeout_s"
            )
        if failed is not None:
            notes.append(
                f"{name} failed on rank {failed} after the measurement (exit status "
                f"{codes[failed]}); see {self._logs[failed].name}"
            )

    def _heed_disagreement(self) -> None:
        """Name the script's ranks that took fewer steps as the cause of the others' failure."""
        outcome = self.outcome
        if self._script is None or outcome.interrupted_by is not None:
            return
        if outcome.failure is None or outcome.failure.kind == "hang" or is_echo(outcome.failure):
            steps = {rank: self._step_buffer.steps(local) for rank, local in self._local.items()}
            outcome.failure = disagreement(outcome.results, steps) or outcome.failure

    def end(self) -> None:
        """Stop every rank and its helpers; returns when all have ended.

        If one has failed, the others first get a moment to end, so that the cause is known.
        """
        if self.outcome.failure is not None:
            self._wait_for_others()
        self._heed_disagreement()
        for rank, process in self._processes.items():
            if rank in self._messages:
                process.join(2.0)
            if process.exitcode is None and process.pid:
                # The rank leads its own process group, unless it ended before creating one.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
        for process in self._processes.values():
            process.join()
        for log in self._logs.values():
            keep_short(log)
        for pipe in (*self._pipes.values(), *self.gates.values()):
            pipe.close()


def keep_short(log: Path) -> None:
    """Cut a log that has grown long to its end: a script may print without limit.

    What the script prints between the reading and the cut is lost.
    """
    with contextlib.suppress(OSError):
        size = log.stat().st_size
        if size <= LONGEST_LOG_BYTES:
            return
        # Both append: what the script prints next follows what is kept.
        with log.open("a+b", buffering=0) as file:
            file.seek(size - KEPT_LOG_BYTES)
            kept = file.read(KEPT_LOG_BYTES)
            file.truncate(0)
            file.write(b"[dpeval cut the beginning of this log]\n" + kept)
