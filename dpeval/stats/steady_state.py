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
    are_within,
    coefficient,
    dot,
    is_constant,
    mean_interval,
    on_log_scale,
    robust_deviations,
)
from dpeval.util.arrays import Bools, Floats, Ints
from dpeval.util.frozen import Frozen

RULE = "MSER on winsorised steps, then an interval of the drift of the rest"
DRIFT_SIZE = 0.03
"""A trend that changes the step by less than this fraction over the window is called steady: a
smaller one exists on most machines and is not worth acting on."""
STEADY_PROBABILITY = 0.95
"""A window is steady if its drift is smaller than DRIFT_SIZE with this probability, …"""
DRIFTING_PROBABILITY = 0.999
"""… and drifting if it is larger with this one, which is higher because the test is repeated during
a run. Between the two, the answer is unknown."""
ASKED_EVERY = 1.3
"""Whether a run is precise enough is checked when its window reaches the minimum number of steps,
and then whenever it has grown by this factor: fewer checks mean fewer chances to stop at a window
that only looks calm."""
STOPPED_ERROR, LEAST_ERROR = 0.03, 0.01
"""Nominal error (1 - confidence) of the 95 % interval of a run that ended as soon as it was precise
enough, with its least number of steps. Each doubling of the window is about one more chance to look
calm, and has 1/sqrt(2) of the error of the last, down to the second value."""
CHOSEN_ERROR = 0.045
"""Nominal error of the 95 % interval of any other window, whose begin is chosen, too. Both were
found by simulation; benchmarks/coverage.py prints what they give."""
LEAST_GAIN = 0.3
"""Steps are cut off if that reduces the squared standard error by this fraction. The smallest error
alone follows chance: of correlated steps it keeps the calmest end, and coverage falls by 3 %."""
COLD, APART = 3, 3.0
"""They are also cut off if the median of the first few is so many robust deviations from the second
half: winsorising hides what cutting off a short and very cold start gains."""
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
    values = np.asarray(step_s, dtype=np.float64)
    if len(values) <= floor + 1:
        return SteadyState(first=min(floor, max(0, len(values) - 1)), steadiness="unknown")
    firsts, drawn_in = _cut(values[None], floor)
    first = int(firsts[0])
    if len(values) - first < MIN_TESTED:
        return SteadyState(first=first, steadiness="unknown")
    change, small = (float(found[0]) for found in _drift(drawn_in[:, first:]))
    return SteadyState(first=first, steadiness=_steadiness(small), drift=change)


def first_steady(step_s: Floats, floor: int) -> int:
    """The first step of the steady state alone; see :func:`steady_start`."""
    if len(step_s) < floor + 2:
        return min(floor, max(0, len(step_s) - 1))
    return int(first_steps(step_s[None], floor)[0])


def first_steps(step_s: Floats, floor: int) -> Ints:
    """:func:`first_steady` of several series, shape [d, n], n >= floor + 2."""
    return _cut(step_s, floor)[0]


def _cut(values: Floats, floor: int) -> tuple[Ints, Floats]:
    """The first steady step of each series, and the winsorised series.

    Args:
        values: shape [d, n], n > floor + 1.
        floor: as in :func:`steady_start`.
    """
    drawn_in, centre, deviation = _winsorised(values)
    error = _squared_errors(drawn_in, floor)
    best = np.argmin(error, axis=-1)
    least = np.take_along_axis(error, best[:, None], axis=-1)[:, 0]
    gains = least < (1 - LEAST_GAIN) * error[:, 0]
    cold = _begin(values[:, floor : floor + COLD], best)
    is_cut = (best > 0) & (gains | (np.abs(cold - centre) > APART * deviation))
    return np.where(is_cut, floor + best, floor), drawn_in


def _begin(values: Floats, counts: Ints) -> Floats:
    """The median of as many of the first values of each series as it has steps before the rest.

    Args:
        values: the first ones, shape [d, at most :data:`COLD`].
        counts: shape [d]; more than there are: all.
    """
    medians = [np.median(values[:, : size + 1], axis=-1) for size in range(values.shape[-1])]
    places = np.clip(counts - 1, 0, len(medians) - 1)
    chosen: Floats = np.stack(medians)[places, np.arange(len(values))]
    return chosen


def winsorised(values: Floats) -> Floats:
    """`values`, clipped to 5 robust deviations around the median of their second half."""
    drawn_in: Floats = _winsorised(values[None])[0][0]
    return drawn_in


def _winsorised(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Clipped series, shape [d, n]; median and robust deviation of each one's second half."""
    late = values[:, values.shape[-1] // 2 :]
    centre, deviation = np.median(late, axis=-1), robust_deviations(late)
    # Do not clip away the cold start of a series without spread.
    reach = 5 * np.maximum(deviation, 0.01 * centre)
    low, high = (centre - reach)[:, None], (centre + reach)[:, None]
    return np.minimum(np.maximum(values, low), high), centre, deviation


def _squared_errors(values: Floats, floor: int) -> Floats:
    """MSER's squared standard error for each truncation, from `floor` to half of the series."""
    count = values.shape[-1]
    last = max(floor, count // 2)
    sizes = np.arange(count, 0, -1)
    # Centred so that the difference of squares keeps its precision.
    centred = values - values[:, count // 2 :].mean(axis=-1, keepdims=True)
    sums = np.cumsum(centred[:, ::-1], axis=-1)[:, ::-1]
    squares = np.cumsum((centred**2)[:, ::-1], axis=-1)[:, ::-1]
    error: Floats = (squares / sizes - (sums / sizes) ** 2) / sizes
    return error[:, floor : last + 1]


def _drift(values: Floats) -> tuple[Floats, Floats]:
    """Change along the fitted line over the mean, and the probability that it is small.

    Args:
        values: shape [d, n], n >= :data:`MIN_TESTED`.
    """
    count = values.shape[-1]
    centred = values / values.mean(axis=-1, keepdims=True) - 1
    # In units of the whole change over the window, as a fraction of the mean.
    time = np.arange(count, dtype=np.float64) / (count - 1) - 0.5
    change = dot(time, centred) / dot(time, time)
    is_line = is_constant(1 + centred - change[:, None] * time)
    small = coefficient(centred, [np.ones(count), time]).probability_within(DRIFT_SIZE)
    return change, np.where(is_line, np.abs(change) <= DRIFT_SIZE, small)


def _steadiness(small: float) -> Steadiness:
    """The name for a given probability that the drift is small."""
    if small >= STEADY_PROBABILITY:
        return "steady"
    return "drifting" if 1 - small >= DRIFTING_PROBABILITY else "unknown"


def decide(
    step_s: Sequence[float] | Floats,
    elapsed_s: float,
    config: MeasureConfig,
    *,
    taken: int | None = None,
) -> Decision:
    """Decide during a run whether it has measured enough.

    Stopping at the first narrow interval favours windows that happen to look calm. So only a few
    lengths of the window are checked (:data:`ASKED_EVERY`), and the answer must be the same without
    the last steps (:func:`are_precise`).

    Args:
        step_s: all finished steps, s, shape [n].
        elapsed_s: time since the first step finished, s.
        config: precision and limits.
        taken: how many steps the host has taken, at least n; None: n.
    """
    values = np.asarray(step_s, dtype=np.float64)
    first, interval = _known(values, config)
    asked = last_asked(len(values), config)
    reason: StopReason | None = None
    if asked and are_precise(values[None, :asked], config)[0]:
        reason = "precision"
    elif elapsed_s >= config.time_limit_s:
        reason = "time_limit"
    elif (len(values) if taken is None else taken) >= config.max_steps:
        reason = "max_steps"
    return Decision(reason=reason, first=first, interval=interval)


def _known(values: Floats, config: MeasureConfig) -> tuple[int, Interval | None]:
    """The first steady step, and the interval from there on as if it had just become precise."""
    first = first_steady(values, config.min_warmup_steps)
    if len(values) - first < 2:
        return first, None
    return first, main_interval(values[first:], "precision", config)


def last_asked(steps: int, config: MeasureConfig) -> int:
    """The largest number of steps, up to `steps`, after which a run may be precise; 0: none."""
    grown = steps - config.min_warmup_steps
    if grown < config.min_steps:
        return 0
    asked = config.min_steps
    while (more := math.ceil(asked * ASKED_EVERY)) <= grown:
        asked = more
    return config.min_warmup_steps + asked


def next_asked(steps: int, config: MeasureConfig) -> int:
    """The smallest number of steps, beyond `steps`, after which a run may be precise."""
    asked = last_asked(steps, config)
    grown = asked - config.min_warmup_steps
    return config.min_warmup_steps + (math.ceil(grown * ASKED_EVERY) if asked else config.min_steps)


def are_precise(step_s: Floats, config: MeasureConfig) -> Bools:
    """Whether runs have measured enough: their intervals are narrow, and their drift is not large.

    Intervals, from :func:`main_interval`, must be narrow both with and without the last sixth of
    the least number of steps.

    Args:
        step_s: of each run all steps, s, shape [d, n], n > config.min_warmup_steps.
        config: precision and limits.
    """
    late = max(1, config.min_steps // 6)
    precise = _are_narrow(step_s, config.min_steps - late, config)
    precise[precise] = _are_narrow(step_s[precise, :-late], config.min_steps - late, config)
    return precise


def _are_narrow(step_s: Floats, least: int, config: MeasureConfig) -> Bools:
    """Whether windows have `least` steps or more, narrow intervals, and no large drift."""
    narrow = np.zeros(len(step_s), dtype=np.bool_)
    count, floor = step_s.shape[-1], config.min_warmup_steps
    if count < floor + max(2, least) or not len(step_s):
        return narrow
    firsts, drawn_in = _cut(step_s, floor)
    # The half-width on the log scale, of which both ends are that far from the mean on average.
    share = math.asinh(config.rel_precision)
    for first in np.unique(firsts[count - firsts >= max(2, least)]):
        confidence = 1 - nominal_error("precision", count - first, config.min_steps)
        (those,) = np.nonzero(firsts == first)
        those = those[are_within(step_s[those, first:], share, confidence)]
        # The drift is asked for last: ranks wait for a look.
        if len(those) and count - first >= MIN_TESTED:
            small = _drift(drawn_in[those, first:])[1]
            those = those[1 - small < DRIFTING_PROBABILITY]
        narrow[those] = True
    return narrow


def main_interval(series: Floats, stopped_by: StopReason, config: MeasureConfig) -> Interval:
    """The 95 % interval of a main window's mean, allowing for how the window was chosen.

    Args:
        series: the window's steps, s, shape [n], n >= 1.
        stopped_by: what ended the window; the interval is wider if its precision did.
        config: its least number of steps is where a run can first end so.
    """
    error = nominal_error(stopped_by, len(series), config.min_steps)
    interval = mean_interval(series, 1 - error)
    return on_log_scale(interval) if len(series) > 1 else interval


def nominal_error(stopped_by: StopReason, count: int, least: int) -> float:
    """1 - the confidence with which a 95 % interval is computed, so that it is one.

    Args:
        stopped_by: what ended the window.
        count: its values.
        least: how many it needed to end because it was precise.
    """
    if stopped_by != "precision":
        return CHOSEN_ERROR
    return max(LEAST_ERROR, STOPPED_ERROR * math.sqrt(min(1.0, least / count)))


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
