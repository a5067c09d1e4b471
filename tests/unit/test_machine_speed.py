"""Reference work between steps: when it shows that the machine itself changed, and when not."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from dpeval.instruments.reference_work import INTERVAL_S, ReferenceWork
from dpeval.record.reference_times import PAGES, ReferenceTimes
from dpeval.stats import machine_speed


def readings(work_ms: list[float]) -> ReferenceTimes:
    work_s = [value / 1e3 for value in work_ms]
    return ReferenceTimes(
        step=list(range(1, len(work_s) + 1)),
        product_s=[value / 2 for value in work_s],
        page_s=[value / 2 / PAGES for value in work_s],
    )


def noisy(generator: np.random.Generator, levels: list[float], spread: float) -> ReferenceTimes:
    values = [level * np.exp(generator.normal(0, spread)) for level in levels]
    return readings([float(value) for value in values])


def test_a_machine_that_slows_down_is_told_with_the_rank_that_saw_it() -> None:
    generator = np.random.default_rng(0)
    even = noisy(generator, [1.4] * 30, 0.01)
    slower = noisy(generator, [1.4] * 20 + [1.5] * 10, 0.01)
    (text,) = machine_speed.disturbances([even, slower])
    assert text.startswith("the machine itself was up to 7 % slower")
    assert "rank 1 1.40 to 1.50 ms" in text


def test_of_a_thousand_even_machines_none_is_told() -> None:
    generator = np.random.default_rng(1)
    for spread in (0.005, 0.02, 0.1):
        for count in (8, 12, 18, 30, 200):
            told = [
                machine_speed.changed(noisy(generator, [1.0] * count, spread)) for _ in range(120)
            ]
            assert not any(told), (spread, count)


def test_the_readings_of_a_short_run_tell_a_large_change() -> None:
    generator = np.random.default_rng(2)
    slower = noisy(generator, [1.4] * 6 + [1.8] * 6, 0.01)
    assert machine_speed.changed(slower) is not None
    assert machine_speed.not_measured([slower]) is None


def test_too_few_readings_say_that_nothing_was_measured() -> None:
    few = readings([1.0] * 3 + [2.0] * 4)
    assert machine_speed.changed(few) is None
    assert "7 readings of the reference work" in (machine_speed.not_measured([few]) or "")
    assert machine_speed.typical_s([ReferenceTimes()]) is None
    assert machine_speed.page_s([]) is None


def test_readings_of_a_window_are_those_between_its_steps() -> None:
    whole = readings([1.0, 2.0, 3.0, 4.0, 5.0])
    inside = whole.within(1, 4)
    assert inside.step == [2, 3]
    assert inside.work_s == pytest.approx([2e-3, 3e-3])


def test_the_typical_work_is_the_median_over_ranks_and_readings() -> None:
    assert machine_speed.typical_s([readings([1.0, 2.0]), readings([7.0])]) == pytest.approx(2e-3)
    # A page fault costs the least that it took: what held others up was something else.
    assert machine_speed.page_s([readings([1.024, 9.0])]) == pytest.approx(2e-6)


def test_readings_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="differ in length"):
        ReferenceTimes(step=[1, 2], product_s=[1e-3], page_s=[1e-6, 1e-6])


def test_fixed_work_keeps_every_reading_and_says_how_long_to_leave_it() -> None:
    work = ReferenceWork()
    assert work.pause_s == 0
    assert work.is_due(np.full(1, 1e-3))
    work.do(3)
    assert work.pause_s >= INTERVAL_S
    # The three steps before it have been paid with; what came later has to be enough alone.
    assert not work.is_due(np.full(4, 0.9 * work.pause_s))
    assert work.is_due(np.full(5, 0.6 * work.pause_s))
    work.do(7)
    found = work.readings
    assert found.step == [3, 7]
    for times in (found.product_s, found.page_s):
        assert len(times) == 2
        assert min(times) > 0
    assert max(found.page_s) * PAGES < 1
