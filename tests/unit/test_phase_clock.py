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
from dpeval.record.phases import PHASES, Phase


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
    parts = sum(column(rows, name) for name in PHASES)
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


@dataclass(frozen=True)
class Backward:
    """A step of two buckets: the first is ready at 2 s, the last gradient at 5 s."""

    first_done_s: float
    last_done_s: float
    returns_s: float
    exposed_s: float
    copy_s: float
    comm_s: float


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Backward(4, 5, 5, 0, 0, 2), id="hidden, bucket views"),
        pytest.param(Backward(4, 5, 8, 0, 3, 2), id="hidden, copies"),
        pytest.param(Backward(4, 6, 6, 1, 0, 3), id="half hidden, bucket views"),
        pytest.param(Backward(4, 6, 8, 1, 2, 3), id="half hidden, copies"),
        pytest.param(Backward(6, 9, 9, 4, 0, 7), id="exposed, bucket views"),
        pytest.param(Backward(6, 9, 11, 4, 2, 7), id="exposed, copies"),
        pytest.param(Backward(8, 6, 10, 3, 2, 6), id="the first bucket ends last"),
    ],
)
def test_exposed_communication_ends_with_the_last_all_reduce(case: Backward) -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    device.now_s = 1.0
    clock.mark("forward")
    device.now_s = 2.0
    first = clock.bucket_ready(0, 100, is_last=False)
    device.now_s = 5.0
    last = clock.bucket_ready(1, 50, is_last=True)
    for reduce, done_s in ((first, case.first_done_s), (last, case.last_done_s)):
        device.now_s = done_s
        clock.bucket_done(reduce)
    device.now_s = case.returns_s
    clock.mark("backward")
    clock.end_step()
    assert column(rows, "backward") == 4.0
    assert column(rows, "comm_exposed") == case.exposed_s
    assert column(rows, "grad_copy") == case.copy_s
    assert column(rows, "comm") == case.comm_s
    assert column(rows, "comm_hidden") == case.comm_s - case.exposed_s
    assert sum(column(rows, phase) for phase in PHASES) == column(rows, "step")


def test_a_broadcast_before_the_forward_pass_is_exposed_communication() -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    marks: dict[float, Phase] = {1.0: "forward", 4.0: "comm_exposed", 9.0: "forward"}
    for device.now_s, phase in marks.items():
        clock.mark(phase)
    device.now_s = 15.0
    reduce = clock.bucket_ready(0, 100, is_last=True)
    device.now_s = 17.0
    clock.bucket_done(reduce)
    clock.end_step("backward")
    found = {name: column(rows, name) for name in (*PHASES, "comm", "comm_hidden")}
    assert found == dict.fromkeys(found, 0.0) | {
        "forward": 1 + 5, "comm_exposed": 3 + 2, "backward": 6, "comm": 3 + 2,
    }  # fmt: skip


def test_every_backward_pass_that_synchronises_has_its_own_exposed_part() -> None:
    device, rows = FakeDevice(), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    for _ in range(2):
        device.now_s += 1.0
        only = clock.bucket_ready(0, 100, is_last=True)
        device.now_s += 2.0
        clock.bucket_done(only)
        device.now_s += 4.0
        clock.mark("backward")
    clock.end_step()
    parts = [column(rows, name) for name in ("backward", "comm_exposed", "grad_copy")]
    assert parts == [2.0, 4.0, 8.0]
    assert (column(rows, "comm"), column(rows, "comm_hidden")) == (4.0, 0.0)


def test_a_step_is_read_only_after_its_all_reduces_too() -> None:
    device, rows = FakeDevice(reached_s=5.0), np.zeros((1, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    clock.start_step(0, 0.0)
    reduce = clock.bucket_ready(0, 100, is_last=True)
    device.now_s = 9.0  # on another stream, which the device has yet to reach
    clock.bucket_done(reduce)
    device.now_s = 4.0
    clock.mark("backward")
    clock.end_step()
    assert clock.finished == 0
    device.reached_s = 9.0
    clock.drain()
    assert clock.finished == 1


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


def test_a_step_begins_where_the_last_one_ended_unless_there_was_a_pause() -> None:
    device, rows = FakeDevice(reached_s=-1), np.zeros((3, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    for index in range(3):
        clock.start_step(index, 0.0)
        device.now_s += 1.0
        clock.end_step("optimizer")
        device.now_s += 0.5  # the loop's own work between two steps
        if index == 1:
            clock.pause()
    device.reached_s = 9.0
    clock.drain()
    assert rows[:, COLUMNS.index("step")].tolist() == [1.0, 1.5, 1.0]
    assert rows[:, COLUMNS.index("optimizer")].tolist() == [1.0, 1.5, 1.0]
    assert not rows[:, COLUMNS.index("other")].any()


def test_every_stamp_is_given_back_once() -> None:
    @dataclass
    class Counting(FakeDevice):
        made: int = 0
        back: list[object] = field(default_factory=list[object])

        def stamp(self) -> Any:
            self.made += 1
            return _Stamp(self.now_s)

        def is_past(self, stamp: Any) -> bool:
            return bool(stamp.at_s <= self.reached_s)

        def elapsed_s(self, begin: Any, end: Any) -> float:
            return float(end.at_s - begin.at_s)

        def recycle(self, stamps: Any) -> None:
            self.back.extend(stamps)

    device, rows = Counting(), np.zeros((9, len(COLUMNS)))
    clock = PhaseClock(device, rows)
    for index in range(9):
        device.reached_s = device.now_s if index % 3 == 2 else -1.0
        clock.start_step(index, float(index))
        clock.mark("forward")
        clock.bucket_done(clock.bucket_ready(0, 8, is_last=True))
        clock.mark("backward")
        device.now_s += 1.0
        clock.end_step("optimizer")
    device.reached_s = 9.0
    clock.drain()
    assert len(device.back) == len({id(stamp) for stamp in device.back}) == device.made


@dataclass(frozen=True)
class _Stamp:
    at_s: float


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
