"""The process of one rank: set-up, loop, ablation, result or failure."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from contextlib import nullcontext
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore

from dpeval.config import SERIAL
from dpeval.devices.base import Device
from dpeval.devices.select import open_device
from dpeval.errors import DpevalError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.instruments.stop_sync import StopSync
from dpeval.instruments.turn_sync import TurnSync
from dpeval.system.oom import is_out_of_memory
from dpeval.system.processes.process import keep_freed_memory, lazy_timers, prefer_oom_kill
from dpeval.util import entry
from dpeval.util.display import output
from dpeval.util.display.units import GIB
from dpeval.worker.ablation import Blocks, can_ablate, run_ablation
from dpeval.worker.faults import told
from dpeval.worker.loop import train_step, training_loop
from dpeval.worker.messages import AblationSeries, RankFailure, RankResult, RankTask
from dpeval.worker.trainer import SetupTimer, build_trainer


def run_rank(
    task: RankTask, step_buffer: StepBuffer, pipe: Connection, gate: Connection | None = None
) -> None:
    """The main function of a rank's process; its last act is to send a result or a failure.

    Args:
        task: what to train, and as which rank.
        step_buffer: shared memory for step times and heartbeats.
        pipe: carries one :class:`RankResult` or :class:`RankFailure` to the parent.
        gate: grants this rank its turns; None if the run has the machine to itself.
    """
    timer = SetupTimer()
    become_rank(task, pipe)
    device: Device | None = None
    try:
        device = rank_device(task)
        timer.lap("device")
        message: RankResult | RankFailure = _train(task, step_buffer, device, timer, gate)
    except BaseException as error:
        message = failure(task.rank, error, device)
    with contextlib.suppress(OSError):  # the parent has ended
        pipe.send(message)
    leave(0 if isinstance(message, RankResult) else 1, pipe)


def become_rank(task: RankTask, pipe: Connection) -> None:
    """Prepare this process: its group, its signals, its environment."""
    # In a separate process group: Ctrl-C reaches only the parent, which stops the ranks in order,
    # and a rank's helpers are killed with it.
    os.setpgid(0, 0)
    prefer_oom_kill()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the forkserver blocks some
    threading.Thread(target=_exit_with_parent, args=(pipe,), daemon=True).start()
    os.environ.pop(entry.SAFE_PATH, None)  # for the forkserver, not for programs a model starts
    os.environ.update(task.env)
    output.protect()  # a model may print, and the reader may have left


def rank_device(task: RankTask) -> Device:
    """Open the device that the plan assigns to this rank."""
    if task.config.hardware.keep_memory:
        keep_freed_memory()
    rank = task.plan.ranks[task.rank]
    memory_gib = task.config.hardware.memory_gib
    device = open_device(
        rank.device,
        rank.cpus,
        rank.threads,
        budget_bytes=int(memory_gib * GIB) if memory_gib is not None else None,
        uses_nccl=task.plan.world_size > 1 and task.plan.backend == "nccl",
    )
    # The first allocation creates the CUDA context, which takes most of a second.
    torch.empty(1, device=device.torch_device)
    return device


def leave(status: int, pipe: Connection) -> NoReturn:
    """End this process without library cleanup, which can hang if a peer has failed."""
    pipe.close()
    _save_coverage()
    os._exit(status)


def _save_coverage() -> None:
    """Save the test suite's coverage data of this process."""
    import sys

    if "coverage" in sys.modules:
        from coverage import Coverage

        current = Coverage.current()
        if current is not None:
            current.stop()
            current.save()


def _exit_with_parent(pipe: Connection) -> None:
    """Kill this rank and its helpers when the parent ends, for whatever reason."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def _train(
    task: RankTask,
    step_buffer: StepBuffer,
    device: Device,
    timer: SetupTimer,
    gate: Connection | None,
) -> RankResult:
    config, plan = task.config, task.plan
    local_rank = plan.ranks[task.rank].local_rank
    step_buffer.beat(local_rank, Stage.STARTING, 0)
    baseline_bytes = device.memory_bytes()
    device.reset_peak()
    store = rendezvous(task)
    timer.lap("rendezvous")
    clock = PhaseClock(device, step_buffer.rows(local_rank))
    trainer = build_trainer(task, device, clock, timer)
    if task.rank == 0:
        step_buffer.describe(trainer.task.unit, trainer.task.samples_per_item)
    reference_work = reference_work_of(task, device)
    blocks: Blocks | None = None
    if gate is not None and config.measure.ablation and can_ablate(trainer):
        blocks = Blocks(trainer, train_step)
    stop_sync = step_gate(task, step_buffer, gate, store, clock, device, reference_work, blocks)
    training_loop(trainer, stop_sync)
    device.finish()
    clock.drain()
    step_buffer.beat(local_rank, Stage.ABLATION, clock.finished)
    peak_bytes, rows = device.peak_bytes(), clock.finished
    peak_allocated_bytes = device.peak_allocated_bytes()
    losses = trainer.step_losses()
    assert stop_sync.stopped_by is not None  # set whenever the loop ends
    series: list[AblationSeries] = []
    is_bound = plan.world_size > 1 and not trainer.wrapped.can_keep_gradients
    if blocks is not None:
        series, peak_bytes = blocks.series, blocks.without_copy(peak_bytes)
    elif (
        gate is None
        and config.measure.ablation
        and stop_sync.stopped_by != "interrupted"
        and store is not None
    ):
        series = run_ablation(trainer, train_step, store, step_buffer, rows)
    step_buffer.beat(local_rank, Stage.FINISHED, rows)
    trainer.loader.close()
    return RankResult(
        rank=task.rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        stopped_by=stop_sync.stopped_by,
        losses=losses,
        peak_bytes=peak_bytes,
        peak_allocated_bytes=peak_allocated_bytes,
        tuning_peak_bytes=trainer.tuning_peak_bytes,
        baseline_bytes=baseline_bytes,
        setup_s=timer.laps_s,
        buckets=clock.bucket_s,
        ablation=series,
        measured_rows=rows,
        unit=trainer.task.unit,
        samples_per_step=trainer.samples_per_step(),
        cannot_ablate=config.measure.ablation and is_bound,
        reference_times=reference_work.readings if reference_work is not None else None,
    )


def reference_work_of(task: RankTask, device: Device) -> ReferenceWork | None:
    """The reference work that this rank does between steps, if it does any."""
    return ReferenceWork() if task.config.measure.conditions and not device.is_cuda else None


def step_gate(
    task: RankTask,
    step_buffer: StepBuffer,
    gate: Connection | None,
    store: Store | None,
    clock: PhaseClock,
    device: Device,
    reference_work: ReferenceWork | None,
    blocks: Blocks | None = None,
) -> StopSync | TurnSync:
    """The gate that decides whether this rank takes another step; waits for the first turn, if any.

    Args:
        task: the run and the rank.
        step_buffer: receives heartbeats.
        gate: grants this rank its turns; None if the run has the machine for itself.
        store: the rendezvous store; None for a single rank without one.
        clock: this rank's phase clock.
        device: the rank's device.
        reference_work: done between steps; None on CUDA.
        blocks: takes blocks of the ablation; None if no ablation is wanted.
    """
    local_rank = task.plan.ranks[task.rank].local_rank
    if gate is None:
        measure = task.config.measure
        return StopSync(task.rank, local_rank, store, step_buffer, clock, measure, reference_work)
    turns = TurnSync(gate, local_rank, step_buffer, clock, device, reference_work, blocks)
    turns.begin()
    return turns


def failure(rank: int, error: BaseException, device: Device | None) -> RankFailure:
    """The message to the parent about an error that ended the rank.

    Args:
        rank: the rank.
        error: what was raised.
        device: the rank's device; None if it was not opened.
    """
    return RankFailure(
        rank=rank,
        at_s=time.monotonic(),
        exception=type(error).__name__,
        message=str(error) if isinstance(error, DpevalError) else told(error),
        log=traceback.format_exc(limit=-20),
        user_error=isinstance(error, DpevalError),
        out_of_memory=is_out_of_memory(error, _free_bytes(device)),
        peak_bytes=device.peak_bytes() if device is not None else None,
    )


def _free_bytes(device: Device | None) -> int | None:
    """Memory free on the device after a failure; None if it is unknown."""
    try:
        return device.free_bytes() if device is not None else None
    except RuntimeError:
        return None  # after some CUDA errors, every further call fails too


def rendezvous(task: RankTask) -> Store | None:
    """Join the process group through the parent's store; None for a single rank without one."""
    if task.plan.world_size == 1 and task.config.strategy.name == SERIAL:
        return None
    timeout = timedelta(seconds=task.config.hardware.startup_timeout_s)
    store = TCPStore(task.store_host, task.store_port, None, False, timeout)
    with lazy_timers() if task.plan.backend == "gloo" else nullcontext():
        dist.init_process_group(
            task.plan.backend,
            store=PrefixStore("group", store),
            rank=task.rank,
            world_size=task.plan.world_size,
            timeout=timeout,
        )
    return store
