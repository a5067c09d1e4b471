"""Short windows after the main one that take the cost of data parallelism apart.

Three kinds of block in turn, so that drift hits all alike: ``normal`` steps as ever,
``no_sync`` steps in which every rank keeps its gradients, and steps of one rank ``alone``
while the others wait without using a core. Their differences are the cost of communication
and the cost of sharing the machine, measured in one run (compare the POP efficiency model,
https://pop-coe.eu/node/69, where transfer and serialisation are told apart by an ideal network).

The state that was trained is put back before every block, so a block never trains on what
another left, and nothing that the record reports is disturbed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dpeval.board import COLUMNS, Board, Stage

if TYPE_CHECKING:
    from dpeval.worker import Trainer

Kind = Literal["normal", "no_sync", "alone"]
KINDS: tuple[Kind, ...] = ("normal", "no_sync", "alone")
MIN_ROUNDS, MAX_ROUNDS, MAX_STEPS_PER_BLOCK = 2, 4, 50


class Store(Protocol):
    """The part of ``torch.distributed.Store`` that is used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def add(self, key: str, amount: int) -> int: ...


@dataclass(frozen=True)
class AblationSeries:
    """One block's step times on one rank, s; empty on a rank that only waited."""

    kind: Kind
    step_s: list[float]


@dataclass(frozen=True)
class Schedule:
    """How many rounds of the three blocks, and how many steps a block has."""

    rounds: int
    steps: int


def schedule(window_s: float, step_s: float, share: float) -> Schedule:
    """Fit the blocks into `share` of the main window's time; at least two rounds of one step."""
    affordable = share * window_s / max(step_s, 1e-9) / len(KINDS)
    rounds = int(min(MAX_ROUNDS, max(MIN_ROUNDS, affordable)))
    return Schedule(rounds, int(min(MAX_STEPS_PER_BLOCK, max(1, affordable / rounds))))


def run_ablation(
    trainer: Trainer,
    train_step: Callable[..., None],
    store: Store,
    board: Board,
    main_steps: int,
) -> list[AblationSeries]:
    """Run the blocks on this rank; all ranks must call it. Returns one series per block."""
    if trainer.plan.world_size == 1:
        return []
    plan = _agree(trainer, store, board, main_steps)
    saved = _Saved(trainer)
    series: list[AblationSeries] = []
    local_rank = trainer.plan.ranks[trainer.rank].local_rank
    for block in range(plan.rounds * len(KINDS)):
        kind = KINDS[block % len(KINDS)]
        saved.restore()
        _barrier(store, f"ablation/{block}", trainer.plan.world_size)
        if kind == "alone" and trainer.rank != 0:
            series.append(AblationSeries(kind, []))
        else:
            steps = _block(trainer, train_step, plan.steps, sync=kind == "normal")
            series.append(AblationSeries(kind, steps))
        board.beat(local_rank, Stage.ABLATION, main_steps)
    # Nobody leaves while another still measures.
    _barrier(store, "ablation/end", trainer.plan.world_size)
    saved.restore()
    return series


def _agree(trainer: Trainer, store: Store, board: Board, main_steps: int) -> Schedule:
    """Rank 0 sizes the blocks from its own steps; the others read it."""
    if trainer.rank == 0:
        rows = board.rows(trainer.plan.ranks[0].local_rank)
        step_s = rows[:main_steps, COLUMNS.index("step")]
        measure = trainer.config.measure
        sized = schedule(float(step_s.sum()), float(np.median(step_s)), measure.ablation_share)
        store.set("ablation/schedule", f"{sized.rounds}:{sized.steps}")
    rounds, steps = store.get("ablation/schedule").decode().split(":")
    return Schedule(int(rounds), int(steps))


def _block(
    trainer: Trainer, train_step: Callable[..., None], steps: int, *, sync: bool
) -> list[float]:
    """Take `steps` steps after one that is not counted: the first after a change is not steady."""
    rows = np.zeros((steps + 1, len(COLUMNS)))
    with trainer.clock.diverted(rows):
        for index in range(steps + 1):
            train_step(trainer, index, sync=sync)
        trainer.device.finish()
        trainer.clock.drain()
    return [float(value) for value in rows[1:, COLUMNS.index("step")]]


class _Saved:
    """A copy of the trained state, to be put back."""

    def __init__(self, trainer: Trainer) -> None:
        self._module = trainer.model
        self._optimizer = trainer.optimizer
        self._model_state: dict[str, Any] = {
            name: value.detach().clone() for name, value in self._module.state_dict().items()
        }
        self._optimizer_state = copy.deepcopy(trainer.optimizer.state_dict())

    def restore(self) -> None:
        self._module.load_state_dict(self._model_state)
        self._optimizer.load_state_dict(copy.deepcopy(self._optimizer_state))


def _barrier(store: Store, key: str, world_size: int) -> None:
    """Wait for all ranks on the store: a waiting rank blocks on a socket and uses no core."""
    if store.add(f"{key}/count", 1) == world_size:
        store.set(f"{key}/open", "1")
    store.get(f"{key}/open")
