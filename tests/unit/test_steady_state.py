"""Steady state, intervals and stopping, against series whose truth is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scoring import autoregressive_series
from dpeval.config import MeasureConfig
from dpeval.stats.diagnostics import diagnose
from dpeval.stats.intervals import mean_interval, naive_interval, on_log_scale
from dpeval.stats.steady_state import decide, main_interval, steady_start, window
from dpeval.stats.throughput import load_balance, throughput

Series = np.ndarray[Any, np.dtype[np.float64]]
CONFIG = MeasureConfig(min_warmup_steps=3, min_steps=10, rel_precision=0.02, time_limit_s=60)


def autoregressive_steps(generator: np.random.Generator, count: int, rho: float) -> Series:
    """A stationary lognormal series with lag-1 dependence `rho`; its mean is exp(0.02)."""
    return np.exp(0.2 * autoregressive_series(generator, count, rho))


def test_intervals_cover_the_true_mean_of_autocorrelated_steps() -> None:
    generator, truth = np.random.default_rng(7), float(np.exp(0.02))
    covered = naive = 0
    for number in range(500):
        series = autoregressive_steps(generator, 300, rho=(0.0, 0.2, 0.4, 0.6, 0.8)[number % 5])
        interval, simple = mean_interval(series), naive_interval(series)
        covered += interval.low <= truth <= interval.high
        naive += simple.low <= truth <= simple.high
    assert 0.93 <= covered / 500 <= 0.98  # what is not known of r widens them, if anything
    assert naive / 500 < 0.80  # what taking steps as independent would have promised


def test_a_cold_start_is_cut_off_and_nothing_more() -> None:
    generator = np.random.default_rng(1)
    firsts = []
    for _ in range(50):
        cold = np.r_[np.full(6, 2.5), np.ones(94)]
        firsts.append(steady_start(cold * generator.lognormal(0, 0.03, 100), 2).first)
    assert np.median(firsts) == 6
    assert min(firsts) >= 6


def test_a_slow_exponential_warm_up_is_cut_off() -> None:
    steps = 1 + 2 * np.exp(-np.arange(200) / 5)
    begin = steady_start(steps * np.random.default_rng(2).lognormal(0, 0.02, 200), 3)
    assert begin.steadiness == "steady"
    assert 10 <= begin.first <= 60


def test_one_late_hiccup_is_not_a_change_of_state() -> None:
    steps = np.random.default_rng(3).lognormal(0, 0.02, 100)
    steps[90] *= 20
    begin = steady_start(steps, 3)
    assert begin.steadiness == "steady"
    assert begin.first < 30


def test_a_drift_is_not_steady() -> None:
    steps = np.linspace(1, 1.3, 200) * np.random.default_rng(4).lognormal(0, 0.03, 200)
    begin = steady_start(steps, 3)
    assert begin.steadiness == "drifting"
    assert begin.drift > 0.1


@pytest.mark.parametrize("late", [1.0, 20.0])
def test_a_cold_start_is_cut_off_whether_or_not_there_is_a_late_outlier(late: float) -> None:
    generator = np.random.default_rng(8)
    for cold, count in ((1.2, 100), (2.5, 100), (30.0, 40)):
        for _ in range(20):
            steps = generator.lognormal(0, 0.03, count)
            steps[:8] *= cold
            steps[-5] *= late
            assert steady_start(steps, 3).first >= 7  # the last of slightly slow ones may stay


def test_a_wandering_series_keeps_its_beginning() -> None:
    generator = np.random.default_rng(9)
    cut = [steady_start(autoregressive_steps(generator, 240, 0.6), 5).first > 5 for _ in range(200)]
    assert np.mean(cut) < 0.3  # the smallest error alone would cut from nearly all


def test_clean_runs_are_not_called_drifting() -> None:
    generator = np.random.default_rng(5)
    for number in range(200):
        steps = autoregressive_steps(generator, 40 + number, rho=0.4)
        assert steady_start(steps, 3).steadiness != "drifting"


def test_stops_for_precision_only_after_the_least_steps() -> None:
    steps = np.random.default_rng(6).normal(1, 0.01, 40)
    assert decide(steps[:8], 1, CONFIG).reason is None
    assert decide(steps[:12], 1, CONFIG).reason is None
    assert decide(steps, 1, CONFIG).reason == "precision"


def test_an_interval_that_was_waited_for_is_wider() -> None:
    steps = np.random.default_rng(6).normal(1, 0.01, 60)
    waited, limited = window([steps], "precision", CONFIG), window([steps], "time_limit", CONFIG)
    decision = decide(steps, 1, CONFIG)
    assert decision.interval == waited.step_s, "what ends a run is what its record says"
    assert waited.step_s.mean == limited.step_s.mean
    chosen = on_log_scale(mean_interval(steps[limited.first :]))
    assert waited.step_s.rel_half_width > limited.step_s.rel_half_width > chosen.rel_half_width


@pytest.mark.parametrize("noise", [0.01, 0.5, 3.0])
def test_the_interval_of_a_mean_step_stays_positive_and_is_symmetric_in_its_logarithm(
    noise: float,
) -> None:
    steps = np.random.default_rng(7).lognormal(0, noise, 6)
    interval, linear = main_interval(steps, "max_steps", CONFIG), mean_interval(steps)
    assert 0 < interval.low < interval.mean < interval.high
    assert interval.mean / interval.low == pytest.approx(interval.high / interval.mean)
    assert interval.high >= min(linear.high, 1000 * interval.mean)
    found = throughput(32, [steps], interval)
    assert (found.low, found.high) == pytest.approx((32 / interval.high, 32 / interval.low))


def test_limits_stop_a_noisy_run_and_say_so() -> None:
    steps = np.random.default_rng(7).lognormal(0, 1, 30)
    assert decide(steps, 1, CONFIG).reason is None
    assert decide(steps, 61, CONFIG).reason == "time_limit"
    short = dataclasses.replace(CONFIG, max_steps=30)
    assert decide(steps, 1, short).reason == "max_steps"


def test_a_first_step_never_enters_the_mean() -> None:
    made = window([np.r_[100.0, np.ones(30)]], "precision", CONFIG)
    assert made.first >= 3
    assert made.step_s.mean == pytest.approx(1)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
def test_scaling_time_scales_the_interval(scale: float, seed: int) -> None:
    series = np.random.default_rng(seed).lognormal(0, 0.3, 50)
    one, other = mean_interval(series), mean_interval(series * scale)
    assert other.mean == pytest.approx(one.mean * scale)
    assert other.low == pytest.approx(one.low * scale)
    assert other.effective_samples == pytest.approx(one.effective_samples)


@settings(max_examples=200)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60), st.integers(1, 10))
def test_no_series_of_times_breaks_the_rules(steps: list[float], floor: int) -> None:
    begin = steady_start(steps, floor)
    assert 0 <= begin.first < len(steps)
    interval = mean_interval(steps)
    assert interval.low <= interval.mean <= interval.high
    decide(steps, 0.0, CONFIG)


def test_load_balance_names_the_slowest() -> None:
    balance = load_balance([np.full(5, 1.0), np.full(5, 2.0), np.full(5, 1.0)])
    assert balance.slowest_rank == 1
    assert balance.value == pytest.approx(2 / 3)


def test_load_balance_sees_a_rank_that_is_slow_now_and_then() -> None:
    slow_in_every_fifth = np.where(np.arange(20) % 5 == 0, 3.0, 1.0)
    balance = load_balance([np.ones(20), slow_in_every_fifth])
    assert balance.slowest_rank == 1
    assert balance.value == pytest.approx((1 + 1.4) / 2 / 1.4)


def ranks_of(generator: np.random.Generator, **wrong: Any) -> tuple[list[Series], list[Series]]:
    """Compute and data times of four ranks over 100 steps, with one thing wrong."""
    compute = [generator.lognormal(0, wrong.get("jitter", 0.02), 100) for _ in range(4)]
    data = [np.full(100, wrong.get("data", 0.001)) for _ in range(4)]
    compute[2] = compute[2] * wrong.get("straggler", 1.0)
    for series in compute:
        series[: wrong.get("cold", 0)] *= 2.5
        series *= np.linspace(1, wrong.get("drift", 1.0), 100)
    return compute, data


def found(compute: list[Series], data: list[Series]) -> list[str]:
    slowest = np.max(compute, axis=0)
    steps = [slowest + waited for waited in data]
    return [one.code for one in diagnose(steady_start(steps[0], 3), steps, compute, data)]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"straggler": 1.3}, "straggler"),
        ({"jitter": 0.2}, "jitter"),
        ({"cold": 6}, "cold_start"),
        ({"drift": 1.3}, "drift"),
        ({"data": 0.2}, "input_bound"),
    ],
)
def test_every_disturbance_is_diagnosed_and_no_other(wrong: dict[str, Any], code: str) -> None:
    for seed in range(10):
        assert found(*ranks_of(np.random.default_rng(seed), **wrong)) == [code]


def test_nothing_is_named_in_clean_runs() -> None:
    for seed in range(50):
        assert found(*ranks_of(np.random.default_rng(100 + seed))) == []


def test_the_straggler_is_the_rank_that_is_slow() -> None:
    compute, data = ranks_of(np.random.default_rng(0), straggler=1.5)
    (diagnostic,) = diagnose(steady_start(compute[2], 3), compute, compute, data)
    assert diagnostic.ranks == [2]
    assert "rank 2" in diagnostic.text


def slow_and_fast(generator: np.random.Generator, count: int) -> Series:
    """White noise over a disturbance with a memory of twenty steps; its mean is exp(0.005)."""
    slow = np.log(autoregressive_steps(generator, count, rho=0.95)) / 0.2
    series: Series = np.exp(0.1 * (0.3**0.5 * slow + 0.7**0.5 * generator.normal(size=count)))
    return series


def test_a_slow_disturbance_under_noise_widens_the_interval() -> None:
    generator, truth = np.random.default_rng(11), float(np.exp(0.005))
    intervals = [mean_interval(slow_and_fast(generator, 1000)) for _ in range(200)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert covered >= 0.85  # from the lag-1 autocorrelation alone it would be 0.55


def test_intervals_of_few_steps_are_wide_enough() -> None:
    generator, truth = np.random.default_rng(12), float(np.exp(0.02))
    for count, least in ((8, 0.92), (12, 0.92), (30, 0.93)):
        intervals = [mean_interval(autoregressive_steps(generator, count, 0.2)) for _ in range(500)]
        covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
        assert covered >= least


@given(st.integers(0, 50), st.floats(0.5, 0.9), st.floats(0.91, 0.999))
def test_more_confidence_is_a_wider_interval(seed: int, less: float, more: float) -> None:
    series = np.random.default_rng(seed).lognormal(0, 0.2, 60)
    narrow, wide = mean_interval(series, less), mean_interval(series, more)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_a_rank_with_more_images_is_no_straggler() -> None:
    generator = np.random.default_rng(1)
    batches = [4, 3]
    compute = [batch * generator.lognormal(0, 0.02, 50) for batch in batches]
    data = [np.zeros(50) for _ in batches]
    begin = steady_start(compute[0], 3)
    assert diagnose(begin, compute, compute, data, batches) == []
    assert [one.ranks for one in diagnose(begin, compute, compute, data)] == [[0]]


def test_every_straggler_is_named() -> None:
    compute, data = ranks_of(np.random.default_rng(2), straggler=1.4)
    compute[0] *= 1.4
    named = diagnose(steady_start(compute[2], 3), compute, compute, data)
    assert [(one.code, one.ranks) for one in named] == [
        ("straggler", [0]),
        ("straggler", [2]),
    ]


def test_one_stall_of_the_loader_is_not_a_slow_loader() -> None:
    compute, data = ranks_of(np.random.default_rng(3))
    data[1][50] = 20.0
    assert found(compute, data) == []


def test_a_loader_that_stalls_now_and_then_is_slow() -> None:
    compute, data = ranks_of(np.random.default_rng(3))
    for series in data:
        series[5::8] = 1.0
    assert found(compute, data) == ["input_bound"]


def test_a_heavy_tail_is_jitter_and_one_hiccup_is_not() -> None:
    compute, data = ranks_of(np.random.default_rng(4))
    compute[1][60] *= 20
    assert found(compute, data) == []
    compute[1][[20, 35, 48, 77, 90]] *= 3
    assert found(compute, data) == ["jitter"]


def test_short_runs_are_not_accused() -> None:
    for seed in range(50):
        generator = np.random.default_rng(seed)
        compute = [autoregressive_steps(generator, 12, 0.3) ** 0.25 for _ in range(4)]
        data = [np.full(12, 0.001) for _ in compute]
        assert found(compute, data) == []


def test_steps_that_are_slow_for_a_while_are_jitter() -> None:
    generator = np.random.default_rng(5)
    compute = [autoregressive_steps(generator, 200, rho=0.8) for _ in range(4)]
    assert "jitter" in found(compute, [np.full(200, 0.001) for _ in compute])
