"""Whole runs, as the stopping rule ends them, cover their true mean; benchmarks/coverage.py has the
figures."""

from __future__ import annotations

from benchmarks.single_run_coverage import Runs


def test_runs_that_precision_ends_cover_their_true_mean() -> None:
    found, steps, precise = Runs("repeated", "AR(1), r = 0.6", 0.02).scored(25)
    assert precise == 1
    assert steps < 20
    assert found.covered >= 0.84  # at 93 %, fewer than 21 of 25 would come once in a hundred times
    assert found.median < 0.1, "what precision ended is as precise as was asked"
