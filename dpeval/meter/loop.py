"""The metered loop: where a step of a script starts and ends, and its time."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer

from dpeval.devices.base import Device
from dpeval.errors import ConfigError
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.meter.ddp import StepClock
from dpeval.meter.hooks import Hooks
from dpeval.record.codes import StopReason
from dpeval.record.phases import PHASES, Phase
from dpeval.util.arrays import Floats
from dpeval.worker.messages import Metered, RankResult

Batch = TypeVar("Batch")
MOST_BATCHES = 10_000
"""After this many batches without an update, the meter assumes that it cannot see the optimizer."""


class Gate(Protocol):
    """Decides between two steps whether to continue, and waits until this rank may."""

    stopped_by: StopReason | None

    def go_on(self, steps: int) -> bool: ...


class MeterHost(Protocol):
    """The rank that a meter measures for."""

    at_end: Callable[[], None] | None
    """Called if the script ends on its own."""

    @property
    def device(self) -> Device: ...

    @property
    def rows(self) -> Floats:
        """Where the times of this rank's steps go, shape [max_steps, columns]."""

    def describe(self, samples_per_step: float | None, unit: str) -> None:
        """Report what is measured, for the progress display.

        Args:
            samples_per_step: samples of all ranks in one step; None: the global batch.
            unit: what a sample is.
        """

    def open_gate(self, clock: PhaseClock) -> Gate: ...

    def report(self, result: RankResult) -> None:
        """Pass the result of this rank on.

        The host adds what only it knows: its rank, its set-up and its reference work.
        """


class MeteredLoop:
    """Times the steps of a script's loop, and ends the loop once enough is measured."""

    def __init__(self, host: MeterHost, samples_per_step: float | None, unit: str) -> None:
        """Prepare to measure for `host`.

        Args:
            host: the rank of this process.
            samples_per_step: samples of all ranks in one step; None: the global batch.
            unit: what a sample is.

        Raises:
            ConfigError: this process already has a meter.
        """
        if host.at_end is not None:
            raise ConfigError("a script has one dpeval.Meter; create it once, outside any loop")
        host.at_end = self._end_of_script
        self._host, self._samples_per_step, self._unit = host, samples_per_step, unit
        host.describe(samples_per_step, unit)
        self._clock = StepClock(host.device, host.rows)
        self._hooks = Hooks(self._clock)
        self._gate: Gate | None = None
        self._steps = 0
        self._is_going_on = self.is_over = False
        self._owes_decision = False
        """Whether a step ended without asking the gate: the script left its loop there."""
        self._tuning_peak_bytes: int | None = None

    def watch(self, *watched: nn.Module | Optimizer) -> None:
        self._hooks.watch(*(one for one in watched if isinstance(one, nn.Module)))

    def updated(self) -> None:
        self._hooks.has_updated = True

    def phase(self, name: Phase) -> contextlib.AbstractContextManager[None]:
        if name not in PHASES:
            raise ConfigError(f"meter.phase({name!r}): the phases are {', '.join(PHASES)}")
        return self._hooks.named(name)

    def pause(self) -> contextlib.AbstractContextManager[None]:
        return self._hooks.left_out()

    def steps(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """See :meth:`dpeval.Meter.steps`."""
        if self.is_over:
            return
        if self._is_going_on:
            raise ConfigError(
                "meter.steps was called within a loop over meter.steps; use it for the training "
                "loop only, and iterate over other batches directly"
            )
        self._is_going_on = True
        try:
            if self._gate is None:
                self._gate = self._host.open_gate(self._clock)
                self._hooks.install()
            elif self._clock.is_in_step and self._hooks.has_updated:
                # An update after the loop, with what its last batches accumulated, or of a script
                # that asks for a new iterator in every step.
                self._clock.leave_out()
                self._end_step()
                self._owes_decision = True
            if self._owes_decision and not self._decide():
                return
            yield from self._measured(batches)
        finally:
            self._is_going_on = False

    def _measured(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        clock, hooks = self._clock, self._hooks
        iterator: Iterator[Batch] | None = None
        fetched = 0
        while True:
            # A step that has so far accumulated gradients over some of its batches continues.
            if not clock.is_in_step:
                fetched = 0
                clock.start_step(self._steps, time.monotonic())
            elif iterator is None:
                hooks.leave_out()  # an evaluation between two epochs, say
            try:
                if iterator is None:
                    iterator = iter(batches)
                batch = next(iterator)
            except StopIteration:
                if fetched:
                    hooks.mark_before()
                else:
                    clock.abandon_step()
                return
            fetched += 1
            clock.mark("data")
            try:
                yield batch
            except GeneratorExit:
                # The script left its loop: what it trained on still counts as a step.
                if hooks.has_updated:
                    self._end_step()
                    clock.pause()  # whatever the script does next
                    self._owes_decision = True
                else:
                    hooks.mark_before()
                raise
            if not hooks.has_updated:
                hooks.mark_before()
                if fetched >= MOST_BATCHES:
                    raise ConfigError(
                        f"no optimizer update in {fetched} batches: the meter ends a step when "
                        "a torch optimizer updates; after any other update, call meter.updated()"
                    )
                continue
            self._end_step()
            if not self._decide():
                return

    def _end_step(self) -> None:
        self._clock.end_step()
        self._hooks.end_step()
        self._steps += 1
        if self._steps == 1:
            self._tuning_peak_bytes = self._host.device.end_tuning()

    def _decide(self) -> bool:
        """Whether to take another step; if not, the measurement is over."""
        assert self._gate is not None  # opened before the first step
        self._owes_decision = False
        if self._gate.go_on(self._steps):
            return True
        assert self._gate.stopped_by is not None  # set whenever the gate says no
        self._finish(self._gate.stopped_by)
        return False

    def _end_of_script(self) -> None:
        """The script has ended on its own, before enough was measured."""
        if self._steps and not self.is_over:
            self._clock.abandon_step()
            self._finish("ended")

    def _finish(self, stopped_by: StopReason) -> None:
        self.is_over = True
        self._hooks.remove()
        self._host.device.finish()
        self._clock.drain()
        metered = Metered(
            samples_per_step=self._samples_per_step,
            unit=self._unit,
            phases=[phase for phase in PHASES if phase in self._clock.seen],
            missing=self._hooks.missing,
            doubts=self._hooks.doubts,
        )
        device = self._host.device
        self._host.report(
            RankResult(
                rank=0,
                host=socket.gethostname(),
                pid=os.getpid(),
                stopped_by=stopped_by,
                losses=[],
                peak_bytes=device.peak_bytes(),
                peak_allocated_bytes=device.peak_allocated_bytes(),
                tuning_peak_bytes=self._tuning_peak_bytes,
                baseline_bytes=0,
                setup_s={},
                buckets=self._clock.bucket_s,
                ablation=[],
                measured_rows=self._clock.finished,
                metered=metered,
            )
        )
