"""When rank 0 checks its series, and how much of the time reference work takes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import time
from types import SimpleNamespace

import pytest

from dpeval.config import MeasureConfig
from dpeval.devices.cpu import CpuDevice
from dpeval.instruments.phase_clock import PhaseClock
from dpeval.instruments.reference_work import ReferenceWork
from dpeval.instruments.step_buffer import COLUMNS, StepBuffer
from dpeval.instruments.step_orders import RELEASE, go_on_to, stop
from dpeval.instruments.stop_sync import CHECK_EVERY_S, CHECK_SHARE, MAX_CHECK_EVERY_S, StopSync
from dpeval.instruments.turn_sync import READY, TurnSync
from dpeval.util.display.units import MIB
from tests.lagging import ENDLESS, LaggingDevice

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
    assert steps * STEP_S == pytest.approx(NEVER_SURE.time_limit_s, abs=3 * STEP_S)
    ahead = {at: int(message.partition(":")[2]) - at for at, message in list(posted.items())[:-1]}
    assert list(itertools.accumulate(ahead.values(), initial=1))[:-1] == list(ahead)
    for at, count in ahead.items():
        pause_s = max(CHECK_EVERY_S, min(CHECK_SHARE * at * STEP_S, MAX_CHECK_EVERY_S))
        # The last step may have been a tenth shorter or longer than the mean.
        assert count * STEP_S <= 1.2 * pause_s
    assert max(ahead.values()) * STEP_S > 0.8 * MAX_CHECK_EVERY_S
    assert len(posted) < 90  # two dozen of them because the run may be precise then


def test_fixed_work_waits_until_steps_have_earned_it(
    looks: tuple[dict[int, str], int, ReferenceWork],
) -> None:
    posted, steps, work = looks
    worked = [at for at, message in posted.items() if message.startswith("work:")]
    assert work.readings.step == worked
    assert all(b - a >= 0.99 * 5.0 / STEP_S for a, b in itertools.pairwise(worked))
    assert 8 <= len(worked) <= steps * STEP_S / 5.0 + 1


def _train(device: LaggingDevice, config: MeasureConfig, *, first_s: float = 0.0) -> StopSync:
    """Steps of 1 ms on `device` until the decision to stop; the first takes `first_s` more."""
    step_buffer = StepBuffer(multiprocessing.get_context("spawn"), 1, config.max_steps)
    clock = PhaseClock(device, step_buffer.rows(0))
    stop_sync = StopSync(0, 0, None, step_buffer, clock, config)
    for steps in itertools.count(1):
        clock.start_step(steps - 1, time.monotonic())
        time.sleep(0.001 + (first_s if steps == 1 else 0.0))
        clock.mark("forward")
        clock.end_step()
        if not stop_sync.go_on(steps):
            break
    device.finish()
    clock.drain()
    assert clock.finished == steps
    assert (step_buffer.rows(0)[:steps, COLUMNS.index("step")] >= 0.001).all()
    return stop_sync


@pytest.mark.parametrize("lag", [0, 3, 7, 20, ENDLESS])
@pytest.mark.parametrize("max_steps", [4, 8, 9])
def test_a_device_that_lags_never_leads_past_the_last_step(lag: int, max_steps: int) -> None:
    config = dataclasses.replace(NEVER_SURE, min_steps=2, min_warmup_steps=1, max_steps=max_steps)
    assert _train(LaggingDevice(lag), config).stopped_by == "max_steps"


@pytest.mark.parametrize("lag", [0, 10])
def test_the_time_limit_begins_when_the_first_step_has_finished(lag: int) -> None:
    """A first step that compiles for longer than the limit leaves time for the window."""
    config = dataclasses.replace(NEVER_SURE, max_steps=12, min_steps=2, time_limit_s=1)
    assert _train(LaggingDevice(lag), config, first_s=1.1).stopped_by == "max_steps"


def test_a_run_that_is_stopped_instead_of_its_first_turn_ends_after_one_step() -> None:
    ours, theirs = multiprocessing.Pipe()
    step_buffer = StepBuffer(multiprocessing.get_context("spawn"), 1, 4)
    clock = PhaseClock(CpuDevice(), step_buffer.rows(0))
    turns = TurnSync(theirs, 0, step_buffer, clock, CpuDevice())
    ours.send_bytes(stop("interrupted").encode())
    turns.begin()
    assert not turns.go_on(1)  # instead of waiting for an order that nobody sends
    assert turns.stopped_by == "interrupted"


class CountingDevice(CpuDevice):
    """Counts how often memory is returned."""

    released = 0

    def release(self) -> None:
        super().release()
        self.released += 1


def test_a_rank_that_waits_for_long_returns_its_freed_memory() -> None:
    """When it waits for its first turn, and when the coordinator says so."""
    ours, theirs = multiprocessing.Pipe()
    step_buffer = StepBuffer(multiprocessing.get_context("spawn"), 1, 4)
    device = CountingDevice()
    turns = TurnSync(theirs, 0, step_buffer, PhaseClock(device, step_buffer.rows(0)), device)
    ours.send_bytes(go_on_to(1, work=False).encode())
    turns.begin()
    assert device.released == 1
    ours.send_bytes(RELEASE.encode())
    ours.send_bytes(go_on_to(2, work=False).encode())
    assert turns.go_on(1)
    assert device.released == 2
    waits = 0
    while ours.poll():
        assert ours.recv_bytes() == READY
        waits += 1
    assert waits == 3, "an order to return memory is answered like any other"


def test_freed_memory_returns_to_the_system() -> None:
    device = CpuDevice()
    device.release()
    before = device.memory_bytes()
    # Small blocks come from the heap; the last of them keeps it from shrinking by itself.
    blocks = [bytearray(64 * 1024) for _ in range(2048)]
    held = device.memory_bytes()
    assert held - before > 100 * MIB
    del blocks[:-1]
    device.release()
    assert device.memory_bytes() - before < 20 * MIB
