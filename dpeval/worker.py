"""ONE rank: set-up, the training loop, what it reports. Read :func:`training_loop` first."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import traceback
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore

from dpeval.ablation import AblationSeries, run_ablation
from dpeval.board import Board, Stage
from dpeval.clock import PhaseClock
from dpeval.components import models, strategies
from dpeval.components.loss import GlobalMeanLoss
from dpeval.components.optimizers import build_optimizer
from dpeval.config import Config
from dpeval.control import Control
from dpeval.data import Source
from dpeval.data.loading.loaders import Feed, make_feed
from dpeval.devices import Device, autocast, grad_scaler, open_device, set_numerics
from dpeval.fixed_work import FixedWork
from dpeval.heap import keep_freed_memory
from dpeval.oom import be_first_to_go, is_out_of_memory
from dpeval.record.codes import StopReason
from dpeval.record.plan import Plan
from dpeval.record.reference_times import ReferenceTimes
from dpeval.util.importing import locate


@dataclass(frozen=True)
class RankTask:
    """Everything that one rank needs to know; travels to its process."""

    config: Config
    plan: Plan
    rank: int
    source: Source
    store_host: str
    store_port: int
    env: dict[str, str]


@dataclass(frozen=True)
class RankResult:
    """What a rank that came to its end tells; the step series lie on the board."""

    rank: int
    host: str
    pid: int
    stopped_by: StopReason
    losses: list[float]
    peak_bytes: int | None
    baseline_bytes: int
    setup_s: dict[str, float]
    buckets: dict[int, tuple[int, list[float]]]
    ablation: list[AblationSeries]
    images_read: int
    measured_rows: int
    yardstick: ReferenceTimes | None = None


@dataclass(frozen=True)
class RankFailure:
    """Why a rank could not go on."""

    rank: int
    at_s: float
    """Monotonic time, to tell the first failure from those it caused."""
    exception: str
    message: str
    log: str
    user_error: bool = False
    out_of_memory: bool = False
    peak_bytes: int | None = None


@dataclass
class Trainer:
    """One rank's objects, ready for the loop."""

    config: Config
    plan: Plan
    rank: int
    device: Device
    clock: PhaseClock
    feed: Feed
    model: nn.Module
    """The bare model; `wrapped` holds it for training."""
    wrapped: strategies.Wrapped
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    parts: int = field(init=False)
    """Micro-batches of this rank in one step."""
    criterion: GlobalMeanLoss = field(init=False)
    autocast: AbstractContextManager[Any] = field(init=False)
    losses: list[Tensor] = field(default_factory=list[Tensor])
    """One per micro-batch and step, detached."""

    def __post_init__(self) -> None:
        self.parts = min(self.plan.micro_batches, self.plan.ranks[self.rank].batch)
        self.criterion = GlobalMeanLoss(self.plan.global_batch)
        self.autocast = autocast(self.device, self.config.precision)

    def step_losses(self) -> list[float]:
        """The mean loss of this rank's images in every step."""
        weight = self.plan.ranks[self.rank].weight
        sums = torch.stack(self.losses).float().cpu().view(-1, self.parts).sum(1)
        return [float(loss) / weight for loss in sums]


def training_loop(trainer: Trainer, control: Control) -> int:
    """Train until `control` says stop; return the number of steps taken."""
    steps = 0
    while True:
        train_step(trainer, steps)
        steps += 1
        if not control.go_on(steps):
            return steps


def train_step(trainer: Trainer, index: int, *, sync: bool = True) -> None:
    """One step: fetch, copy to the device, forward, backward, update.

    Every ``clock.mark`` assigns the time since the mark before it. With ``sync=False`` the
    gradients stay on this rank (ablation only).
    """
    clock, feed, wrapped = trainer.clock, trainer.feed, trainer.wrapped
    clock.start_step(index, time.monotonic())
    batch = feed.next()
    clock.mark("data")
    images, labels = feed.put(batch)
    clock.mark("h2d")
    parts = micro_batches(images, labels, trainer.parts)
    for part in parts[:-1] if sync else parts:
        with wrapped.no_sync():
            forward_backward(trainer, *part)
    if sync:
        forward_backward(trainer, *parts[-1])
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    clock.mark("optimizer")
    clock.end_step()


def forward_backward(trainer: Trainer, images: Tensor, labels: Tensor) -> None:
    """One micro-batch: its loss, and its gradients added to those of the step."""
    with trainer.autocast:
        loss = trainer.criterion(trainer.wrapped.module(images), labels)
    trainer.clock.mark("forward")
    trainer.scaler.scale(loss).backward()
    trainer.clock.mark("backward")
    trainer.losses.append(loss.detach())


def micro_batches(images: Tensor, labels: Tensor, parts: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch into `parts` parts as equal as can be."""
    if parts == 1:
        return [(images, labels)]
    return list(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True))


def run_rank(task: RankTask, board: Board, pipe: Connection) -> None:
    """The whole life of a rank's process; its last act is to send a result or a failure."""
    # An own process group: Ctrl-C reaches the parent alone, which ends ranks in order, and a
    # rank's helpers end with it.
    os.setpgid(0, 0)
    be_first_to_go()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    os.environ.update(task.env)
    device: Device | None = None
    try:
        if task.config.hardware.keep_memory:
            keep_freed_memory()
        rank = task.plan.ranks[task.rank]
        device = open_device(rank.device, rank.cpus, rank.threads)
        message: RankResult | RankFailure = _live(task, board, device)
    except BaseException as error:
        message = _failure(task.rank, error, device)
    pipe.send(message)
    # Leave without tearing libraries down: a peer that failed can make their exit hang.
    pipe.close()
    _save_coverage()
    os._exit(0 if isinstance(message, RankResult) else 1)


def _save_coverage() -> None:
    """Let a coverage measurement of the tests see what ran in this process."""
    import sys

    if "coverage" in sys.modules:
        from coverage import Coverage

        current = Coverage.current()
        if current is not None:
            current.stop()
            current.save()


def _end_with_parent(pipe: Connection) -> None:
    """End this rank and its helpers when the parent is gone, however it went."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def _live(task: RankTask, board: Board, device: Device) -> RankResult:
    config, plan = task.config, task.plan
    local_rank = plan.ranks[task.rank].local_rank
    board.beat(local_rank, Stage.STARTING, 0)
    timer = SetupTimer()
    baseline_bytes = device.memory_bytes()
    device.reset_peak()
    store = rendezvous(task)
    timer.lap("rendezvous")
    clock = PhaseClock(device, board.rows(local_rank))
    trainer = build_trainer(task, device, clock, timer)
    is_watched = config.measure.conditions and not device.is_cuda
    fixed_work = FixedWork() if is_watched else None
    control = Control(task.rank, local_rank, store, board, clock, config.measure, fixed_work)
    training_loop(trainer, control)
    device.finish()
    clock.drain()
    board.beat(local_rank, Stage.ABLATION, clock.finished)
    peak_bytes, rows = device.peak_bytes(), clock.finished
    losses = trainer.step_losses()
    assert control.stopped_by is not None  # the loop ends only when it is set
    series: list[AblationSeries] = []
    if config.measure.ablation and control.stopped_by != "interrupted" and store is not None:
        series = run_ablation(trainer, train_step, store, board, rows)
    board.beat(local_rank, Stage.FINISHED, rows)
    trainer.feed.close()
    return RankResult(
        rank=task.rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        stopped_by=control.stopped_by,
        losses=losses,
        peak_bytes=peak_bytes,
        baseline_bytes=baseline_bytes,
        setup_s=timer.laps_s,
        buckets=clock.bucket_s,
        ablation=series,
        images_read=trainer.feed.images_read,
        measured_rows=rows,
        yardstick=fixed_work.readings if fixed_work is not None else None,
    )


class SetupTimer:
    """Wall time of the parts of the set-up, s."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self.laps_s: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now_s = time.monotonic()
        self.laps_s[name], self._last_s = now_s - self._last_s, now_s


def rendezvous(task: RankTask) -> Store | None:
    """Join the process group through the store that the parent serves; None for a lone rank."""
    if task.plan.world_size == 1 and task.config.strategy.name == "none":
        return None
    timeout = timedelta(seconds=task.config.hardware.startup_timeout_s)
    store = TCPStore(task.store_host, task.store_port, None, False, timeout)
    dist.init_process_group(
        task.plan.backend,
        store=PrefixStore("group", store),
        rank=task.rank,
        world_size=task.plan.world_size,
        timeout=timeout,
    )
    return store


def build_trainer(task: RankTask, device: Device, clock: PhaseClock, timer: SetupTimer) -> Trainer:
    """This rank's model, data, strategy and optimizer; the process group is joined already.

    Raises:
        DpevalError: some part cannot be made as the configuration asks.
    """
    config, plan = task.config, task.plan
    set_numerics(config.precision, deterministic=config.deterministic)
    torch.manual_seed(config.seed)
    model = models.build(config.model).to(device.torch_device)
    channels_last = config.memory_format == "channels_last"
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    timer.lap("model")
    feed = make_feed(
        task.source,
        config.dataset,
        shares=[rank.batch for rank in plan.ranks],
        rank=task.rank,
        seed=config.seed,
        device=device,
        channels_last=channels_last,
        spare_cpus=plan.ranks[task.rank].spare_cpus,
    )
    timer.lap("data")
    strategy = locate(config.strategy._target_, key="strategy._target_")
    wrapped = strategy(model, config.strategy, device, clock)
    if config.compile:
        wrapped = strategies.Wrapped(torch.compile(wrapped.module), wrapped.no_sync)
    timer.lap("wrap")
    return Trainer(
        config=config,
        plan=plan,
        rank=task.rank,
        device=device,
        clock=clock,
        feed=feed,
        model=model,
        wrapped=wrapped,
        optimizer=build_optimizer(config.optimizer, model),
        scaler=grad_scaler(device, config.precision),
    )


def _failure(rank: int, error: BaseException, device: Device | None) -> RankFailure:
    from dpeval.errors import DpevalError

    return RankFailure(
        rank=rank,
        at_s=time.monotonic(),
        exception=type(error).__name__,
        message=str(error).strip() or type(error).__name__,
        log=traceback.format_exc(limit=-20),
        user_error=isinstance(error, DpevalError),
        out_of_memory=is_out_of_memory(error),
        peak_bytes=device.peak_bytes() if device is not None else None,
    )
