"""Diagnostics: problems that a run's step series show.

Every rule requires both a practical size, because real machines are noisier than any
simulation, and significance, so that short or noisy runs raise no false alarm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpeval.record.codes import DiagnosticCode
from dpeval.record.measurement import Window
from dpeval.stats.intervals import dot, mean_interval, robust_deviation
from dpeval.stats.steady_state import MIN_TESTED, SteadyState, winsorised
from dpeval.util.arrays import Floats
from dpeval.util.display.ranges import percent
from dpeval.util.frozen import Frozen

STRAGGLER_SIZE = 0.10
"""A rank this much slower than the median of the others delays all of them; SMT siblings, turbo
clocks and the core that serves interrupts cause up to half of this."""
STRAGGLER_CONFIDENCE = 0.99
STRAGGLER_SPREADS = 3.0
"""… and it exceeds the others' median by this many of their robust deviations."""
INPUT_SHARE = 0.05
"""More than this share of the step spent waiting for data is worth a faster loader."""
JITTER_SIZE = 0.10
"""Robust coefficient of variation of the compute time; a quiet machine has 1 to 3 %."""
TAIL_FACTOR = 1.5
"""A step that took this many times the median is an outlier, …"""
TAIL_SHARE = 0.05
"""… and outliers whose excess is this share of the window's time shift its mean noticeably, …"""
TAIL_STEPS = 3
"""… unless they are so few that they may be a single event."""
COLD_SIZE = 0.25
"""Steps beyond the first that are this much slower than the steady state are a cold start, …"""
COLD_SPREADS = 4.0
"""… if that is this many robust deviations of the steady state, …"""
COLD_STEPS = 2
"""… and there are this many of them: the first step is always slow, …"""
COLD_EXCESS = 1.0
"""… and together they cost this many steady steps: in steps of 10 ms, even a few milliseconds of
page faults and new buckets show."""


class Diagnostic(Frozen):
    """One problem that the step series show."""

    code: DiagnosticCode
    text: str
    ranks: list[int] = []


def diagnose(
    begin: Window | SteadyState,
    step_s: Sequence[Floats],
    compute_s: Sequence[Floats],
    data_s: Sequence[Floats],
    batches: Sequence[int] | None = None,
) -> list[Diagnostic]:
    """Diagnose a run from its step series.

    Args:
        begin: where the steady state begins.
        step_s: per rank, the time of every step from the first, s, shape [steps].
        compute_s: likewise, the time the rank computed instead of waiting for data or other ranks.
        data_s: likewise, the time the rank waited for data.
        batches: per rank, images per step; a rank with a larger share may take longer.
    """
    first = begin.first
    compute = [series[first:] for series in compute_s]
    found = _stragglers(compute, list(batches or [1] * len(compute)))
    found += _input_bound([series[first:] for series in data_s], [s[first:] for s in step_s])
    found += _jitter(compute)
    found += _cold_start(step_s, first)
    if begin.steadiness == "drifting":
        change = "slower" if begin.drift > 0 else "faster"
        text = f"steps became {percent(abs(begin.drift))} {change} during the measured window"
        found.append(Diagnostic(code="drift", text=text))
    return found


def _stragglers(compute_s: Sequence[Floats], batches: Sequence[int]) -> list[Diagnostic]:
    """Ranks that compute longer than the others, both by step and by image."""
    if len(compute_s) < 2 or len(compute_s[0]) < MIN_TESTED // 2:
        return []
    by_step = np.stack([winsorised(series) for series in compute_s])
    by_image = by_step / np.array(batches)[:, None]
    return [
        Diagnostic(
            code="straggler",
            text=(
                f"rank {rank} computes {percent(excess)} longer than the others, which wait for it"
            ),
            ranks=[rank],
        )
        for rank in range(len(by_step))
        if (excess := min(_excess(by_step, rank), _excess(by_image, rank))) > STRAGGLER_SIZE
    ]


def _excess(series: Floats, rank: int) -> float:
    """How much slower `rank` typically is than the others, as a fraction; 0 if that may be chance.

    Compared step by step, so that whatever slows all ranks at once does not count.

    Args:
        series: times, shape [ranks, steps].
    """
    others = np.delete(series, rank, axis=0)
    reference = np.median(others, axis=0)
    if reference.min() <= 0:
        return 0.0
    excess = series[rank] / reference - 1
    medians = np.median(others, axis=1)
    spread = robust_deviation(medians) / float(np.median(medians))
    size = float(np.median(excess))
    real = mean_interval(excess, STRAGGLER_CONFIDENCE).low > 0 and size > STRAGGLER_SPREADS * spread
    return size if real else 0.0


def _input_bound(data_s: Sequence[Floats], step_s: Sequence[Floats]) -> list[Diagnostic]:
    """Ranks that wait for data, except for the longest wait: one stall is not a slow loader."""
    shares = []
    for data, step in zip(data_s, step_s, strict=True):
        kept = np.arange(len(data)) != np.argmax(data) if len(data) > 1 else slice(0)
        total_s = float(step[kept].sum())
        shares.append(float(data[kept].sum()) / total_s if total_s > 0 else 0.0)
    ranks = [rank for rank, share in enumerate(shares) if share > INPUT_SHARE]
    if not ranks:
        return []
    text = f"{percent(max(shares))} of the step was spent waiting for data: the run is input-bound"
    return [Diagnostic(code="input_bound", text=text, ranks=ranks)]


def _jitter(compute_s: Sequence[Floats]) -> list[Diagnostic]:
    """Equal work in unequal time: throughout, or in a heavy tail of outliers."""
    spreads = [_variation(series) for series in compute_s]
    ranks = [rank for rank, spread in enumerate(spreads) if spread > JITTER_SIZE]
    if ranks:
        text = (
            f"compute time varies by {percent(max(spreads))} from step to step "
            "(robust standard deviation)"
        )
        return [Diagnostic(code="jitter", text=text, ranks=ranks)]
    tails = [_tail(series) for series in compute_s]
    ranks = [rank for rank, (count, _) in enumerate(tails) if count]
    if not ranks:
        return []
    count, share = max(tails, key=lambda tail: tail[1])
    text = (
        f"{count} of {len(compute_s[0])} steps computed more than {TAIL_FACTOR:g} times as long "
        f"as the median step, which cost {percent(share)} of the window"
    )
    return [Diagnostic(code="jitter", text=text, ranks=ranks)]


def _variation(series: Floats) -> float:
    """Robust standard deviation over median, around a fitted line: drift is not jitter.

    Not from differences between neighbours: while another process runs, several steps in a row are
    slow, and neighbours differ by only a third of what steps do.
    """
    median = float(np.median(series))
    if len(series) < MIN_TESTED or median <= 0:
        return 0.0
    clipped = winsorised(series)
    time = np.arange(len(series), dtype=np.float64) - (len(series) - 1) / 2
    residual: Floats = clipped - dot(time, clipped) / dot(time, time) * time
    return robust_deviation(residual) / median


def _tail(series: Floats) -> tuple[int, float]:
    """Number of outliers and the share of time that they cost; zeros if negligible."""
    total_s = float(series.sum())
    if total_s <= 0:
        return 0, 0.0
    median = float(np.median(series))
    late = series[series > TAIL_FACTOR * median]
    share = float((late - median).sum()) / total_s
    return (len(late), share) if len(late) >= TAIL_STEPS and share > TAIL_SHARE else (0, 0.0)


def _cold_start(step_s: Sequence[Floats], first: int) -> list[Diagnostic]:
    """Slow steps at the beginning, beyond the first, which is always slow."""
    series = np.max(list(step_s), axis=0)
    steady = series[first:]
    if len(steady) < 3:
        return []
    typical = float(np.median(steady))
    limit = typical + max(COLD_SIZE * typical, COLD_SPREADS * robust_deviation(steady))
    slow = 1
    while slow < first and series[slow] > limit:
        slow += 1
    excess = float((series[1:slow] / typical - 1).sum())
    if slow - 1 < COLD_STEPS or excess < COLD_EXCESS:
        return []
    factor = float(np.mean(series[1:slow])) / typical
    text = f"cold start: the first {slow} steps took {factor:.1f} times as long and are excluded"
    return [Diagnostic(code="cold_start", text=text)]
