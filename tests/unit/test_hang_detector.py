"""A run that is stuck is told from one that is slow, starting or suspended."""

from __future__ import annotations

import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pytest

from dpeval.config import HardwareConfig
from dpeval.instruments.step_buffer import COLUMNS, Stage, StepBuffer
from dpeval.run import hang_detector
from dpeval.run.hang_detector import HangDetector
from dpeval.run.recording.record_builder import suspended
from dpeval.util.arrays import Floats

STUCK_S = 3.0 * hang_detector.IDLE_START_S


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s, self.cpu_s = 1000.0, 0.0

    def monotonic(self) -> float:
        return self.now_s

    def process_time(self) -> float:
        return self.cpu_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    parts = SimpleNamespace(monotonic=made.monotonic, process_time=made.process_time)
    monkeypatch.setattr(hang_detector, "time", parts)
    return made


@pytest.fixture
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks do nothing."""
    monkeypatch.setattr(hang_detector, "_progress", lambda _: hang_detector._Progress())


def detector(*, steps: int, has_peers: bool = False) -> HangDetector:
    buffer = StepBuffer(multiprocessing.get_context("forkserver"), 1, 10)
    if steps:
        buffer.beat(0, Stage.MEASURING, steps)
    return HangDetector(buffer, HardwareConfig(), [0], {0: os.getpid()}, has_peers=has_peers)


def hung_after_s(own: HangDetector, clock: Clock) -> float | None:
    """How long `own` waits before it calls the run hung; None: for longer than it may."""
    begin_s = clock.now_s
    while clock.now_s - begin_s < STUCK_S:
        if own.check() is not None:
            return clock.now_s - begin_s
        clock.now_s += 0.2
    return None


@pytest.mark.usefixtures("_idle")
@pytest.mark.parametrize(
    ("steps", "limit_s"), [(0, hang_detector.IDLE_START_S), (5, hang_detector.IDLE_HANG_S)]
)
def test_idle_ranks_hang_before_the_first_step_too(
    clock: Clock, steps: int, limit_s: float
) -> None:
    found = hung_after_s(detector(steps=steps), clock)
    assert found == pytest.approx(limit_s, abs=2 * hang_detector.CPU_WINDOW_S)


@pytest.mark.usefixtures("_idle")
def test_the_start_of_other_nodes_is_awaited(clock: Clock) -> None:
    assert hung_after_s(detector(steps=0, has_peers=True), clock) is None


@pytest.mark.parametrize("kind", ["cpu", "data", "disk"])
def test_whatever_progresses_is_not_stuck(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def done(_: object) -> hang_detector._Progress:
        passed_s = clock.now_s - 1000.0
        return {
            "cpu": hang_detector._Progress(cpu_s=passed_s),
            "data": hang_detector._Progress(data_bytes=int(passed_s * 1e6)),
            "disk": hang_detector._Progress(is_reading=True),
        }[kind]

    monkeypatch.setattr(hang_detector, "_progress", done)
    assert hung_after_s(detector(steps=0), clock) is None


@pytest.mark.usefixtures("_idle")
def test_a_suspended_run_does_not_hang_and_its_pause_is_known(clock: Clock) -> None:
    own = detector(steps=5)
    assert own.check() is None
    clock.now_s += 3600.0
    assert own.check() is None
    assert own.pauses == [(1000.0, 4600.0)]
    assert hung_after_s(own, clock) is not None, "a hang after the pause is still found"


@pytest.mark.usefixtures("_idle")
def test_a_busy_parent_is_no_pause(clock: Clock) -> None:
    own = detector(steps=5)
    own.check()
    clock.now_s += 5.0
    clock.cpu_s += 5.0
    own.check()
    assert own.pauses == []


def rows(begin_s: float, *step_s: float) -> Floats:
    table = np.zeros((len(step_s), len(COLUMNS)))
    table[:, COLUMNS.index("step")] = step_s
    table[:, COLUMNS.index("begin")] = begin_s + np.cumsum([0.0, *step_s[:-1]])
    return table


@pytest.mark.parametrize(
    ("pauses", "held"),
    [
        ([], []),
        ([(2.5, 12.5)], [2]),  # within the third step, which took as much longer
        ([(-9.0, -5.0)], []),  # before the first
        ([(2.5, 12.5), (14.5, 14.6)], [2, 4]),
    ],
)
def test_steps_under_way_during_a_pause_are_known(
    pauses: list[tuple[float, float]], held: list[int]
) -> None:
    tables = [rows(0.0, 1, 1, 11, 1, 1, 1), rows(0.01, 1, 1, 11, 1, 1, 1)]
    assert np.flatnonzero(suspended(tables, pauses)).tolist() == held
