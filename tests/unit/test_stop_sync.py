"""When rank 0 checks its series, and how much of the time reference work takes."""

from __future__ import annotations

import itertools
import multiprocessing
from types import SimpleNamespace

import pytest

from dpeval.config import MeasureConfig
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.instruments.stop_sync import CHECK_EVERY_S, CHECK_SHARE, MAX_CHECK_EVERY_S, StopSync

STEP_S = 0.025
NEVER_SURE = MeasureConfig(
    rel_precision=1e-9, min_warmup_steps=3, min_steps=30, max_steps=5000, time_limit_s=60
)


class Looks:
    """A store that keeps after which step rank 0 posted what."""

    def __init__(self) -> None:
        self.posted: dict[int, str] = {}

    def set(self, key: str, value: str) -> None:
        self.posted[int(key.removeprefix("control/"))] = value

    def get(self, key: str) -> bytes:
        raise AssertionError("rank 0 asks nobody")


class CostlyWork(ReferenceWork):
    """Reference work that asks for the pause of work that takes long."""

    def do(self, steps: int) -> None:
        super().do(steps)
        self.pause_s = 5.0


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, str], int, ReferenceWork]:
    """What is posted in a run of steps of 25 ms that a minute ends; its steps; its work."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(
        "dpeval.instruments.stop_sync.time", SimpleNamespace(monotonic=lambda: now.s)
    )
    step_buffer = StepBuffer(multiprocessing.get_context("spawn"), 1, NEVER_SURE.max_steps)
    rows = step_buffer.rows(0)
    clock = PhaseClock(CpuDevice(), rows)
    store, work = Looks(), CostlyWork()
    stop_sync = StopSync(0, 0, store, step_buffer, clock, NEVER_SURE, work)
    for steps in itertools.count(1):
        now.s += STEP_S
        # Steps must differ, or their mean is known at once.
        rows[steps - 1, COLUMNS.index("step")] = STEP_S * (1 + 0.1 * (-1) ** steps)
        clock.finished = steps
        if not stop_sync.go_on(steps):
            assert stop_sync.stopped_by == "time_limit"
            return store.posted, steps, work
    raise AssertionError


def test_looks_become_rarer_and_no_limit_is_passed(
    looks: tuple[dict[int, str], int, ReferenceWork],
) -> None:
    posted, steps, _ = looks
    assert steps * STEP_S == pytest.approx(NEVER_SURE.time_limit_s, abs=2 * STEP_S)
    ahead = {at: int(message.partition(":")[2]) - at for at, message in list(posted.items())[:-1]}
    assert list(itertools.accumulate(ahead.values(), initial=1))[:-1] == list(ahead)
    for at, count in ahead.items():
        pause_s = max(CHECK_EVERY_S, min(CHECK_SHARE * at * STEP_S, MAX_CHECK_EVERY_S))
        # The last step may have been a tenth shorter or longer than the mean.
        assert count * STEP_S <= 1.2 * pause_s
    assert max(ahead.values()) * STEP_S > 0.8 * MAX_CHECK_EVERY_S
    assert len(posted) < 75


def test_fixed_work_waits_until_steps_have_earned_it(
    looks: tuple[dict[int, str], int, ReferenceWork],
) -> None:
    posted, steps, work = looks
    worked = [at for at, message in posted.items() if message.startswith("work:")]
    assert work.readings.step == worked
    assert all(b - a >= 0.99 * 5.0 / STEP_S for a, b in itertools.pairwise(worked))
    assert 8 <= len(worked) <= steps * STEP_S / 5.0 + 1
