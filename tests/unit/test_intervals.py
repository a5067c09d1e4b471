"""Intervals, laws and robust deviations against statsmodels and SciPy: independent programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from dpeval.analysis.scaling import pooling, scaling_laws
from dpeval.stats.intervals import ar1_error, mean_interval, robust_deviation

Series = np.ndarray[Any, np.dtype[np.float64]]


def autoregressive(generator: np.random.Generator, count: int, rho: float) -> Series:
    """A stationary normal AR(1) series of variance 1."""
    noise = generator.normal(0, np.sqrt(1 - rho**2), count)
    series = np.empty(count)
    series[0] = generator.normal()
    for index in range(1, count):
        series[index] = rho * series[index - 1] + noise[index]
    return series


def test_the_robust_deviation_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 7, 100):
        series = generator.lognormal(0, 0.5, count)
        ours, theirs = robust_deviation(series), stats.median_abs_deviation(series, scale="normal")
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_steps_without_autocorrelation_get_students_interval(confidence: float) -> None:
    # Neighbours that differ have a negative autocorrelation, which counts as none.
    series = 1 + np.random.default_rng(1).uniform(0.01, 0.02, 24) * np.tile([1.0, -1.0], 12)
    interval = mean_interval(series, confidence)
    theirs = DescrStatsW(series).tconfint_mean(alpha=1 - confidence)
    assert (interval.low, interval.high) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_the_error_of_an_autoregressive_mean_is_that_of_generalised_least_squares(
    rho: float,
) -> None:
    generator, count = np.random.default_rng(2), 1000
    # To first order, d ln(error) / dr = 1 / (1 - r²); ours takes r larger by its bias and by half
    # its standard error. Of what is left, 2 %, half is the next order.
    bias, half_error = (1 + 4 * rho) / count, np.sqrt((1 - rho**2) / count) / 2
    raised = (bias + half_error) / (1 - rho**2)
    for _ in range(10):
        series = 1 + 0.05 * autoregressive(generator, count, rho)
        theirs = sm.GLSAR(series, np.ones((count, 1)), rho=1).iterative_fit(5).bse[0]
        assert 0 <= ar1_error(series)[1] / theirs - 1 <= raised + 0.02


def test_a_slow_disturbance_widens_the_interval_as_newey_and_west_would() -> None:
    generator, count, lags = np.random.default_rng(4), 3000, 150
    ratios, alone = [], []
    for _ in range(60):
        slow, fast = autoregressive(generator, count, 0.95), generator.normal(0, 1, count)
        series = 1 + 0.05 * (np.sqrt(0.3) * slow + np.sqrt(0.7) * fast)
        error = mean_interval(series).rel_half_width * series.mean() / stats.t.ppf(0.975, 9)
        fit = sm.OLS(series, np.ones(count)).fit(cov_type="HAC", cov_kwds={"maxlags": lags})
        ratios.append(error / fit.bse[0])
        alone.append(ar1_error(series)[1] / fit.bse[0])
    # Ten batch means know this error to 24 %, of which 150 lags share much: the mean of 60 ratios
    # is good to 3 %. Newey and West's weights miss 6 % of the error, batches of 300 steps 3 %.
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.12)
    assert np.mean(alone) < 0.5  # what AR(1) alone would have promised


def test_pooled_runs_get_students_interval_where_they_differ_more_than_each_varies() -> None:
    times = np.array([0.101, 0.098, 0.104, 0.100, 0.097])
    low, high = pooling.interval(times, within=np.full(5, 1e-5))
    assert (low, high) == pytest.approx(DescrStatsW(times).tconfint_mean(), rel=1e-9)


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
