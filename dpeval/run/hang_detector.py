"""Tell a run that is slow from one that will never take another step."""

from __future__ import annotations

import contextlib
import time

import psutil

from dpeval.config import HardwareConfig
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.run.outcome import Failure

CPU_WINDOW_S = 2.0
IDLE_HANG_S = 10.0
"""No new step and no processor time used by any rank for this long: nothing will come."""
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class HangDetector:
    """Tells a run that is slow from one that will never take another step."""

    def __init__(
        self,
        step_buffer: StepBuffer,
        hardware: HardwareConfig,
        locals_: list[int],
        pids: dict[int, int],
    ) -> None:
        self._step_buffer, self._hardware, self._locals, self._pids = (
            step_buffer,
            hardware,
            locals_,
            pids,
        )
        self._seen: tuple[float, ...] = ()
        self._since_s = self._idle_since_s = time.monotonic()
        self._cpu_s = self._cpu_at_s = 0.0
        self.longest_step_s = 0.0

    def check(self) -> Failure | None:
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
        steps = max(self._step_buffer.steps(local) for local in self._locals)
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
        """A rank whose process is stopped or traced, where there is one."""
        for rank, pid in self._pids.items():
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).status() in _STOPPED:
                    return rank
        return None


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used, s.

    One that cannot be read passes for busy: it has ended, and another check says how.
    """
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return time.monotonic()
    return float(times.user + times.system)
