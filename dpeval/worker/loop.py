"""The training loop of one rank, top to bottom."""

from __future__ import annotations

import time

from torch import Tensor

from dpeval.instruments.stop_sync import Control
from dpeval.worker.trainer import Trainer


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
