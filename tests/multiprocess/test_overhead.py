"""The benchmark of dpeval's own cost, at its smallest."""

from __future__ import annotations

import pytest

from benchmarks.overhead import measure, ratio_of_means, ratio_of_medians

CALIBRATED = ("model=calibrated", "dataset=calibrated", "hardware.oversubscribe=true", "repeat=3")


@pytest.mark.parametrize(
    "overrides", [("strategy=none",), ("num_devices=2",)], ids=["a bare model", "two ranks"]
)
def test_blocks_of_both_loops_take_the_time_of_the_model(overrides: tuple[str, ...]) -> None:
    pairs = measure([*CALIBRATED, *overrides])
    assert len(pairs) == 3
    for bare_s, ours_s in pairs:
        assert 0.008 < bare_s < 1  # seconds: 10 ms of sleep, and whatever else runs here
        assert 0.008 < ours_s < 1
    for ratio in (ratio_of_medians(pairs), ratio_of_means(pairs)):
        assert ratio.low <= ratio.value <= ratio.high
