"""Makes a rank wait for its turn between steps when several runs share one machine.

All runs of a sitting are alive at once, but only one of them takes steps at a time
(:mod:`dpeval.sitting.coordinator`). At the end of a turn, a rank finishes the work on its device,
reports that, and blocks on a pipe until the next turn, so it uses no core meanwhile.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Protocol

from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.instruments.step_orders import RELEASE, RESTORE, SAVE, SETTLE, StepOrders, read_block
from dpeval.record.codes import AblationKind

READY, READY_FOR_BLOCKS = b"ready", b"ready for blocks"
"""What a rank sends when it waits for its turn; the second one if it can take ablation blocks."""


class BlockTaker(Protocol):
    """Takes ablation steps, which do not change the trained state
    (:mod:`dpeval.worker.ablation`)."""

    def save(self) -> None: ...

    def settle(self) -> None: ...

    def restore(self) -> None: ...

    def take(self, kind: AblationKind, steps: int, round_: int) -> None:
        """Record a block.

        Args:
            kind: the kind of its steps.
            steps: number of steps.
            round_: the round to which it belongs.
        """


class TurnSync(StepOrders):
    """Takes steps as the coordinator of the sitting orders."""

    def __init__(
        self,
        gate: Connection,
        local_rank: int,
        step_buffer: StepBuffer,
        clock: PhaseClock,
        device: Device,
        reference_work: ReferenceWork | None = None,
        blocks: BlockTaker | None = None,
    ) -> None:
        """Take no step before the first turn.

        Args:
            gate: connection to the coordinator.
            local_rank: its index in `step_buffer`.
            step_buffer: receives heartbeats.
            clock: this rank's phase clock.
            device: its work is finished before the turn ends.
            reference_work: done when the coordinator asks for it; None on CUDA.
            blocks: takes ablation blocks; None if there are none to take.
        """
        self._gate, self._local_rank = gate, local_rank
        self._step_buffer, self._clock, self._device = step_buffer, clock, device
        self._blocks = blocks
        super().__init__(reference_work, until=0)

    def begin(self) -> None:
        """Wait for the first turn, without the memory that only the set-up needed."""
        self._device.release()
        self._wait(0)

    def go_on(self, steps: int) -> bool:
        """Whether to take another step after `steps` steps; returns when it is this run's turn."""
        if steps < self._until:
            self._beat()
            return True
        self._device.finish()
        self._clock.drain()
        self._clock.pause()
        self._beat()
        # The order that ended begin() may have been to stop.
        return self.stopped_by is None and self._wait(steps)

    def _beat(self) -> None:
        self._step_buffer.beat(self._local_rank, Stage.MEASURING, self._clock.finished)

    def _wait(self, steps: int) -> bool:
        while True:
            self._gate.send_bytes(READY if self._blocks is None else READY_FOR_BLOCKS)
            order = self._gate.recv_bytes().decode()
            if order == RELEASE:
                self._device.release()
                continue
            if self._blocks is None or not _taken(self._blocks, order):
                return self._obey(order, steps)
            self._beat()


def _taken(blocks: BlockTaker, order: str) -> bool:
    """Let `blocks` execute `order`; return False if it is not an order for blocks."""
    if order == SAVE:
        blocks.save()
    elif order == SETTLE:
        blocks.settle()
    elif order == RESTORE:
        blocks.restore()
    elif (block := read_block(order)) is not None:
        blocks.take(*block)
    else:
        return False
    return True
