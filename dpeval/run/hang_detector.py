"""Distinguish a slow run from one that is stuck."""

from __future__ import annotations

import contextlib
import time

import psutil

from dpeval.config import HardwareConfig
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.run.outcome import Failure

CPU_WINDOW_S = 2.0
IDLE_HANG_S = 10.0
"""A run with no new step and no CPU time on any rank for this long is stuck."""
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class HangDetector:
    """Distinguishes a slow run from one that is stuck."""

    def __init__(
        self,
        step_buffer: StepBuffer,
        hardware: HardwareConfig,
        locals_: list[int],
        pids: dict[int, int],
    ) -> None:
        """Watch the ranks of one node.

        Args:
            step_buffer: where the ranks write heartbeats and step times.
            hardware: its ``startup_timeout_s`` and ``hang_timeout_s`` apply.
            locals_: local ranks, which index `step_buffer`.
            pids: process id per global rank.
        """
        self._step_buffer, self._hardware = step_buffer, hardware
        self._locals, self._pids = locals_, pids
        self._seen: tuple[float, ...] = ()
        self._since_s = self._idle_since_s = time.monotonic()
        self._cpu_s = self._cpu_at_s = 0.0
        self.longest_step_s = 0.0

    def rest(self) -> None:
        """Begin anew: until now the ranks had nothing to do."""
        self._since_s = self._idle_since_s = time.monotonic()

    def check(self) -> Failure | None:
        """The hang, once one is certain; call often."""
        now_s = time.monotonic()
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

    def _quiet(self, now_s: float) -> Failure | None:
        """Without a new heartbeat: is any rank still working, and how long may a step take?"""
        quiet_s = now_s - self._since_s
        if quiet_s < IDLE_HANG_S / 2:
            return None
        if now_s - self._cpu_at_s >= CPU_WINDOW_S:
            cpu_s = sum(_cpu_s(pid) for pid in self._pids.values())
            used = (cpu_s - self._cpu_s) / (now_s - self._cpu_at_s)
            # Even waiting ranks wake up now and then and use a hundredth of a core each.
            if used > 0.05 + 0.02 * len(self._pids):
                self._idle_since_s = now_s
            self._cpu_s, self._cpu_at_s = cpu_s, now_s
        steps = max(self._step_buffer.steps(local) for local in self._locals)
        patience_s = self._hardware.startup_timeout_s
        if steps:
            patience_s = max(self._hardware.hang_timeout_s, 10 * self.longest_step_s)
        idle_limit_s = max(IDLE_HANG_S, 5 * self.longest_step_s)
        if quiet_s > patience_s:
            return Failure("hang", self._stuck(), self._message(f"no step for {quiet_s:.0f} s"))
        if steps and now_s - self._idle_since_s > idle_limit_s:
            return Failure(
                "hang",
                self._stuck(),
                self._message(f"no step and no CPU time for {idle_limit_s:.0f} s"),
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


def _cpu_s(pid: int) -> float:
    """CPU time of a process, s.

    A process that cannot be read counts as busy: it has ended, which another check reports.
    """
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return time.monotonic()
    return float(times.user + times.system)
