"""The phase clock on a device whose time the test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.step_buffer import COLUMNS
from dpeval.record.phases import Phase


@dataclass
class FakeDevice(CpuDevice):
    """Time stands until the test moves it; stamps are past only once `reached` says so."""

    now_s: float = 0.0
    reached_s: float = float("inf")
    waited: int = 0
    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def stamp(self) -> float:
        return self.now_s

    def is_past(self, stamp: Any) -> bool:
        return bool(stamp <= self.reached_s)

    def finish(self) -> None:
        self.waited += 1


def column(rows: np.ndarray[Any, Any], name: str) -> float:
    return float(rows[0, COLUMNS.index(name)])


@given(spans=st.lists(st.floats(0, 100), min_size=6, max_size=6), rest=st.floats(0, 10))
def test_phases_and_remainder_add_up_to_the_step(spans: list[float], rest: float) -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    phases: tuple[Phase, ...] = ("data", "h2d", "forward", "backward", "optimizer")
    for phase, span in zip(phases, spans, strict=False):
        device.now_s += span
        clock.mark(phase)
    device.now_s += rest
    clock.end_step()
    parts = sum(column(rows, name) for name in COLUMNS[1:8])
    assert parts == pytest.approx(column(rows, "step"), rel=1e-12)
    assert column(rows, "other") == pytest.approx(rest, abs=1e-9)


def test_waiting_after_the_last_gradient_is_exposed_communication() -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    clock.mark("forward")
    device.now_s = 2.0
    first = clock.bucket_ready(0, 100, is_last=False)
    device.now_s = 5.0
    last = clock.bucket_ready(1, 50, is_last=True)
    device.now_s = 6.0
    clock.bucket_done(first)
    device.now_s = 9.0
    clock.bucket_done(last)
    clock.mark("backward")
    clock.end_step()
    assert column(rows, "backward") == 5.0
    assert column(rows, "comm_exposed") == 4.0
    assert column(rows, "comm") == 7.0  # from 2 to 9 without a gap
    assert column(rows, "comm_hidden") == 3.0  # from 2 to 5
    assert clock.bucket_s == {0: (100, [4.0]), 1: (50, [4.0])}


def test_micro_batches_add_to_the_same_phase() -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    for _ in range(3):
        device.now_s += 1.0
        clock.mark("forward")
        device.now_s += 2.0
        clock.mark("backward")
    clock.end_step()
    assert (column(rows, "forward"), column(rows, "backward")) == (3.0, 6.0)


def test_a_step_is_read_only_after_the_device_has_passed_it_and_nothing_waits() -> None:
    device, rows = FakeDevice(reached_s=0.5), np.zeros((2, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    for index in range(2):
        clock.start_step(index, 0.0)
        device.now_s += 1.0
        clock.end_step()
    assert clock.finished == 0
    device.reached_s = 1.0
    clock.drain()
    assert clock.finished == 1
    assert device.waited == 0


def test_a_diverted_clock_leaves_the_main_rows_alone() -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    other = np.zeros((1, len(COLUMNS)))
    with clock.diverted(other):
        clock.start_step(0, 0.0)
        device.now_s += 1.0
        clock.end_step()
    assert column(other, "step") == 1.0
    assert not rows.any()
    assert clock.finished == 0
