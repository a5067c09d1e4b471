"""Intervals, laws and robust deviations against statsmodels and SciPy: independent programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.integrate import trapezoid
from scipy.linalg import toeplitz
from statsmodels.stats.weightstats import DescrStatsW

from benchmarks.scoring import autoregressive, autoregressive_series
from dpeval.analysis.scaling import scaling_laws
from dpeval.record.measurement import Interval
from dpeval.stats.intervals import (
    HEAVY,
    INDEPENDENT,
    are_within,
    coefficient,
    mean_interval,
    means,
    robust_deviation,
)
from tests.records import findings, perfect

Series = np.ndarray[Any, np.dtype[np.float64]]


def test_the_robust_deviation_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 7, 100):
        series = generator.lognormal(0, 0.5, count)
        ours, theirs = robust_deviation(series), stats.median_abs_deviation(series, scale="normal")
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("count", [4, 26, 300])
def test_for_each_correlation_the_mean_and_its_error_are_those_of_generalised_least_squares(
    rho: float, count: int
) -> None:
    series = 1 + 0.05 * autoregressive_series(np.random.default_rng(count), count, rho)
    constant: Series = np.ones(count)
    time: Series = np.arange(count, dtype=np.float64) - (count - 1) / 2
    for regressors in ([constant], [constant, time]):
        found = coefficient(series - 1, regressors)
        node = int(np.argmin(np.abs(found.correlations - rho)))
        design = np.stack(regressors, axis=1)
        correlation = toeplitz(found.correlations[node] ** np.arange(count))
        theirs = sm.GLS(series - 1, design, sigma=correlation).fit()
        assert found.centres[node] == pytest.approx(theirs.params[-1], rel=1e-7, abs=1e-12)
        assert found.errors[node] == pytest.approx(theirs.bse[-1], rel=1e-7)
        assert found.freedom == theirs.df_resid


def test_the_weights_of_correlations_are_their_marginal_likelihoods() -> None:
    for count, rho in ((6, 0.0), (26, 0.6), (80, 0.9)):
        series = autoregressive_series(np.random.default_rng(count), count, rho)
        grid, logs = np.linspace(0, 0.98, 400), []
        for r in grid:
            correlation = toeplitz(r ** np.arange(count))
            inverse = np.linalg.inv(correlation)
            information = inverse.sum()
            residual = series - inverse.sum(axis=0) @ series / information
            logs.append(
                -np.linalg.slogdet(correlation)[1] / 2
                - np.log(information) / 2
                - (count - 1) / 2 * np.log(residual @ inverse @ residual)
            )
        likelihood, prior = np.exp(np.array(logs) - max(logs)), (1 - grid) ** -HEAVY
        prior *= (1 - INDEPENDENT) / trapezoid(prior, grid)
        weight = trapezoid(likelihood * prior, grid) + INDEPENDENT * likelihood[0]
        expected = trapezoid(likelihood * prior * grid, grid) / weight
        found = coefficient(series, [np.ones(count)])
        assert float(found.weights @ found.correlations) == pytest.approx(expected, rel=1e-3)


def test_a_long_series_gets_the_interval_of_generalised_least_squares() -> None:
    generator, count = np.random.default_rng(2), 1000
    for rho in (0.3, 0.6, 0.8):
        ratios = []
        for _ in range(10):
            series = 1 + 0.05 * autoregressive_series(generator, count, rho)
            interval = mean_interval(series)
            theirs = sm.GLSAR(series, np.ones((count, 1)), rho=1).iterative_fit(5).bse[0]
            ratios.append((interval.high - interval.low) / 2 / 1.962 / theirs)
        # Batch means widen some; that r is not known widens all by a little.
        assert np.median(ratios) == pytest.approx(1.02, abs=0.06)


@pytest.mark.parametrize(("count", "most_rho"), [(20, 0.8), (30, 0.8), (60, 0.9), (240, 0.9)])
def test_windows_of_20_steps_or_more_are_covered_whatever_their_correlation(
    count: int, most_rho: float
) -> None:
    for rho in (0.0, 0.3, 0.6, 0.8, 0.9):
        if rho <= most_rho:
            generator = np.random.default_rng([count, int(10 * rho)])
            series = 1 + 0.05 * autoregressive(rho, generator, 1000, count)
            mean = series.mean(axis=1)
            # An interval covers the truth unless it ends before it, which is faster to find out.
            covered = 1 - float(are_within(series, np.abs(mean - 1) / mean, 0.95).mean())
            # 93 to 97.6 %, give or take 1.6 % from a thousand draws.
            assert 0.914 <= covered <= 0.99, rho


def test_several_series_have_the_intervals_of_each() -> None:
    series = 1 + 0.05 * autoregressive(0.5, np.random.default_rng(0), 20, 45)
    together = means(series, 0.95)
    for one, mean, half, effective in zip(series, *together, strict=True):
        alone = mean_interval(one)
        assert (alone.mean, alone.high, alone.effective_samples) == pytest.approx(
            (mean, mean + half, effective)
        )


def test_26_steps_with_one_slow_hump_are_known_to_a_quarter_not_to_three_quarters() -> None:
    generator = np.random.default_rng(0)
    found: list[Interval] = []
    while len(found) < 20:
        series = autoregressive_series(generator, 26, 0.63)
        centred = series - series.mean()
        r = float((centred[1:] * centred[:-1]).sum() / (centred**2).sum())
        if abs(r - 0.63) < 0.05:
            found.append(mean_interval(0.709 * (1 + 0.14 * centred / centred.std())))
    halves = [interval.rel_half_width for interval in found]
    assert 0.17 <= np.median(halves) <= 0.30
    assert max(halves) < 0.45


def test_a_slow_disturbance_widens_the_interval_as_newey_and_west_would() -> None:
    generator, count, lags = np.random.default_rng(4), 3000, 150
    ratios, alone = [], []
    for _ in range(60):
        slow, fast = autoregressive_series(generator, count, 0.95), generator.normal(0, 1, count)
        series = 1 + 0.05 * (np.sqrt(0.3) * slow + np.sqrt(0.7) * fast)
        error = mean_interval(series).rel_half_width * series.mean() / stats.t.ppf(0.975, 9)
        fit = sm.OLS(series, np.ones(count)).fit(cov_type="HAC", cov_kwds={"maxlags": lags})
        ratios.append(error / fit.bse[0])
        known = coefficient(series - series.mean(), [np.ones(count)])
        alone.append(float(np.sqrt(known.variance)) / fit.bse[0])
    # Ten batch means know this error to 24 %, of which 150 lags share much: the mean of 60 ratios
    # is good to 3 %. Newey and West's weights miss 6 % of the error, batches of 300 steps 3 %.
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.12)
    assert np.mean(alone) < 0.5  # what AR(1) alone would have promised


def test_pooled_runs_get_students_interval_where_they_differ_more_than_each_varies() -> None:
    times = np.array([0.101, 0.098, 0.104, 0.100, 0.097])
    runs = [perfect(1, 32, time, repetition=i) for i, time in enumerate(times)]
    (row,) = findings(runs).pooled.to_dict("records")
    half = np.diff(DescrStatsW(np.log(times)).tconfint_mean())[0] / 2
    assert np.log(np.array([row["low"], row["high"]]) / row["img_per_s"]) == pytest.approx(
        [-half, half]
    )


def test_a_law_without_shape_is_weighted_least_squares() -> None:
    devices = np.array([1.0, 2, 4, 8])
    errors = np.array([0.01, 0.02, 0.01, 0.04])
    rate = 50 * devices * np.exp(errors * np.array([0.5, -0.8, 0.3, 0.9]))
    ours = scaling_laws.fit(scaling_laws.LINEAR, devices, rate, errors).rate_one
    model = sm.WLS(np.log(rate / devices), np.ones(4), weights=errors**-2)
    theirs = model.fit(cov_type="fixed scale")
    middle, half = theirs.params[0], 1.96 * theirs.bse[0]
    assert np.log([ours.value, ours.low, ours.high]) == pytest.approx(
        [middle, middle - half, middle + half], rel=1e-6
    )
