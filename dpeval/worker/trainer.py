"""One rank's model, data, strategy and optimizer, ready for the loop."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dpeval.components import strategies
from dpeval.components.optimizers import build_optimizer
from dpeval.components.tasks import Rank, Task, task_of
from dpeval.components.tasks.base import Loss
from dpeval.config import Config
from dpeval.data.loading.loaders import Loader, Shard
from dpeval.data.sources.source import NO_SOURCE
from dpeval.devices.base import Device
from dpeval.devices.numerics import autocast, grad_scaler, set_numerics
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.record.plan import Plan
from dpeval.worker.messages import RankTask


@dataclass
class Trainer:
    """One rank's objects, ready for the loop."""

    config: Config
    plan: Plan
    rank: int
    device: Device
    clock: PhaseClock
    task: Task
    loader: Loader
    model: nn.Module
    """The model itself; `wrapped` is the one to train."""
    wrapped: strategies.WrappedModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    parts: int = field(init=False)
    """Number of micro-batches of this rank in one step."""
    loss: Loss = field(init=False)
    autocast: AbstractContextManager[Any] = field(init=False)
    losses: list[Tensor] = field(default_factory=list[Tensor])
    """One loss per micro-batch and step, detached."""
    tuning_peak_bytes: int | None = None
    """Memory peak of the first step; None on the CPU."""
    steps_taken: int = 0
    """Steps so far, including those of ablation windows."""

    def __post_init__(self) -> None:
        self.parts = min(self.plan.micro_batches, self.plan.ranks[self.rank].per_device_batch_size)
        self.loss = self.task.loss(
            self.model, rank_of(self.config, self.plan, self.rank, self.device)
        )
        self.autocast = autocast(self.device, self.config.precision)

    def step_losses(self) -> list[float]:
        """Mean loss over this rank's part of the batch, per step."""
        weight = self.plan.ranks[self.rank].weight
        sums = torch.stack(self.losses).float().cpu().view(-1, self.parts).sum(1)
        return [float(loss) / weight for loss in sums]

    def samples_per_step(self) -> float:
        """Samples of this rank in a step; if steps differ, their mean so far."""
        each = self.task.samples_per_item
        if each is not None:
            return each * self.plan.ranks[self.rank].per_device_batch_size
        return self.loader.images_read / self.steps_taken


class SetupTimer:
    """Times the parts of the set-up."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self.laps_s: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Record the wall time since the previous lap as part `name`, s."""
        now_s = time.monotonic()
        self.laps_s[name], self._last_s = now_s - self._last_s, now_s


def rank_of(config: Config, plan: Plan, rank: int, device: Device) -> Rank:
    """What a task needs to know about a rank.

    Args:
        config: the run's configuration.
        plan: its plan.
        rank: the rank.
        device: the rank's device.
    """
    return Rank(
        rank=rank,
        world_size=plan.world_size,
        global_batch_size=plan.global_batch_size,
        per_device_batch_size=plan.ranks[rank].per_device_batch_size,
        device=device.torch_device,
        seed=config.seed,
    )


def build_trainer(task: RankTask, device: Device, clock: PhaseClock, timer: SetupTimer) -> Trainer:
    """Build this rank's model, loader, strategy and optimizer.

    The rank must have joined the process group.

    Args:
        task: the configuration, the plan and the rank.
        device: the rank's device.
        clock: times the rank's steps.
        timer: records how long each part takes.

    Raises:
        DpevalError: some part cannot be built as configured.
    """
    config, plan = task.config, task.plan
    set_numerics(config.precision, deterministic=config.deterministic)
    torch.manual_seed(config.seed)
    trained = task_of(config)
    model = trained.model(rank_of(config, plan, task.rank, device)).to(device.torch_device)
    channels_last = config.memory_format == "channels_last"
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    timer.lap("model")
    shard = Shard(
        task.source or NO_SOURCE,
        config.dataset,
        shares=[each.per_device_batch_size for each in plan.ranks],
        rank=task.rank,
        seed=config.seed,
        device=device,
        channels_last=channels_last,
        spare_cpus=plan.ranks[task.rank].spare_cpus,
    )
    loader = trained.loader(shard)
    timer.lap("data")
    wrapped = strategies.wrap(model, config.strategy, device, clock)
    if config.compile:
        wrapped = replace(wrapped, module=torch.compile(wrapped.module))
    timer.lap("wrap")
    return Trainer(
        config=config,
        plan=plan,
        rank=task.rank,
        device=device,
        clock=clock,
        task=trained,
        loader=loader,
        model=model,
        wrapped=wrapped,
        optimizer=build_optimizer(config.optimizer, model),
        scaler=grad_scaler(device, config.precision),
    )
