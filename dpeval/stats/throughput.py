"""Throughput and load balance of a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpeval.record.measurement import Balance, Interval
from dpeval.record.schema import Throughput
from dpeval.stats.steady_state import slowest_rank
from dpeval.util.arrays import Floats


def load_balance(compute_s: Sequence[Floats]) -> Balance:
    """Load balance of the ranks' compute times (POP efficiency model, https://pop-coe.eu).

    From totals over the window, as POP defines it: medians would not see a rank that is slow in
    every fifth step.

    Args:
        compute_s: per rank, the time of each step in which it computed, waiting neither for data
            nor for others, s, shape [steps].
    """
    means = [float(np.mean(series)) for series in compute_s]
    worst = max(means)
    return Balance(
        value=float(np.mean(means)) / worst if worst > 0 else 1.0,
        slowest_rank=int(np.argmax(means)),
        compute_s=means,
    )


def throughput(samples_per_step: float, step_s: Sequence[Floats], interval: Interval) -> Throughput:
    """Samples of all ranks over the time of the slowest rank, samples/s.

    The interval is the reciprocal of that of the slowest rank's mean step.

    Args:
        samples_per_step: samples that all ranks together process in a step.
        step_s: per rank, the step times of the window, s.
        interval: of the slowest rank's mean step, s: the window's.
    """
    slowest = slowest_rank(step_s)
    # A single step has no interval; its nominal one reaches down to 0.
    low_s = interval.low if interval.low > 0 else interval.mean / 2
    return Throughput(
        img_per_s=samples_per_step / interval.mean,
        low=samples_per_step / interval.high,
        high=samples_per_step / low_s,
        median_img_per_s=samples_per_step / float(np.median(step_s[slowest])),
        slowest_rank=slowest,
    )
