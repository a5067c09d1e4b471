"""The training loop of one rank, top to bottom; it is the same on CPU and on CUDA."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Protocol

from dpeval.worker.trainer import Trainer


class StepGate(Protocol):
    """Decides between two steps whether to continue, and waits until this rank may."""

    def go_on(self, steps: int) -> bool: ...


def training_loop(trainer: Trainer, gate: StepGate) -> int:
    """Train until `gate` says stop; return the number of steps, which all ranks share."""
    steps = 0
    while True:
        train_step(trainer, steps)
        steps += 1
        if steps == 1:
            trainer.tuning_peak_bytes = trainer.device.end_tuning()
        # The decision, the reference work and other runs' turns happen between steps, so no step
        # includes them.
        if not gate.go_on(steps):
            return steps


def train_step(trainer: Trainer, index: int, *, sync: bool = True) -> None:
    """One step: fetch, copy to the device, forward, backward, update.

    Every ``clock.mark(phase)`` assigns the time since the previous mark to `phase`. Two
    phases are not marked here: ``comm_exposed`` and ``grad_copy``. DDP broadcasts buffers inside
    the model's forward pass, where the strategy marks it
    (:func:`dpeval.components.strategies.timed_broadcast`). Gradients are summed inside
    ``backward()``, so the strategy's communication hook stamps the last gradient and the end of
    every all-reduce there (:func:`dpeval.components.strategies.timed_all_reduce`), and the clock
    splits the time of ``backward()`` at the last gradient and at the end of the last all-reduce.

    Args:
        trainer: this rank's model, loader, optimizer and clock.
        index: the step's row in the clock's table.
        sync: whether gradients are summed over the ranks; False only in ablation windows.
    """
    clock, wrapped = trainer.clock, trainer.wrapped
    clock.start_step(index, time.monotonic())

    # A loader that keeps up has the batch ready; this phase measures the wait for it.
    batch = trainer.loader.next()
    clock.mark("data")
    # On CUDA, the copy started one step earlier on a separate stream; this waits for the rest.
    ready = trainer.loader.put(batch)
    clock.mark("h2d")

    # All micro-batches but the last accumulate gradients locally, so each step reduces every
    # gradient once, however many micro-batches it has.
    *first, last = micro_batches(ready, trainer.parts)
    for part in first:
        with wrapped.no_sync():
            forward_backward(trainer, part)
    with nullcontext() if sync else wrapped.no_sync():
        forward_backward(trainer, last)

    # The scaler is a pass-through except in fp16, where it unscales the gradients first.
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    # Gradients become None: zeroing would write each of them once more.
    trainer.optimizer.zero_grad(set_to_none=True)
    clock.end_step("optimizer")
    trainer.steps_taken += 1


def forward_backward(trainer: Trainer, batch: Any) -> None:
    """Compute the loss of one micro-batch, on the device, and add its gradients to the step's."""
    with trainer.autocast:
        loss = trainer.loss(trainer.wrapped.module, batch)
    trainer.clock.mark("forward")
    trainer.scaler.scale(loss).backward()
    trainer.clock.mark("backward")
    # Keep the tensor: reading its value would wait for the device.
    trainer.losses.append(loss.detach())


def micro_batches(batch: Any, parts: int) -> list[Any]:
    """Split a batch into parts of nearly equal size.

    Args:
        batch: tensors whose first dimension is that of the batch; anything if `parts` is 1, as it
            is for tasks whose memory is not forecast.
        parts: number of micro-batches, at most as many as the batch has items.
    """
    if parts == 1:
        return [batch]
    return list(zip(*(part.tensor_split(parts) for part in batch), strict=True))
