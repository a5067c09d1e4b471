"""Whole runs, as the stopping rule ends them, cover their true mean; benchmarks/coverage.py has the
figures."""

from __future__ import annotations

import pytest

from benchmarks.single_run_coverage import Runs, preset
from dpeval.instruments.stop_sync import steps_ahead
from dpeval.stats.steady_state import decide, next_asked


@pytest.mark.parametrize("rho", ["0", "0.6"])
def test_runs_that_precision_ends_cover_their_true_mean(rho: str) -> None:
    made = Runs("quick", f"AR(1), r = {rho}", 0.02).simulated(60)
    found = made.scored()
    assert made.precise.mean() > 0.8
    assert found.covered >= 0.85  # at 94 %, fewer would come once in 200 times
    assert found.median < 0.05, "what precision ended is as precise as was asked"


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
