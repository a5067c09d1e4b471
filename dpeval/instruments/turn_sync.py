"""Makes a rank wait for its turn between steps, where several runs share one machine.

The runs of a sitting are alive together, and only one of them steps at a time
(:mod:`dpeval.sitting.coordinator`). A rank whose turn is over finishes the work on its device,
says so, and blocks on a pipe until the next turn: it uses no core meanwhile.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import Stage, StepBuffer
from dpeval.instruments.step_orders import StepOrders

READY = b"ready"
"""What a rank sends when it waits for its turn."""


class TurnSync(StepOrders):
    """Decides whether a rank takes another step as the coordinator of the sitting says."""

    def __init__(
        self,
        gate: Connection,
        local_rank: int,
        step_buffer: StepBuffer,
        clock: PhaseClock,
        device: Device,
        reference_work: ReferenceWork | None = None,
    ) -> None:
        """Take no step before the first turn.

        Args:
            gate: to the coordinator.
            local_rank: its index in `step_buffer`.
            step_buffer: receives heartbeats.
            clock: this rank's phase clock.
            device: its work is finished before the turn ends.
            reference_work: done when the coordinator asks for it; None on CUDA.
        """
        self._gate, self._local_rank = gate, local_rank
        self._step_buffer, self._clock, self._device = step_buffer, clock, device
        super().__init__(reference_work, until=0)

    def begin(self) -> None:
        """Wait for the first turn."""
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
        return self._wait(steps)

    def _beat(self) -> None:
        self._step_buffer.beat(self._local_rank, Stage.MEASURING, self._clock.finished)

    def _wait(self, steps: int) -> bool:
        self._gate.send_bytes(READY)
        return self._obey(self._gate.recv_bytes().decode(), steps)
