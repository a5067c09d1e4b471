"""Ablation: short blocks of steps after the main window that split the cost of data parallelism.

Blocks of three kinds alternate: ``normal`` steps, ``no_sync`` steps without gradient
synchronisation, and steps of one rank ``alone`` while the others wait without using a core. Their
order is counterbalanced (:func:`~dpeval.worker.ablation_schedule.order`), so that drift affects all
alike. Their differences are the cost of communication and the cost of sharing the machine, measured
in one run (compare the POP efficiency model, https://pop-coe.eu/node/69, which separates transfer
from serialisation by simulating an ideal network).

The trained state is restored before every block, so no block depends on another, and nothing
that the record reports is disturbed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import nn

from dpeval.instruments.step_buffer import COLUMNS, Stage, StepBuffer, sum_columns
from dpeval.record.codes import AblationKind
from dpeval.record.phases import COMPUTE_PHASES
from dpeval.util.arrays import Floats
from dpeval.worker.ablation_schedule import Schedule, order, schedule
from dpeval.worker.messages import AblationSeries
from dpeval.worker.trainer import Trainer

_ALIGNED_BYTES = 64
"""Alignment that suits a tensor of any type."""


class Store(Protocol):
    """The part of ``torch.distributed.Store`` used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def add(self, key: str, amount: int) -> int: ...


def run_ablation(
    trainer: Trainer,
    train_step: Callable[..., None],
    store: Store,
    step_buffer: StepBuffer,
    main_steps: int,
) -> list[AblationSeries]:
    """Run the blocks on this rank; all ranks must call it.

    Args:
        trainer: this rank's model, loader, optimizer and clock.
        train_step: :func:`dpeval.worker.loop.train_step`.
        store: the rendezvous store, for barriers.
        step_buffer: holds the main window's steps and receives heartbeats.
        main_steps: number of steps in the main window, warm-up included.

    Returns:
        One series per block; empty if the strategy cannot skip synchronisation.
    """
    # Unless a step can skip synchronisation, a rank alone would wait for the others forever.
    if trainer.plan.world_size == 1 or not trainer.wrapped.can_keep_gradients:
        return []
    plan = _agree(trainer, store, step_buffer, main_steps)
    saved = SavedState(trainer.model, trainer.optimizer, trainer.scaler)
    _barrier(store, "ablation/begin", trainer.plan.world_size)
    # Making the copy disturbs the state too, so warm up again.
    _block(trainer, train_step, trainer.config.measure.min_warmup_steps, sync=True)
    series: list[AblationSeries] = []
    local_rank = trainer.plan.ranks[trainer.rank].local_rank
    for block, kind in enumerate(order(plan.rounds)):
        saved.restore()
        _barrier(store, f"ablation/{block}", trainer.plan.world_size)
        if kind == "alone":
            # What the last synchronised step owes to the next one needs all ranks: DDP broadcasts
            # buffers then.
            _block(trainer, train_step, 0, sync=False)
            saved.restore()
            _barrier(store, f"ablation/{block}/alone", trainer.plan.world_size)
        if kind == "alone" and trainer.rank != 0:
            series.append(AblationSeries(kind))
        else:
            rows = _block(trainer, train_step, plan.steps, sync=kind == "normal")
            series.append(_series(kind, rows))
        step_buffer.beat(local_rank, Stage.ABLATION, main_steps)
    # No rank leaves while another is still measuring.
    _barrier(store, "ablation/end", trainer.plan.world_size)
    saved.restore()
    return series


def _agree(trainer: Trainer, store: Store, step_buffer: StepBuffer, main_steps: int) -> Schedule:
    """Rank 0 sizes the blocks from its own steps; the others read its schedule."""
    if trainer.rank == 0:
        rows = step_buffer.rows(trainer.plan.ranks[0].local_rank)
        step_s = rows[:main_steps, COLUMNS.index("step")]
        measure = trainer.config.measure
        sized = schedule(float(step_s.sum()), float(np.median(step_s)), measure.ablation_share)
        store.set("ablation/schedule", f"{sized.rounds}:{sized.steps}")
    rounds, steps = store.get("ablation/schedule").decode().split(":")
    return Schedule(int(rounds), int(steps))


def _block(trainer: Trainer, train_step: Callable[..., None], steps: int, *, sync: bool) -> Floats:
    """The rows of `steps` steps after an uncounted one: the first after a change is not steady."""
    rows = np.zeros((steps + 1, len(COLUMNS)))
    with trainer.clock.diverted(rows):
        for index in range(steps + 1):
            train_step(trainer, index, sync=sync)
        trainer.device.finish()
        trainer.clock.drain()
    return rows[1:]


def _series(kind: AblationKind, rows: Floats) -> AblationSeries:
    groups = (("step",), ("data",), COMPUTE_PHASES)
    return AblationSeries(kind, *(sum_columns(rows, names).tolist() for names in groups))


class SavedState:
    """A copy of the trained state that can be restored in place.

    Allocating new tensors, as loading a state dict does, would change the state of the C library's
    allocator: memory is then returned to the OS and faulted in again in every step, which slows
    steps by a tenth. So the copy is a separate mapping in host memory, copied back into the same
    tensors.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Copy the present state.

        Args:
            model: its parameters and buffers are copied.
            optimizer: the tensors of its state are copied.
            scaler: its scale is noted; without effect unless the precision is fp16.
        """
        lives = [*model.state_dict().values()]
        for state in optimizer.state.values():
            lives += [value for value in state.values() if isinstance(value, torch.Tensor)]
        lives = [tensor for tensor in lives if tensor.numel()]
        # Its scale and its count of good steps are numbers; empty unless the precision is fp16.
        self._scaler, self._scaler_state = scaler, scaler.state_dict()
        sizes = [-(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES for tensor in lives]
        memory = mmap.mmap(-1, max(1, sum(sizes)))
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for tensor, begin in zip(lives, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True):
            copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
            self._kept.append((tensor, copy.view(tensor.shape).copy_(tensor)))

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, kept in self._kept:
                tensor.copy_(kept)
        self._scaler.load_state_dict(self._scaler_state)


def _barrier(store: Store, key: str, world_size: int) -> None:
    """Wait for all ranks through the store: a waiting rank blocks on a socket and uses no core."""
    if store.add(f"{key}/count", 1) == world_size:
        store.set(f"{key}/open", "1")
    store.get(f"{key}/open")
