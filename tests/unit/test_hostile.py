"""Records that a hostile reader would construct, and what the analysis must not say of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import quantile_test

from benchmarks.scoring import autoregressive, autoregressive_series
from dpeval.analysis.frame import runs_frame
from dpeval.analysis.pipeline import told_of_other_machine
from dpeval.analysis.pooling.repetitions import median_interval
from dpeval.analysis.report import verdict
from dpeval.analysis.scaling.compare import other_machine
from dpeval.analysis.scaling.findings import Findings
from dpeval.config import MeasureConfig
from dpeval.record.phases import PHASES
from dpeval.record.schema import Record
from dpeval.stats import steady_state
from dpeval.stats.record_warnings import find_warnings
from dpeval.stats.throughput import throughput
from dpeval.util.arrays import Floats
from tests.records import (
    SHARES,
    ablation,
    findings,
    make_environment,
    make_record,
    perfect,
    verdict_of,
)


def of_steps(run: Record, *step_s: Floats) -> Record:
    """`run` with these steps of its ranks, s."""
    config = MeasureConfig(min_warmup_steps=3, min_steps=2)
    window = steady_state.window(step_s, "precision", config)
    main = [series[window.first :] for series in step_s]
    ranks = [
        rank.model_copy(
            update={
                "step_s": series.tolist(),
                "phase_s": {name: (SHARES[name] * series).tolist() for name in PHASES},
                "stats": {
                    name: one.model_copy(update={"mean_s": SHARES.get(name, 1.0) * mean_s})
                    for name, one in rank.stats.items()
                },
            }
        )
        for rank, series in zip(run.ranks, step_s, strict=True)
        for mean_s in [float(series[window.first :].mean())]
    ]
    batch = sum(rank.per_device_batch_size for rank in ranks)
    found = throughput(batch, main, window.step_s)
    return run.model_copy(update={"window": window, "throughput": found, "ranks": ranks})


def said(found: Findings) -> str:
    return "\n".join([*verdict_of(found), *verdict.claims(found), *verdict.lacking(found)])


def on_other(run: Record, **machine: Any) -> Record:
    return run.model_copy(update={"environment": make_environment().model_copy(update=machine)})


def strays(scale: float, count: int = 40, seed: int = 0) -> Floats:
    made: Floats = scale * np.random.default_rng(seed).standard_normal(count)
    return made


def test_equal_configurations_are_equal_and_not_to_be_measured_again() -> None:
    words = said(findings(perfect(n, 32, 1.0, repetition=k) for n in (1, 2) for k in range(5)))
    assert "within 1 % of the best" in words
    assert "more runs" not in words


def test_a_small_gap_is_not_promised_to_be_told() -> None:
    words = said(findings(perfect(n, 32, 1.0) for n in (1, 2, 4)))
    assert "tell them apart" not in words
    assert "To tell whether they differ by 1 %, measure" in words


def test_one_stray_step_widens_what_it_must_and_hides_no_certain_loss() -> None:
    step_s = 0.5 * (1 + strays(0.01))
    step_s[20] = 10.0
    stray = of_steps(make_record(2, 32, 0.5), step_s, step_s)
    found = findings([make_record(1, 32, 1.0, steps=40), stray])
    (row,) = found.points[found.points["num_devices"] == 2].to_dict("records")
    assert row["efficiency_low"] < 0.5 < 1 < row["efficiency_high"]
    words = said(found)
    # Synchronisation is known to be 0.92, so it can be told from 1, and what loses nothing for
    # certain is not the largest loss.
    assert "can be told from 1" not in words
    assert "largest loss is one of granularity × contention × remainder and gradient sync" in words
    assert found.claims == []


@pytest.mark.parametrize(("noise", "is_told"), [(0.1, True), (0.2, False)])
def test_only_losses_that_cannot_be_told_from_1_are_called_so(noise: float, is_told: bool) -> None:
    shaky = make_record(2, 32, 0.55, ablation=ablation(0.55, [0.5, 0.5], 0.49, noise=noise))
    (item,) = findings([make_record(1, 32, 1.0), shaky]).waterfalls
    assert any(one.high < 1 for one in item.largest_losses) == is_told
    assert ("can be told from 1" in verdict.loss(item)) != is_told


def test_drifts_in_opposite_directions_make_no_super_linear_speedup() -> None:
    line = np.linspace(-0.1, 0.1, 40)
    up = of_steps(make_record(1, 32, 1.0), 1 + line + strays(0.005))
    down = 0.5 * (1 - line + strays(0.005, seed=1))
    found = findings([up, of_steps(make_record(2, 32, 0.5), down, down)])
    assert not found.points["steady"].any()
    assert found.claims == []


@pytest.mark.parametrize("repeat", [1, 3])
def test_runs_of_one_step_are_not_said_to_assume_a_spread(repeat: int) -> None:
    runs = [
        make_record(n, 32, 1.0 / n, steps=1, noise=0.05, repetition=k, seed=k)
        for n in (1, 2)
        for k in range(repeat)
    ]
    assert "spread between runs" not in said(findings(runs))


def test_ranks_that_a_record_lacks_are_missed() -> None:
    whole = make_record(4, 32, 0.3)
    part = whole.model_copy(update={"ranks": whole.ranks[:2]})
    assert "Not recorded in 1 of 2 runs: 2 of 4 ranks" in said(
        findings([make_record(1, 32, 1.0), part])
    )
    assert "Not recorded" not in said(findings([make_record(1, 32, 1.0), whole]))


def test_what_two_configurations_lose_alike_explains_no_difference_between_them() -> None:
    """Synchronisation is 0.92 for both; one rank computes faster where there are four."""
    (claim,) = [
        one
        for one in findings(make_record(n, 32, s) for n, s in ((1, 1.0), (2, 0.6), (4, 0.2))).claims
        if one.kind == "surprise"
    ]
    assert "gradient synchronisation" not in claim.sentence
    assert "is 0.91 against 1.36" in claim.sentence


def test_a_speedup_by_caches_is_claimed_and_nothing_invented() -> None:
    found = findings(make_record(n, 32, s) for n, s in ((1, 1.0), (2, 0.35)))
    (claim,) = found.claims
    assert claim.kind == "super-linear"
    assert claim.causes == ()


def test_seeds_are_repetitions_and_their_spread_counts() -> None:
    shares = strays(0.03, 8)
    runs = []
    for at, stray in enumerate(shares):
        made = make_record(1 + at % 2, 32, (1 + stray) / (1 + at % 2))
        runs.append(made.model_copy(update={"config": {**made.config, "seed": at}}))
    found = findings(runs)
    assert found.points["n_runs"].tolist() == [4, 4]
    assert found.points["spread_freedom"].tolist() == [6, 6]
    assert (found.points["spread_share"] > 0.01).all()


@pytest.mark.parametrize("machine", [{"host": "other"}, {"cpu_model": "another"}])
def test_two_machines_make_no_speedup(machine: dict[str, Any]) -> None:
    found = findings([make_record(1, 32, 1.0), on_other(make_record(2, 32, 0.3), **machine)])
    assert found.points["series"].nunique() == 2
    assert (found.points["speedup"] == found.points["num_devices"]).all()
    assert "times the throughput" not in said(found)


@pytest.mark.parametrize("machine", [{"host": "other"}, {"cpu_model": "another"}, {}])
def test_a_comparison_of_two_machines_says_so(machine: dict[str, Any]) -> None:
    before = make_record(2, 32, 0.5)
    sides = [
        runs_frame.of_records([(run, Path(str(at)))]).runs
        for at, run in enumerate((before, on_other(before, **machine)))
    ]
    words = list(told_of_other_machine(other_machine(sides[0], sides[1])))
    assert len(words) == bool(machine)
    assert all("caution: the sweeps ran on different machines" in line for line in words)


def test_without_one_device_there_is_no_efficiency_floor_to_reach() -> None:
    found = findings([make_record(2, 32, 0.5), make_record(4, 32, 0.26)])
    assert found.waterfalls == []
    efficient = [one for one in found.choices if one.objective.name == "efficient"]
    assert all(one.best is None for one in efficient)


def test_two_modes_of_repetitions_widen_everything() -> None:
    runs = [
        make_record(n, 32, (1.0 if k % 2 else 1.5) / n, repetition=k, seed=k)
        for n in (1, 2)
        for k in range(4)
    ]
    (row,) = findings(runs).points.iloc[1:].to_dict("records")
    assert row["efficiency_low"] < 0.75
    assert row["efficiency_high"] > 1.35


def test_a_cold_repetition_of_the_baseline_is_named_as_the_cause() -> None:
    runs = [
        make_record(n, 32, (5.0 if (n, k) == (1, 0) else 1.0) / n, repetition=k, seed=k)
        for n in (1, 2)
        for k in range(3)
    ]
    (claim,) = findings(runs).claims
    assert claim.causes[0] == "baseline_outlier"
    assert "without it, efficiency 1.00" in claim.sentence


def test_a_thousand_devices_are_no_numerical_problem() -> None:
    counts = (1, 64, 1024)
    found = findings(make_record(n, 4096, 10.0 / n * (1 + 0.01 * n**0.5)) for n in counts)
    ends = found.points[["speedup", "efficiency_low", "efficiency_high"]].to_numpy(dtype=float)
    assert np.isfinite(ends).all()
    assert found.claims == []


@pytest.mark.parametrize(
    ("rho", "repeat", "is_told"), [(0.9, 1, True), (0.9, 5, False), (0.3, 1, False)]
)
def test_a_window_whose_steps_wander_slowly_says_so_unless_repetitions_show_it(
    rho: float, repeat: int, is_told: bool
) -> None:
    series = 1 + 0.02 * autoregressive_series(np.random.default_rng(0), 400, rho)
    made = of_steps(make_record(1, 32, 1.0), series)
    measure = {"rel_precision": 0.05, "time_limit_s": 60.0, "max_steps": 1000}
    config = {**made.config, "measure": measure, "repeat": repeat}
    found = find_warnings(made.model_copy(update={"config": config}))
    assert ("slow_wander" in {warning.code for warning in found}) == is_told


def test_steps_listed_one_by_one_are_known_as_well_as_their_correlation_allows() -> None:
    """Order statistics of correlated steps as of independent ones would cover 70 %."""
    generator, covered, draws = np.random.default_rng(0), 0, 60
    for series in np.exp(0.1 * autoregressive(0.6, generator, draws, 60)):
        low, high, _ = median_interval(series)
        covered += low <= 1 <= high
    assert covered >= 49  # at 93 %, fewer would come once in 500 times


def test_independent_steps_have_the_interval_of_order_statistics() -> None:
    series = np.random.default_rng(1).permutation(np.linspace(1, 2, 40))
    low, high, freedom = median_interval(series)
    theirs = quantile_test(series, p=0.5).confidence_interval(0.95)
    assert math.isinf(freedom)
    assert theirs.high - theirs.low <= high - low <= 1.4 * (theirs.high - theirs.low)
