"""Distinguish a slow run from one that is stuck."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from dpeval.config import HardwareConfig
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.run.recording.outcome import Failure
from dpeval.util.display.units import KIB

CPU_WINDOW_S = 2.0
IDLE_HANG_S = 10.0
"""A run is stuck if no rank has finished a step or used CPU time for this long."""
IDLE_START_S = 60.0
"""The same before the first step, when a file system or a download may be slow."""
PAUSE_S = 2.0
"""Checks are less than a second apart; a longer gap means that this process was itself stopped."""
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class HangDetector:
    """Distinguishes a slow run from one that is stuck."""

    def __init__(
        self,
        step_buffer: StepBuffer,
        hardware: HardwareConfig,
        locals_: list[int],
        pids: dict[int, int],
        *,
        has_peers: bool = False,
    ) -> None:
        """Watch the ranks of one node.

        Args:
            step_buffer: where the ranks write heartbeats and step times.
            hardware: its ``startup_timeout_s`` and ``hang_timeout_s`` apply.
            locals_: local ranks, which index `step_buffer`.
            pids: process id per global rank.
            has_peers: whether other nodes take part; waiting for them to start is not a hang.
        """
        self._has_peers = has_peers
        self.pauses: list[tuple[float, float]] = []
        """When this process and the ranks were suspended: begin and end on the monotonic clock."""
        self._step_buffer, self._hardware = step_buffer, hardware
        self._locals, self._pids = locals_, pids
        self._seen: tuple[float, ...] = ()
        self._since_s = self._idle_since_s = time.monotonic()
        self._progress, self._cpu_at_s = _Progress(), 0.0
        self._checked_s, self._own_cpu_s = time.monotonic(), time.process_time()
        self.longest_step_s = 0.0

    def rest(self) -> None:
        """Restart the timers: until now the ranks had nothing to do."""
        self._since_s = self._idle_since_s = self._checked_s = time.monotonic()
        self._own_cpu_s = time.process_time()

    def check(self) -> Failure | None:
        """The hang, once it is certain; call this often."""
        now_s = time.monotonic()
        self._notice_pause(now_s)
        seen = tuple(self._step_buffer.heartbeat_s(local) for local in self._locals)
        if seen != self._seen:
            self._seen, self._since_s, self._idle_since_s = seen, now_s, now_s
            for local in self._locals:
                steps = self._step_buffer.steps(local)
                if steps:
                    last_s = float(self._step_buffer.rows(local)[steps - 1, COLUMNS.index("step")])
                    self.longest_step_s = max(self.longest_step_s, last_s)
            return None
        return self._quiet(now_s)

    def _notice_pause(self, now_s: float) -> None:
        """Restart the timers if this process was suspended, by its scheduler or with Ctrl-Z."""
        away_s, busy_s = now_s - self._checked_s, time.process_time() - self._own_cpu_s
        if away_s > PAUSE_S:
            if busy_s < away_s / 2:
                self.pauses.append((self._checked_s, now_s))
            self.rest()
        self._checked_s, self._own_cpu_s = now_s, time.process_time()

    def _quiet(self, now_s: float) -> Failure | None:
        """Without a new heartbeat: is any rank still working, and how long may a step take?"""
        quiet_s = now_s - self._since_s
        if quiet_s < IDLE_HANG_S / 2:
            return None
        if now_s - self._cpu_at_s >= CPU_WINDOW_S:
            progress = _progress(self._pids.values())
            # Even waiting ranks wake up now and then and use a hundredth of a core each.
            idle = 0.05 + 0.02 * len(self._pids)
            if progress.is_ahead_of(self._progress, idle * (now_s - self._cpu_at_s)):
                self._idle_since_s = now_s
            self._progress, self._cpu_at_s = progress, now_s
        steps = max(self._step_buffer.steps(local) for local in self._locals)
        patience_s = self._hardware.startup_timeout_s
        if steps:
            patience_s = max(self._hardware.hang_timeout_s, 10 * self.longest_step_s)
        idle_limit_s = max(IDLE_HANG_S, 5 * self.longest_step_s)
        if quiet_s > patience_s:
            return Failure("hang", self._stuck(), self._message(f"no step for {quiet_s:.0f} s"))
        if not steps:
            idle_limit_s = math.inf if self._has_peers else IDLE_START_S
        if now_s - self._idle_since_s > idle_limit_s:
            return Failure(
                "hang",
                self._stuck(),
                self._message(f"no step, CPU time or data for {idle_limit_s:.0f} s"),
            )
        return None

    def _message(self, what: str) -> str:
        stuck = self._stuck()
        return f"hung: {what}" + (f"; rank {stuck} is stopped" if stuck is not None else "")

    def _stuck(self) -> int | None:
        """A rank whose process is stopped or traced, if any."""
        for rank, pid in self._pids.items():
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).status() in _STOPPED:
                    return rank
        return None


@dataclass(frozen=True)
class _Progress:
    """What some processes have done so far."""

    cpu_s: float = 0.0
    data_bytes: int = 0
    is_reading: bool = False
    """Whether one waits for a disk or a network file system."""

    def is_ahead_of(self, earlier: _Progress, least_cpu_s: float) -> bool:
        """Whether they have done something since `earlier`; `least_cpu_s`: more than idling."""
        return (
            self.is_reading
            or self.cpu_s - earlier.cpu_s > least_cpu_s
            or self.data_bytes - earlier.data_bytes > _LEAST_DATA_BYTES
        )


_LEAST_DATA_BYTES = 64 * KIB


def _progress(pids: Iterable[int]) -> _Progress:
    """What the processes `pids` and those that they started have done so far.

    A process that cannot be read counts as busy: it has ended, which another check reports.
    """
    cpu_s, data_bytes, is_reading = 0.0, 0, False
    for pid in pids:
        try:
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                cpu_s += times.user + times.system
                is_reading |= one.status() == psutil.STATUS_DISK_SLEEP
                with contextlib.suppress(psutil.AccessDenied, AttributeError):
                    counted = one.io_counters()
                    data_bytes += counted.read_chars + counted.write_chars
        except psutil.Error:
            return _Progress(cpu_s=time.monotonic())
    return _Progress(cpu_s, data_bytes, is_reading)
