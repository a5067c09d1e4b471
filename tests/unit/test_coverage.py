"""Whole runs, as the stopping rule ends them, cover their true mean; benchmarks/coverage.py has the
figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.single_run_coverage import Runs, preset
from dpeval.instruments.stop_sync import steps_ahead
from dpeval.record.codes import StopReason
from dpeval.stats.steady_state import decide, next_asked, window


@pytest.mark.parametrize("rho", ["0", "0.6"])
def test_runs_that_precision_ends_cover_their_true_mean(rho: str) -> None:
    made = Runs("quick", f"AR(1), r = {rho}", 0.02).simulated(200)
    found = made.scored()
    assert made.precise.mean() > 0.8
    assert found.covered >= 0.89  # at 93.5 %, fewer would come once in 100 times
    assert found.median < 0.05, "what precision ended is as precise as was asked"


def test_the_benchmark_gives_simulated_runs_the_windows_of_records() -> None:
    case = Runs("quick", "AR(1), r = 0.6", 0.05)
    made = case.simulated(12)
    for at, step_s in enumerate(case.steps(12)):
        reason: StopReason = "precision" if made.precise[at] else "time_limit"
        found = window([step_s[: made.counts[at]]], reason, preset("quick")).step_s
        assert (found.mean, found.high, found.effective_samples) == pytest.approx(
            (made.mean_s[at], made.mean_s[at] * np.exp(made.half[at]), made.effective[at])
        )


def test_a_run_is_looked_at_whenever_it_may_be_precise_and_ends_as_in_the_benchmark() -> None:
    config, case = preset("quick"), Runs("quick", "AR(1), r = 0.6", 0.05)
    made = case.simulated(3)
    for steps, end, is_precise in zip(case.steps(3), made.counts, made.precise, strict=True):
        count, looks = 1, []
        while True:
            looks.append(count)
            elapsed_s = float(steps[1:count].sum())
            reason = decide(steps[:count], elapsed_s, config).reason
            if reason is not None:
                break
            count += steps_ahead(count, elapsed_s, float(steps[count - 1]), config)
        assert (reason == "precision") == is_precise
        assert abs(count - end) <= (0 if is_precise else 1)
        asked = next_asked(0, config)
        while asked <= count:
            assert asked in looks
            asked = next_asked(asked, config)
