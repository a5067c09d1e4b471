"""Ablation: short blocks of steps after the main window that split the cost of data parallelism.

Blocks of three kinds alternate: ``normal`` steps, ``no_sync`` steps without gradient
synchronisation, and steps of one rank ``alone`` while the others wait without using a core. Their
order is counterbalanced (:func:`~dpeval.worker.ablation_schedule.order`), so that drift affects all
kinds alike. Their differences are the cost of communication and of sharing the machine, measured in
one run (compare the POP efficiency model, https://pop-coe.eu/node/69, which separates transfer from
serialisation by simulating an ideal network).

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
from dpeval.worker.ablation_schedule import KINDS, Schedule, order, schedule
from dpeval.worker.messages import AblationSeries
from dpeval.worker.trainer import Trainer

_ALIGNED_BYTES = 64
"""Alignment that suits tensors of any type."""


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
    """Run the blocks on this rank after its main window; all ranks must call it.

    Args:
        trainer: this rank's model, loader, optimizer and clock.
        train_step: :func:`dpeval.worker.loop.train_step`.
        store: the rendezvous store, for barriers.
        step_buffer: holds the main window's steps and receives heartbeats.
        main_steps: number of steps in the main window, warm-up included.

    Returns:
        One series per block; empty if the strategy cannot skip synchronisation.
    """
    if not can_ablate(trainer):
        return []
    plan = _agree(trainer, store, step_buffer, main_steps)
    blocks = Blocks(trainer, train_step, uncounted=1)
    blocks.save()
    _barrier(store, "ablation/begin", trainer.plan.world_size)
    # Making the copy disturbs the caches, so warm up again.
    blocks.step(trainer.config.measure.min_warmup_steps, sync=True)
    local_rank = trainer.plan.ranks[trainer.rank].local_rank
    for place, kind in enumerate(order(plan.rounds)):
        blocks.restore()
        _barrier(store, f"ablation/{place}", trainer.plan.world_size)
        if kind == "alone":
            blocks.settle()
            _barrier(store, f"ablation/{place}/alone", trainer.plan.world_size)
        if kind == "alone" and trainer.rank != 0:
            blocks.series.append(AblationSeries(kind))
        else:
            blocks.take(kind, plan.steps, place // len(KINDS))
        step_buffer.beat(local_rank, Stage.ABLATION, main_steps)
    # No rank leaves while another is still measuring.
    _barrier(store, "ablation/end", trainer.plan.world_size)
    blocks.restore()
    return blocks.series


def can_ablate(trainer: Trainer) -> bool:
    """Whether ranks can step independently; otherwise, one alone would wait forever."""
    return trainer.plan.world_size > 1 and trainer.wrapped.can_keep_gradients


class Blocks:
    """Blocks of steps on this rank that change neither the trained state nor the recorded
    series."""

    def __init__(
        self, trainer: Trainer, train_step: Callable[..., None], *, uncounted: int = 0
    ) -> None:
        """Prepare; :meth:`copy` copies the state.

        Args:
            trainer: this rank's model, loader, optimizer and clock.
            train_step: :func:`dpeval.worker.loop.train_step`.
            uncounted: steps at the start of each block that are not recorded, as the first after
                a change is not steady.
        """
        self._trainer, self._train_step, self._uncounted = trainer, train_step, uncounted
        self._saved: SavedState | None = None
        self._peak_before: int = 0
        self.series: list[AblationSeries] = []
        """One series per block so far."""

    def save(self) -> None:
        """Copy the trained state, with which every block starts."""
        if self._saved is not None:
            self._saved.save()
            return
        trainer = self._trainer
        self._peak_before = trainer.device.peak_bytes() or 0
        self._saved = SavedState(trainer.model, trainer.optimizer, trainer.scaler)

    def restore(self) -> None:
        """Restore the trained state; the next step starts as after a synchronised one."""
        assert self._saved is not None
        self._saved.restore()
        if self._trainer.wrapped.follow is not None:
            self._trainer.wrapped.follow(True)

    def settle(self) -> None:
        """Make the next step need no other rank; all ranks must call it.

        After a synchronised step, the next one needs all ranks: DDP broadcasts buffers then. If the
        strategy has no way to skip that, a step is taken and undone.
        """
        follow = self._trainer.wrapped.follow
        if follow is not None:
            follow(False)
            return
        self.step(1, sync=False)
        self.restore()

    def take(self, kind: AblationKind, steps: int, round_: int) -> None:
        """Record a block, on all ranks or, of kind ``alone``, on the first.

        Args:
            kind: the kind of its steps.
            steps: number of steps.
            round_: the round to which it belongs.
        """
        rows = self.step(self._uncounted + steps, sync=kind == "normal")[self._uncounted :]
        groups = (("step",), ("data",), COMPUTE_PHASES)
        times = (sum_columns(rows, names).tolist() for names in groups)
        self.series.append(AblationSeries(kind, round_, *times))

    def step(self, steps: int, *, sync: bool) -> Floats:
        """Take `steps` steps, whose losses are not kept; return their rows of the step buffer."""
        trainer = self._trainer
        rows, losses = np.zeros((steps, len(COLUMNS))), len(trainer.losses)
        with trainer.clock.diverted(rows):
            for index in range(steps):
                self._train_step(trainer, index, sync=sync)
            trainer.device.finish()
            trainer.clock.drain()
        del trainer.losses[losses:]
        return rows

    def without_copy(self, peak_bytes: int | None) -> int | None:
        """Peak memory of the rank without the copy of its state, which is in host memory."""
        if self._saved is None or peak_bytes is None or self._trainer.device.is_cuda:
            return peak_bytes
        return max(self._peak_before, peak_bytes - self._saved.nbytes)


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
        """Copy the current state.

        Args:
            model: its parameters and buffers are copied.
            optimizer: the tensors of its state are copied.
            scaler: its state is copied; it has one only with fp16.
        """
        lives = [*model.state_dict().values()]
        for state in optimizer.state.values():
            lives += [value for value in state.values() if isinstance(value, torch.Tensor)]
        lives = [tensor for tensor in lives if tensor.numel()]
        # The scaler's scale and count of good steps are numbers; empty unless the precision is
        # fp16.
        self._scaler = scaler
        sizes = [-(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES for tensor in lives]
        self.nbytes: int = max(1, sum(sizes))
        memory = mmap.mmap(-1, self.nbytes)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for tensor, begin in zip(lives, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True):
            copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
            self._kept.append((tensor, copy.view(tensor.shape)))
        self.save()

    def save(self) -> None:
        """Replace the copy by the current state."""
        with torch.no_grad():
            for tensor, kept in self._kept:
                kept.copy_(tensor)
        self._scaler_state = self._scaler.state_dict()

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
