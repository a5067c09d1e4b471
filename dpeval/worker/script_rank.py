"""The process of one rank that runs a user's script as ``torchrun`` would start it.

:class:`dpeval.Meter` finds this rank through :func:`current`. The result is sent as soon as the
meter has measured enough; the script may then continue for a while.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from torch.distributed import PrefixStore, Store, TCPStore

from dpeval.config import fill_in
from dpeval.devices.base import Device
from dpeval.errors import DpevalError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.instruments.stop_sync import StopSync
from dpeval.instruments.turn_sync import TurnSync
from dpeval.util.arrays import Floats
from dpeval.worker.messages import RankFailure, RankResult, RankTask
from dpeval.worker.rank_process import (
    become_rank,
    failure,
    leave,
    rank_device,
    reference_work_of,
    step_gate,
)
from dpeval.worker.trainer import SetupTimer


class ScriptError(DpevalError):
    """The script misused the meter, or exited with an error."""


@dataclass
class ScriptRank:
    """What a meter needs to know about the rank in whose process it runs."""

    task: RankTask
    device: Device
    timer: SetupTimer
    baseline_bytes: int
    _step_buffer: StepBuffer
    _pipe: Connection
    _turns: Connection | None
    _reference_work: ReferenceWork | None = field(default=None, init=False)
    has_entered: bool = field(default=False, init=False)
    """Whether the script has asked for its first batch."""
    has_reported: bool = field(default=False, init=False)
    at_end: Callable[[], None] | None = field(default=None, init=False)
    """Called if the script ends on its own."""

    @property
    def world_size(self) -> int:
        return self.task.plan.world_size

    @property
    def _local_rank(self) -> int:
        return self.task.plan.ranks[self.task.rank].local_rank

    @property
    def rows(self) -> Floats:
        """Where the times of this rank's steps go, shape [max_steps, columns]."""
        return self._step_buffer.rows(self._local_rank)

    def describe(self, samples_per_step: float | None, unit: str) -> None:
        """Report what is measured, for the progress display.

        Args:
            samples_per_step: samples of all ranks in one step; None: the global batch.
            unit: what a sample is.
        """
        if self.task.rank == 0:
            whole = self.task.plan.global_batch_size
            self._step_buffer.describe(unit, (samples_per_step or whole) / whole)

    def open_gate(self, clock: PhaseClock) -> StopSync | TurnSync:
        """The gate that decides whether the script takes another step; see :func:`step_gate`."""
        self.has_entered = True
        self.timer.lap("script")
        store = self._store() if self.world_size > 1 else None
        self._reference_work = reference_work_of(self.task, self.device)
        return step_gate(
            self.task,
            self._step_buffer,
            self._turns,
            store,
            clock,
            self.device,
            self._reference_work,
        )

    def _store(self) -> Store:
        timeout = timedelta(seconds=self.task.config.hardware.startup_timeout_s)
        host, port = self.task.store_host, self.task.store_port
        return PrefixStore("dpeval", TCPStore(host, port, None, False, timeout))

    def report(self, result: RankResult) -> None:
        """Send this rank's result to the supervisor."""
        if self.has_reported:
            return
        completed = replace(
            result,
            rank=self.task.rank,
            baseline_bytes=self.baseline_bytes,
            setup_s=self.timer.laps_s,
            reference_times=self._reference_work.readings if self._reference_work else None,
        )
        self._step_buffer.beat(self._local_rank, Stage.FINISHED, result.measured_rows)
        self._pipe.send(completed)
        self.has_reported = True


_current: ScriptRank | None = None
"""The rank in this process, which cannot be passed to a script as an argument."""


def current() -> ScriptRank | None:
    """The rank in this process; None outside ``task=script``."""
    return _current


def run_script_rank(
    task: RankTask, step_buffer: StepBuffer, pipe: Connection, gate: Connection | None = None
) -> None:
    """The main function of the process of a rank that runs a script.

    Args:
        task: which script to run, and as which rank.
        step_buffer: shared memory for step times and heartbeats.
        pipe: carries one :class:`RankResult` or :class:`RankFailure` to the parent.
        gate: grants this rank its turns; None if the run has the machine for itself.
    """
    global _current
    timer = SetupTimer()
    become_rank(task, pipe)
    if task.log is not None:
        _print_to(Path(task.log))
    device: Device | None = None
    message: RankFailure | None = None
    try:
        device = rank_device(task)
        timer.lap("device")
        step_buffer.beat(task.plan.ranks[task.rank].local_rank, Stage.STARTING, 0)
        baseline_bytes = device.memory_bytes()
        device.reset_peak()
        _current = ScriptRank(task, device, timer, baseline_bytes, step_buffer, pipe, gate)
        _run(task)
        if _current.at_end is not None:
            _current.at_end()
    except BaseException as error:
        traceback.print_exc()
        message = _failure(task, error, device)
    if message is None and not _has_reported():
        message = _failure(task, _without_result(task), device)
    _flush()
    if message is not None and not _has_reported():
        with contextlib.suppress(OSError):  # the parent has ended
            pipe.send(message)
    _end_helpers()
    leave(0 if message is None else 1, pipe)


def _end_helpers() -> None:
    """Kill what the script has started and left running: loader workers or programs."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _has_reported() -> bool:
    return _current is not None and _current.has_reported


def _failure(task: RankTask, error: BaseException, device: Device | None) -> RankFailure:
    made = failure(task.rank, error, device)
    return replace(made, script_error=isinstance(error, ScriptError))


def _run(task: RankTask) -> None:
    """Run the script as ``python script args`` or ``python -m module args`` would."""
    asked = task.config.task
    mine = task.plan.ranks[task.rank]
    values = {
        "batch": task.plan.global_batch_size,
        "global_batch_size": task.plan.global_batch_size,
        "per_device_batch_size": mine.per_device_batch_size,
        "world_size": task.plan.world_size,
        "seed": task.config.seed,
    }
    args = fill_in(asked.args, values)
    try:
        if asked.script is not None:
            path = Path(asked.script).absolute()
            sys.argv = [asked.script, *args]
            sys.path.insert(0, str(path.parent))
            runpy.run_path(str(path), run_name="__main__")
        else:
            assert asked.module is not None  # one of the two is set
            sys.argv = [asked.module, *args]
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(asked.module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise ScriptError(f"{asked.name} exited with {_status(ended.code)}") from ended


def _status(code: Any) -> str:
    if isinstance(code, int):
        return f"status {code}"
    lines = str(code).strip().splitlines() or ["an empty message"]
    return f"the message: {lines[-1][:200]}"


def _without_result(task: RankTask) -> ScriptError:
    name = task.config.task.name
    if _current is not None and _current.has_entered:
        return ScriptError(
            f"{name} ended before its first step was complete: no optimizer made an update"
        )
    return ScriptError(
        f"{name} ended without a step that the meter saw; let its loop iterate over "
        "dpeval.Meter(…).steps(loader)"
    )


def _print_to(log: Path) -> None:
    """Send everything that this process prints to `log`, appending."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  # lives until exit
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
