"""When the steady state begins and when to stop, from step times alone.

The rules follow Hoefler & Belli 2015 ("Scientific Benchmarking of Parallel Computing Systems",
SC'15, rules 5-8: report variability, intervals that allow for dependence) and Georges et al.
2007 ("Statistically Rigorous Java Performance Evaluation", OOPSLA: steady state separate from
start-up, stop when the interval is narrow enough).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dpeval.config import MeasureConfig
from dpeval.record.codes import Steadiness, StopReason
from dpeval.record.measurement import Interval, Window
from dpeval.stats.intervals import (
    coefficient,
    dot,
    is_constant,
    mean_interval,
    on_log_scale,
    robust_deviation,
)
from dpeval.util.arrays import Floats
from dpeval.util.frozen import Frozen

RULE = "MSER on winsorised steps, then an interval of the drift of the rest"
DRIFT_SIZE = 0.03
"""A trend that changes the step by less than this fraction over the window is called steady: a
smaller one is real on most machines and below what one would act upon."""
STEADY_PROBABILITY = 0.95
"""A window is steady if its drift is smaller than DRIFT_SIZE with this probability, …"""
DRIFTING_PROBABILITY = 0.999
"""… and drifting if it is larger with this one, which is higher because the question is asked anew
every half second of a run. Between the two, it is not known."""
STOPPED_ERROR, LEAST_ERROR = 0.015, 0.01
"""Nominal error (1 - confidence) of the 95 % interval of a run that ended as soon as it was precise
enough, with its least number of steps: waiting for a narrow interval favours windows that happen to
look calm. Each doubling of the window is about one more chance to look so, and has 1/sqrt(2) of the
error of the last, down to the second value."""
CHOSEN_ERROR = 0.03
"""Nominal error of the 95 % interval of any other window, whose begin is chosen, too. With both,
simulated runs cover the truth in 92 % or more with every preset, at CV 2 to 14 % and lag-1
correlations up to 0.8; benchmarks/coverage.py measures it."""
LEAST_GAIN = 0.3
"""Steps are cut off if that reduces the squared standard error by this fraction. The smallest error
alone follows chance: of correlated steps it keeps the calmest end, and coverage falls by 3 %."""
COLD, APART = 3, 3.0
"""They are also cut off if the median of the first few is so many robust deviations from the rest:
winsorising hides what cutting off a short and very cold start gains."""
MIN_TESTED = 8
"""Fewer steps cannot show a drift."""


class SteadyState(Frozen):
    """Where the steady state begins."""

    first: int
    steadiness: Steadiness
    drift: float = 0.0
    """Change along the fitted line over the window, as a fraction of the mean."""


class Decision(Frozen):
    """Whether to stop measuring, and the steady state so far."""

    reason: StopReason | None
    first: int
    interval: Interval | None


def steps_for_a_mean(config: MeasureConfig) -> int:
    """The least number of steps that give a mean with an interval."""
    return config.min_warmup_steps + 2


def seconds_for_a_window(config: MeasureConfig, step_s: float) -> int:
    """A time limit, s, that suffices for the shortest warm-up and window at `step_s` per step."""
    return math.ceil((config.min_warmup_steps + config.min_steps) * step_s)


def steady_start(step_s: Sequence[float] | Floats, floor: int) -> SteadyState:
    """Find the first step of the steady state.

    MSER (White 1997, "An effective truncation heuristic for bias reduction in simulation
    output", Simulation 69(6)): the truncation d, between `floor` and half of the series, whose
    remainder has the smallest squared standard error var(x[d:])/(n-d). It balances the bias of
    a cold step kept against the precision lost by a warm step discarded and needs no
    threshold. Values are first winsorised to median ± 5 robust deviations of the second half, so
    a single outlier does not count as a change of state. It cuts nothing from most clean series
    and up to a third from a few; testing whether the cut steps differ from the rest would save
    them, but miss every tenth cold start, which is worse.

    Then a line is fitted through the rest, whose residuals may be autocorrelated. How likely its
    change over the window is to be smaller than :data:`DRIFT_SIZE` decides between three answers:
    a short or noisy window is neither known to be steady nor to drift.

    Args:
        step_s: all steps from the first, s, shape [n].
        floor: the least number of warm-up steps.
    """
    first, rest = _cut(np.asarray(step_s, dtype=np.float64), floor)
    drift, steadiness = _drift(rest)
    return SteadyState(first=first, steadiness=steadiness, drift=drift)


def first_steady(step_s: Floats, floor: int) -> int:
    """The first step of the steady state alone; see :func:`steady_start`."""
    return _cut(step_s, floor)[0]


def _cut(values: Floats, floor: int) -> tuple[int, Floats]:
    """The first steady step, and the drawn-in steps from there on; none where there are too few."""
    count = len(values)
    if count <= floor + 1:
        return min(floor, max(0, count - 1)), values[:0]
    drawn_in = winsorised(values)
    error = _squared_errors(drawn_in, floor)
    first = floor + int(np.argmin(error))
    gains = error[first - floor] < (1 - LEAST_GAIN) * error[0]
    if not (gains or _is_cold(values[floor:first], values[first:])):
        first = floor
    return first, drawn_in[first:]


def _is_cold(cut: Floats, kept: Floats) -> bool:
    """Whether the first of the steps before the rest are unlike it."""
    if not len(cut):
        return False
    apart = abs(float(np.median(cut[:COLD]) - np.median(kept)))
    return apart > APART * robust_deviation(kept)


def winsorised(values: Floats) -> Floats:
    """`values`, clipped to 5 robust deviations around the median of their second half."""
    late = values[len(values) // 2 :]
    centre = float(np.median(late))
    # The cold start of a series without spread must not be clipped away.
    reach = 5 * max(robust_deviation(late), 0.01 * centre)
    return np.minimum(np.maximum(values, centre - reach), centre + reach)


def _squared_errors(values: Floats, floor: int) -> Floats:
    """MSER's squared standard error for each truncation, from `floor` to half of the series."""
    count = len(values)
    last = max(floor, count // 2)
    sizes = np.arange(count, 0, -1)
    # Centred so that the difference of squares keeps its precision.
    centred = values - values[count // 2 :].mean()
    sums = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum((centred**2)[::-1])[::-1]
    error: Floats = (squares / sizes - (sums / sizes) ** 2) / sizes
    return error[floor : last + 1]


def _drift(values: Floats) -> tuple[float, Steadiness]:
    """Change along the fitted line relative to the mean, and whether it is small, large or open."""
    count = len(values)
    if count < MIN_TESTED:
        return 0.0, "unknown"
    mean = float(values.mean())
    # In units of the whole change over the window, as a fraction of the mean.
    time = np.arange(count, dtype=np.float64) / (count - 1) - 0.5
    change = dot(time, values) / dot(time, time) / mean
    centred = values / mean - 1
    residual: Floats = centred - change * time
    if is_constant(1 + residual):
        return change, "steady" if abs(change) <= DRIFT_SIZE else "drifting"
    small = coefficient(centred, [np.ones(count), time]).probability_within(DRIFT_SIZE)
    if small >= STEADY_PROBABILITY:
        return change, "steady"
    return change, "drifting" if 1 - small >= DRIFTING_PROBABILITY else "unknown"


def decide(
    step_s: Sequence[float] | Floats,
    elapsed_s: float,
    config: MeasureConfig,
    *,
    taken: int | None = None,
) -> Decision:
    """Decide, during a run, whether it has measured enough.

    Stopping at the first narrow interval favours windows that happen to look calm. So the window
    must have ``measure.min_steps`` steps, and its interval, from :func:`main_interval`, must be
    narrow both with and without the last sixth of that number of steps.

    Args:
        step_s: all finished steps, s, shape [n].
        elapsed_s: time since the first step finished, s.
        config: precision and limits.
        taken: how many steps the host has taken, at least n; None: n.
    """
    values = np.asarray(step_s, dtype=np.float64)
    first, interval, is_precise = _judge(values, config)
    reason: StopReason | None = None
    if is_precise and _judge(values[: -max(1, config.min_steps // 6)], config)[2]:
        reason = "precision"
    elif elapsed_s >= config.time_limit_s:
        reason = "time_limit"
    elif (len(values) if taken is None else taken) >= config.max_steps:
        reason = "max_steps"
    return Decision(reason=reason, first=first, interval=interval)


def main_interval(series: Floats, stopped_by: StopReason, config: MeasureConfig) -> Interval:
    """The 95 % interval of a main window's mean, allowing for how the window was chosen.

    Args:
        series: the window's steps, s, shape [n], n >= 1.
        stopped_by: what ended the window; the interval is wider if its precision did.
        config: its least number of steps is where a run can first end so.
    """
    error = CHOSEN_ERROR
    if stopped_by == "precision":
        share = math.sqrt(min(1.0, config.min_steps / len(series)))
        error = max(LEAST_ERROR, STOPPED_ERROR * share)
    interval = mean_interval(series, 1 - error)
    return on_log_scale(interval) if len(series) > 1 else interval


def _judge(values: Floats, config: MeasureConfig) -> tuple[int, Interval | None, bool]:
    """The first steady step, the interval from there on, and whether that is enough to stop."""
    first, rest = _cut(values, config.min_warmup_steps)
    measured = len(values) - first
    interval = main_interval(values[first:], "precision", config) if measured >= 2 else None
    # The steps without the last sixth may be that many fewer than the least.
    enough = measured >= config.min_steps - max(1, config.min_steps // 6)
    is_precise = interval is not None and interval.rel_half_width <= config.rel_precision
    # The drift is asked for last: ranks wait for a look.
    return first, interval, enough and is_precise and _drift(rest)[1] != "drifting"


def slowest_rank(step_s: Sequence[Floats]) -> int:
    """The rank whose steps, of one window, took longest in all: what all others wait for."""
    return int(np.argmax([series.sum() for series in step_s]))


def window(step_s: Sequence[Floats], stopped_by: StopReason, config: MeasureConfig) -> Window:
    """The main window of a run that has ended.

    It begins where the steps of the group, each as long as its slowest rank's, become steady; its
    mean is that of the rank that is slowest within it.

    Args:
        step_s: per rank, all steps from the first, s, shape [n].
        stopped_by: what ended the window.
        config: how the run was measured.
    """
    begin = steady_start(np.max(np.stack(step_s), axis=0), config.min_warmup_steps)
    main = [series[begin.first :] for series in step_s]
    return Window(
        first=begin.first,
        steps=len(main[0]),
        steady=begin.steadiness == "steady",
        steadiness=begin.steadiness,
        stopped_by=stopped_by,
        step_s=main_interval(main[slowest_rank(main)], stopped_by, config),
        rule=RULE,
        drift=begin.drift,
    )
