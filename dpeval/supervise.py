"""Start the ranks of one node, watch them, and end every one of them, whatever happens."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from dpeval import oom
from dpeval.board import COLUMNS, Board, Stage
from dpeval.config import HardwareConfig
from dpeval.machine import resident
from dpeval.record.codes import FailureCode

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from torch.distributed import TCPStore

    from dpeval.worker import RankFailure, RankResult, RankTask

POLL_S = 0.2
CPU_WINDOW_S = 2.0
IDLE_HANG_S = 10.0
"""No new step and no processor time used by any rank for this long: nothing will come."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
COLLECTIVE_ERRORS = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")


@dataclass(frozen=True)
class Failure:
    """Why the ranks of a run were ended."""

    kind: FailureCode
    rank: int | None
    message: str
    exception: str | None = None
    signal: str | None = None
    log: str = ""
    user_error: bool = False


@dataclass
class Outcome:
    """What the watcher saw."""

    results: dict[int, RankResult] = field(default_factory=dict["int", "RankResult"])
    failure: Failure | None = None
    interrupted_by: str | None = None
    peak_bytes: dict[int, int] = field(default_factory=dict["int", "int"])
    """Most memory that each rank's process was seen to hold, where its device is the CPU."""


def context() -> ForkServerContext:
    """The forkserver context whose server has torch imported once for all ranks.

    A start from it takes 0.03 s; one with ``spawn`` imports torch anew each time (2.4-3.8 s).
    The server imports and never computes, so it holds no CUDA context and no thread pool.
    """
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["torch", "torchvision", "scipy.special", "dpeval.worker"])
    return forkserver


def warm_up() -> None:
    """Start the server in the background, so that its import overlaps the parent's own work."""
    from multiprocessing import forkserver

    context()
    forkserver.ensure_running()


def serve_store(host: str) -> tuple[TCPStore, int]:
    """Serve a rendezvous store on `host`, on a port that is held from the first moment.

    The socket is bound and listening before its number is known to anyone, so no other process
    can take it in between, and it listens on `host` alone.
    """
    from torch.distributed import TCPStore

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        None,
        True,
        timedelta(seconds=30),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


class Ranks:
    """The processes of one node's ranks."""

    def __init__(self, tasks: list[RankTask], board: Board, hardware: HardwareConfig) -> None:
        from dpeval.worker import run_rank

        self._hardware, self._board = hardware, board
        self._local = {task.rank: task.plan.ranks[task.rank].local_rank for task in tasks}
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self._messages: dict[int, RankResult | RankFailure] = {}
        self._closed: set[int] = set()
        self._deadline_s = float("inf")
        self._kills = oom.kill_counters()
        self._on_cpu = {task.rank for task in tasks if task.plan.ranks[task.rank].device == "cpu"}
        for task in tasks:
            ours, theirs = context().Pipe()
            process = context().Process(
                target=run_rank, args=(task, board, theirs), name=f"rank{task.rank}", daemon=False
            )
            process.start()
            theirs.close()
            self._processes[task.rank], self._pipes[task.rank] = process, ours

    @property
    def pids(self) -> dict[int, int]:
        """Process id per rank."""
        return {rank: process.pid or 0 for rank, process in self._processes.items()}

    def watch(
        self, on_tick: Callable[[], None], elsewhere: Callable[[], Failure | None]
    ) -> Outcome:
        """Wait until all ranks have told their result, one fails, or a signal asks to stop.

        `on_tick` is called between polls, in this process, and so is `elsewhere`, which tells of
        a failure on another node. All ranks have ended on return.
        """
        outcome = Outcome()
        hang = _HangDetector(self._board, self._hardware, list(self._local.values()), self.pids)
        try:
            with _signals() as received:
                while len(outcome.results) < len(self._processes) and outcome.failure is None:
                    self._wait()
                    self._note_peaks(outcome)
                    self._sort_messages(outcome)
                    outcome.failure = outcome.failure or self._dead() or hang.check() or elsewhere()
                    self._heed(received, outcome, hang.longest_step_s)
                    if outcome.failure is None:
                        on_tick()
                if outcome.failure is not None:
                    self._wait_for_others(outcome)
        finally:
            self.end()
        return outcome

    def _wait(self) -> None:
        waiting: list[Connection | int] = [
            *(
                pipe
                for rank, pipe in self._pipes.items()
                if rank not in self._messages and rank not in self._closed
            ),
            *(
                process.sentinel
                for rank, process in self._processes.items()
                if rank not in self._messages
            ),
        ]
        ready = connection.wait(waiting, POLL_S)
        for rank, pipe in self._pipes.items():
            if pipe in ready:
                try:
                    self._messages[rank] = pipe.recv()
                except (EOFError, OSError):
                    self._closed.add(rank)

    def _note_peaks(self, outcome: Outcome) -> None:
        """Keep what each rank holds: one that the kernel ends cannot tell it any more."""
        for rank, pid in self.pids.items():
            held = resident(pid) if rank in self._on_cpu else None
            if held is not None:
                outcome.peak_bytes[rank] = max(held.peak_bytes, outcome.peak_bytes.get(rank, 0))

    def _killed_for_memory(self, code: int) -> str | None:
        if code != -signal.SIGKILL:
            return None
        return oom.killed_for_memory(self._kills, oom.kill_counters())

    def _sort_messages(self, outcome: Outcome) -> None:
        from dpeval.worker import RankResult

        for rank, message in self._messages.items():
            if isinstance(message, RankResult):
                outcome.results[rank] = message
        failures = [item for item in self._messages.values() if not isinstance(item, RankResult)]
        for item in failures:
            if item.peak_bytes is not None:
                outcome.peak_bytes[item.rank] = item.peak_bytes
        if failures:
            outcome.failure = _from_message(min(failures, key=_order))

    def _dead(self) -> Failure | None:
        """The first rank that ended without a word."""
        for rank, process in self._processes.items():
            code = process.exitcode
            if code is None or rank in self._messages:
                continue
            if rank not in self._closed and self._pipes[rank].poll():
                continue  # it ended with a word that is still to be heard
            if code < 0:
                name = signal.Signals(-code).name
                place = self._killed_for_memory(code)
                if place is not None:
                    return Failure("oom", rank, _killed_words(rank, place), signal=name)
                return Failure("signal", rank, f"rank {rank} was ended by {name}", signal=name)
            return Failure("exit", rank, f"rank {rank} left with exit status {code} and no result")
        return None

    def _wait_for_others(self, outcome: Outcome) -> None:
        """Hear what else ends within a moment, so that the cause is named and not its echo."""
        deadline_s = time.monotonic() + 0.5
        while time.monotonic() < deadline_s and len(self._messages) < len(self._processes):
            if all(process.exitcode is not None for process in self._processes.values()):
                break
            self._wait()
        dead = self._dead()
        if dead is not None and dead.kind in ("signal", "oom"):
            outcome.failure = dead
            return
        first = outcome.failure
        self._sort_messages(outcome)
        if first is not None and first.kind in ("signal", "hang", "oom"):
            outcome.failure = first

    def _heed(self, received: list[str], outcome: Outcome, longest_step_s: float) -> None:
        """On the first signal ask for a clean stop; on a second, or when it takes long, end."""
        if not received:
            return
        if outcome.interrupted_by is None:
            outcome.interrupted_by = received[0]
            self._board.request_stop()
            self._deadline_s = time.monotonic() + max(10.0, 3 * longest_step_s)
        measuring = any(self._board.steps(local) for local in self._local.values())
        ablating = any(self._board.stage(local) >= Stage.ABLATION for local in self._local.values())
        if len(received) > 1 or not measuring or ablating or time.monotonic() > self._deadline_s:
            outcome.failure = outcome.failure or Failure(
                "interrupt", None, f"ended by {received[0]}", signal=received[0]
            )

    def end(self) -> None:
        """End every rank and its helpers; returns when none is left."""
        for rank, process in self._processes.items():
            if rank in self._messages:
                process.join(2.0)
            if process.exitcode is None and process.pid:
                # The rank leads its own group unless it had no time to make one.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
        for process in self._processes.values():
            process.join()
        for pipe in self._pipes.values():
            pipe.close()


def _killed_words(rank: int, place: str) -> str:
    whose = "the host" if place == "host" else f"the limit of cgroup {place}"
    return f"rank {rank} was ended by the kernel for lack of memory ({whose})"


def _order(failure: RankFailure) -> tuple[bool, bool, float]:
    """Out of memory first, then by time; errors of collectives are echoes and come last."""
    text = f"{failure.exception} {failure.message}".lower()
    echo = any(word in text for word in COLLECTIVE_ERRORS)
    return not failure.out_of_memory, echo, failure.at_s


def _from_message(failure: RankFailure) -> Failure:
    return Failure(
        kind="oom" if failure.out_of_memory else "exception",
        rank=failure.rank,
        message=failure.message,
        exception=failure.exception,
        log=failure.log,
        user_error=failure.user_error,
    )


class _HangDetector:
    """Tells a run that is slow from one that will never take another step."""

    def __init__(
        self, board: Board, hardware: HardwareConfig, locals_: list[int], pids: dict[int, int]
    ) -> None:
        self._board, self._hardware, self._locals, self._pids = board, hardware, locals_, pids
        self._seen: tuple[float, ...] = ()
        self._since_s = self._idle_since_s = time.monotonic()
        self._cpu_s = self._cpu_at_s = 0.0
        self.longest_step_s = 0.0

    def check(self) -> Failure | None:
        now_s = time.monotonic()
        seen = tuple(self._board.heartbeat_s(local) for local in self._locals)
        if seen != self._seen:
            self._seen, self._since_s, self._idle_since_s = seen, now_s, now_s
            for local in self._locals:
                steps = self._board.steps(local)
                if steps:
                    last_s = float(self._board.rows(local)[steps - 1, COLUMNS.index("step")])
                    self.longest_step_s = max(self.longest_step_s, last_s)
            return None
        return self._quiet(now_s)

    def _quiet(self, now_s: float) -> Failure | None:
        """No heartbeat is new: is anybody still working, and for how long may it take?"""
        quiet_s = now_s - self._since_s
        if quiet_s < IDLE_HANG_S / 2:
            return None
        if now_s - self._cpu_at_s >= CPU_WINDOW_S:
            cpu_s = sum(_cpu_s(pid) for pid in self._pids.values())
            used = (cpu_s - self._cpu_s) / (now_s - self._cpu_at_s)
            # Ranks that only wait still wake up now and then: a hundredth of a core each.
            if used > 0.05 + 0.02 * len(self._pids):
                self._idle_since_s = now_s
            self._cpu_s, self._cpu_at_s = cpu_s, now_s
        steps = max(self._board.steps(local) for local in self._locals)
        patience_s = self._hardware.startup_timeout_s
        if steps:
            patience_s = max(self._hardware.hang_timeout_s, 10 * self.longest_step_s)
        idle_limit_s = max(IDLE_HANG_S, 5 * self.longest_step_s)
        if quiet_s > patience_s:
            return Failure("hang", self._stuck(), self._words(f"no step for {quiet_s:.0f} s"))
        if steps and now_s - self._idle_since_s > idle_limit_s:
            return Failure(
                "hang",
                self._stuck(),
                self._words(f"no step and no processor time for {idle_limit_s:.0f} s"),
            )
        return None

    def _words(self, what: str) -> str:
        stuck = self._stuck()
        return f"hung: {what}" + (f"; rank {stuck} is stopped" if stuck is not None else "")

    def _stuck(self) -> int | None:
        """A rank whose process is stopped (state T), where there is one."""
        for rank, pid in self._pids.items():
            with contextlib.suppress(OSError, IndexError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                    return rank
        return None


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used, s; 0 where it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return time.monotonic()


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect the names of stop signals instead of dying of them."""
    received: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    previous = {}
    try:
        for number in STOP_SIGNALS:
            previous[number] = signal.signal(number, note)
    except ValueError:
        # Signal handlers can be set in the main thread alone; elsewhere the caller has its own.
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
