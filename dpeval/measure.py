"""When the steady state begins, when to stop, how sure a mean is: pure functions of series.

The rules follow Hoefler & Belli 2015 ("Scientific Benchmarking of Parallel Computing Systems",
SC'15, rules 5-8: report variability, intervals that allow for dependence) and Georges et al.
2007 ("Statistically Rigorous Java Performance Evaluation", OOPSLA: steady state apart from
start-up, stop when the interval is narrow enough).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpeval.config import MeasureConfig
from dpeval.schema import Frozen

Floats = NDArray[np.float64]
StopReason = Literal["precision", "time_limit", "max_steps", "interrupted"]

RULE = "MSER on winsorised steps, then a test for a trend in the rest"
DRIFT_SIZE = 0.03
"""A trend that changes the step by less than this fraction over the window is called steady: a
smaller one is real on most machines and below what one would act upon."""
DRIFT_P = 1e-4
"""… and it must be this unlikely to be chance, so that of many clean runs none is called
drifting: the test is made anew every half second of a run."""
MIN_TESTED = 8
"""Fewer steps than this cannot show a drift."""


class Interval(Frozen):
    """A mean with its 95 % interval; the unit is the series'."""

    mean: float
    low: float
    high: float
    effective_samples: float
    """How many independent samples the autocorrelated series is worth."""

    @property
    def rel_half_width(self) -> float:
        """Half-width over mean."""
        return (self.high - self.low) / 2 / self.mean if self.mean else float("inf")


class Steady(Frozen):
    """Where the steady state begins."""

    first: int
    steady: bool
    drift: float = 0.0
    """Change along the fitted line over the window, as a fraction of the mean."""


class Decision(Frozen):
    """Whether to go on measuring."""

    reason: StopReason | None
    first: int
    interval: Interval | None


class Window(Frozen):
    """The main window: which steps were measured and how sure their mean is."""

    first: int
    """Index of the first measured step; the steps before it are warm-up."""
    steps: int
    """Number of measured steps."""
    steady: bool
    stopped_by: StopReason
    step_s: Interval
    """Mean step time of the slowest rank, s."""
    rule: str
    """How the beginning of the steady state was found."""
    drift: float = 0.0
    """Change along the fitted line over the window, as a fraction of the mean."""


def mean_interval(series: Sequence[float] | Floats, confidence: float = 0.95) -> Interval:
    """The mean of an autocorrelated series with its confidence interval.

    The series is taken as AR(1): with the lag-1 autocorrelation r, corrected for its bias of
    -(1+4r)/n (Kendall 1954, Biometrika 41) and raised by half its standard error, since an r
    that is too small does more harm than one too large, n steps are worth n(1-r)/(1+r)
    independent ones (Zięba & Ramza 2011, Metrol. Meas. Syst. 18(4)). The variance is corrected
    likewise and the quantile is Student's with that many samples less one. Negative r counts
    as 0. Over simulated series of 50 steps or more it covers the truth in 95-97 %; of 20 steps,
    in 92-97 %.

    Args:
        series: shape [n], n >= 1, any unit. One value has an infinite interval, which is told
            as ±100 % because a record holds no infinities.
    """
    # Late: only this function needs it, and it takes a tenth of a second to import.
    from scipy.special import stdtrit

    values = np.asarray(series, dtype=np.float64)
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Interval(mean=mean, low=0.0, high=2 * mean, effective_samples=1.0)
    correlation = _lag_one(values)
    effective = max(1.5, count * (1 - correlation) / (1 + correlation))
    variance = float(values.var()) / max(1e-9, 1 - 1 / effective)
    quantile = float(stdtrit(max(1.0, effective - 1), (1 + confidence) / 2))
    half = quantile * float(np.sqrt(variance / effective))
    return Interval(mean=mean, low=mean - half, high=mean + half, effective_samples=effective)


def naive_interval(series: Sequence[float] | Floats) -> Interval:
    """The interval that takes steps as independent, as most studies do; for comparison only."""
    values = np.asarray(series, dtype=np.float64)
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return Interval(mean=mean, low=mean - half, high=mean + half, effective_samples=len(values))


def _lag_one(values: Floats) -> float:
    """Lag-1 autocorrelation, corrected for bias and raised by half its error, in [0, 0.99]."""
    centred = values - values.mean()
    total = float(centred @ centred)
    # Rounding alone makes a constant series seem correlated.
    if total <= 1e-24 * max(1.0, float(values @ values)):
        return 0.0
    raw = float(centred[1:] @ centred[:-1]) / total
    corrected = raw + (1 + 4 * raw) / len(values)
    error = float(np.sqrt(max(0.0, 1 - corrected**2) / len(values)))
    return float(np.clip(corrected + error / 2, 0.0, 0.99))


def steady_start(step_s: Sequence[float] | Floats, floor: int) -> Steady:
    """Find the first step of the steady state.

    MSER (White 1997, "An effective truncation heuristic for bias reduction in simulation
    output", Simulation 69(6)): the truncation d, between `floor` and half of the series, whose
    remainder has the smallest squared standard error var(x[d:])/(n-d). It balances the bias of
    a cold step kept against the precision lost by a warm step thrown away and needs no
    threshold. Values are first drawn in to median ± 5 robust deviations of the second half, so
    one hiccup late in the run does not count as a change of state.

    Then a line is fitted through the rest; a slope that is both larger than :data:`DRIFT_SIZE`
    over the window and significant (:data:`DRIFT_P`, residuals allowed to be autocorrelated)
    means that there is no steady state.

    Args:
        step_s: all steps from the first, s, shape [n].
        floor: never call fewer steps warm-up.
    """
    values = np.asarray(step_s, dtype=np.float64)
    count = len(values)
    if count <= floor + 1:
        return Steady(first=min(floor, max(0, count - 1)), steady=False)
    drawn_in = _winsorised(values)
    last = max(floor, count // 2)
    sizes = count - np.arange(count)
    sums = np.cumsum(drawn_in[::-1])[::-1]
    squares = np.cumsum((drawn_in**2)[::-1])[::-1]
    error = (squares / sizes - (sums / sizes) ** 2) / sizes
    first = floor + int(np.argmin(error[floor : last + 1]))
    drift, is_real = _drift(drawn_in[first:])
    return Steady(first=first, steady=not is_real, drift=drift)


def _winsorised(values: Floats) -> Floats:
    late = values[len(values) // 2 :]
    centre = float(np.median(late))
    spread = 1.4826 * float(np.median(np.abs(late - centre)))
    # A series without any spread must not have its cold start drawn in to nothing.
    reach = 5 * max(spread, 0.01 * centre)
    drawn: Floats = np.clip(values, centre - reach, centre + reach)
    return drawn


def _drift(values: Floats) -> tuple[float, bool]:
    """Change along the fitted line relative to the mean, and whether it is real and large."""
    from scipy.special import stdtrit

    count = len(values)
    if count < MIN_TESTED:
        return 0.0, False
    time = np.arange(count) - (count - 1) / 2
    slope = float(time @ values) / float(time @ time)
    residual = values - values.mean() - slope * time
    correlation = _lag_one(residual)
    effective = max(3.5, count * (1 - correlation) / (1 + correlation))
    variance = float(residual @ residual) / count * effective / (effective - 2)
    error = float(np.sqrt(variance / (time @ time) * count / effective))
    change = slope * (count - 1) / float(values.mean())
    limit = float(stdtrit(effective - 2, 1 - DRIFT_P / 2)) * error
    return change, abs(change) > DRIFT_SIZE and abs(slope) > limit


def decide(step_s: Sequence[float] | Floats, elapsed_s: float, config: MeasureConfig) -> Decision:
    """Decide, while a run goes on, whether it has measured enough.

    Stopping at the first narrow interval favours windows that happen to look calm. So the
    interval must be narrow with the last sixth of ``measure.min_steps`` and without it, and
    there is that least number of steps: benchmarks/stopping.py prints what is left of the
    effect (with measure=standard, intervals cover in about 90 % instead of 95 %).
    """
    values = np.asarray(step_s, dtype=np.float64)
    begin, interval, is_precise = _judge(values, config)
    reason: StopReason | None = None
    if is_precise and _judge(values[: -max(1, config.min_steps // 6)], config)[2]:
        reason = "precision"
    elif elapsed_s >= config.time_limit_s:
        reason = "time_limit"
    elif len(values) >= config.max_steps:
        reason = "max_steps"
    return Decision(reason=reason, first=begin.first, interval=interval)


def _judge(values: Floats, config: MeasureConfig) -> tuple[Steady, Interval | None, bool]:
    """The steady state, its interval, and whether that is as narrow as asked."""
    begin = steady_start(values, config.min_warmup_steps)
    measured = len(values) - begin.first
    interval = mean_interval(values[begin.first :]) if measured >= 2 else None
    # The steps without the last sixth may be that many fewer than the least.
    enough = measured >= config.min_steps - max(1, config.min_steps // 6)
    is_precise = interval is not None and interval.rel_half_width <= config.rel_precision
    return begin, interval, begin.steady and enough and is_precise


def window(
    step_s: Sequence[float] | Floats, stopped_by: StopReason, config: MeasureConfig
) -> Window:
    """The main window of a run that has ended, from the slowest rank's steps (s)."""
    values = np.asarray(step_s, dtype=np.float64)
    begin = steady_start(values, config.min_warmup_steps)
    return Window(
        first=begin.first,
        steps=len(values) - begin.first,
        steady=begin.steady,
        stopped_by=stopped_by,
        step_s=mean_interval(values[begin.first :]),
        rule=RULE,
        drift=begin.drift,
    )


class Balance(Frozen):
    """How evenly ranks are loaded."""

    value: float
    """Mean over max of the ranks' compute time: POP's load balance efficiency, in (0, 1]."""
    slowest_rank: int
    compute_s: list[float]
    """Median compute time of a step, per rank."""


def load_balance(compute_s: Sequence[Floats]) -> Balance:
    """Load balance of the ranks' compute times (POP efficiency model, https://pop-coe.eu).

    Args:
        compute_s: per rank, the time of each step in which it worked on its own, s.
    """
    medians = [float(np.median(series)) for series in compute_s]
    worst = max(medians)
    return Balance(
        value=float(np.mean(medians)) / worst if worst > 0 else 1.0,
        slowest_rank=int(np.argmax(medians)),
        compute_s=medians,
    )


class Fault(Frozen):
    """Something found wrong in the step series, named."""

    code: str
    """straggler, input_bound, jitter, cold_start or drift."""
    text: str
    ranks: list[int] = []


STRAGGLER_SIZE = 0.10
"""A rank this much slower than the median of the others holds everybody up for as long."""
INPUT_SHARE = 0.05
JITTER_SIZE = 0.10
"""Robust coefficient of variation of the compute time; a quiet machine has 1 to 3 %."""
COLD_SIZE = 0.25
"""Steps beyond the first that are this much slower than the steady state are a cold start."""
COLD_STEPS = 2


def faults(
    begin: Window | Steady,
    step_s: Sequence[Floats],
    compute_s: Sequence[Floats],
    data_s: Sequence[Floats],
) -> list[Fault]:
    """Name what is wrong with a run: each finding is large enough to matter and not chance.

    Args:
        begin: where the steady state begins.
        step_s, compute_s, data_s: per rank, for all steps from the first: the whole step, the
            time in which the rank worked on its own (without waiting for data or others), and
            the time it waited for data, s.
    """
    first = begin.first
    found = _straggler([series[first:] for series in compute_s])
    found += _input_bound([series[first:] for series in data_s], [s[first:] for s in step_s])
    found += _jitter([series[first:] for series in compute_s])
    found += _cold_start(step_s, first)
    if not begin.steady and abs(begin.drift) > DRIFT_SIZE:
        change = "slower" if begin.drift > 0 else "faster"
        text = f"steps became {abs(begin.drift):.0%} {change} over the measured window"
        found.append(Fault(code="drift", text=text))
    return found


def _straggler(compute_s: Sequence[Floats]) -> list[Fault]:
    """A rank whose typical compute time stands out from the others by more than their spread."""
    if len(compute_s) < 2 or len(compute_s[0]) < 3:
        return []
    medians = np.array([float(np.median(series)) for series in compute_s])
    worst = int(medians.argmax())
    others = np.delete(medians, worst)
    typical = float(np.median(others))
    spread = float(others.max() - others.min()) if len(others) > 1 else 0.0
    excess = medians[worst] - typical
    own_noise = 1.4826 * float(np.median(np.abs(compute_s[worst] - medians[worst])))
    noise = max(spread, own_noise / float(np.sqrt(len(compute_s[worst]))))
    if excess <= STRAGGLER_SIZE * typical or excess <= 2 * noise:
        return []
    text = f"rank {worst} computes {excess / typical:.0%} longer than the others, who wait for it"
    return [Fault(code="straggler", text=text, ranks=[worst])]


def _input_bound(data_s: Sequence[Floats], step_s: Sequence[Floats]) -> list[Fault]:
    shares = [
        float(data.sum() / step.sum())
        for data, step in zip(data_s, step_s, strict=True)
        if step.sum()
    ]
    if not shares or max(shares) <= INPUT_SHARE:
        return []
    ranks = [rank for rank, share in enumerate(shares) if share > INPUT_SHARE]
    text = f"{max(shares):.0%} of the step was spent waiting for data: the run is input-bound"
    return [Fault(code="input_bound", text=text, ranks=ranks)]


def _jitter(compute_s: Sequence[Floats]) -> list[Fault]:
    """Steps of equal work that take unequal time, judged without their few outliers."""
    ranks = []
    worst = 0.0
    for rank, series in enumerate(compute_s):
        if len(series) < MIN_TESTED:
            continue
        median = float(np.median(series))
        # Differences of neighbours, so that a drift is not called jitter.
        spread = 1.4826 * float(np.median(np.abs(np.diff(series)))) / float(np.sqrt(2))
        if median > 0 and spread / median > JITTER_SIZE:
            ranks.append(rank)
            worst = max(worst, spread / median)
    if not ranks:
        return []
    text = f"compute time varies by {worst:.0%} from step to step (robust standard deviation)"
    return [Fault(code="jitter", text=text, ranks=ranks)]


def _cold_start(step_s: Sequence[Floats], first: int) -> list[Fault]:
    """Slow steps at the beginning, beyond the first, which is always slow."""
    series = np.max(list(step_s), axis=0)
    if len(series) - first < 3:
        return []
    typical = float(np.median(series[first:]))
    slow = 1
    while slow < first and series[slow] > (1 + COLD_SIZE) * typical:
        slow += 1
    if slow - 1 < COLD_STEPS:
        return []
    factor = float(np.mean(series[1:slow])) / typical
    text = f"cold start: the first {slow} steps were {factor:.1f} times as slow; they are left out"
    return [Fault(code="cold_start", text=text)]
