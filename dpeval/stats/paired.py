"""Ratios of runs that took turns: whatever slows both in a round cancels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dpeval.record.codes import StopReason
from dpeval.record.measurement import Interval
from dpeval.record.plan import Plan
from dpeval.record.schema import Record
from dpeval.stats.best import Standing, compared_with_best
from dpeval.stats.comparison import quantile
from dpeval.stats.intervals import MOST_LOG_HALF, mean_interval, on_log_scale, ratio_interval
from dpeval.stats.steady_state import CHOSEN_ERROR, nominal_error
from dpeval.util.arrays import Floats

MIN_ROUNDS = 4
"""Fewer rounds in common give no interval."""


def by_round(
    step_s: Sequence[float] | Floats, rounds: Sequence[int], first: int
) -> dict[int, float]:
    """Mean step of every round that lies wholly in the steady state, s.

    Args:
        step_s: all steps, s, shape [n].
        rounds: the round of each, ascending, shape [at least n].
        first: the first step of the steady state.
    """
    values = np.asarray(step_s, dtype=np.float64)
    if first >= len(values):
        return {}
    numbers = np.asarray(rounds[: len(values)])
    if first > 0 and numbers[first - 1] == numbers[first]:
        first = int(np.searchsorted(numbers, numbers[first], side="right"))
    if first >= len(values):
        return {}
    found, begins = np.unique(numbers[first:], return_index=True)
    means = np.add.reduceat(values[first:], begins) / np.diff([*begins, len(values) - first])
    return {int(number): float(mean) for number, mean in zip(found, means, strict=True)}


def rounds_of(record: Record) -> dict[int, float]:
    """Mean step of the slowest rank in every round of a run that took turns, s.

    Empty if it took none, or has no window.
    """
    if record.sitting is None or record.window is None or record.throughput is None:
        return {}
    slowest = record.ranks[record.throughput.slowest_rank]
    return by_round(slowest.step_s, record.sitting.rounds, record.window.first)


def ratio(
    over: Mapping[int, float], under: Mapping[int, float], stopped_by: StopReason = "time_limit"
) -> Interval | None:
    """The ratio of two mean steps, over / under, from the rounds that both have.

    It is the ratio of the two means, so it agrees with the runs' throughput. Its error comes from
    the differences within rounds (:func:`~dpeval.stats.intervals.ratio_interval`), including the
    remaining autocorrelation.

    Args:
        over: mean step per round, s.
        under: the same for the other run.
        stopped_by: what ended the rounds; the interval is wider if its precision did.

    Returns:
        The ratio and its 95 % interval, symmetric in logarithms; None with fewer than
        :data:`MIN_ROUNDS` rounds in common.
    """
    shared = sorted(over.keys() & under.keys())
    if len(shared) < MIN_ROUNDS:
        return None
    above = np.array([over[number] for number in shared])
    below = np.array([under[number] for number in shared])
    value = float(above.mean() / below.mean())
    error = nominal_error(stopped_by, len(shared), MIN_ROUNDS)
    found = on_log_scale(ratio_interval(above, below, 1 - error))
    return Interval(
        mean=value,
        low=value * found.low,
        high=value * found.high,
        effective_samples=found.effective_samples,
    )


def of_few(over: Mapping[int, float], under: Mapping[int, float]) -> Interval | None:
    """The ratio of two mean steps, over / under, from few rounds, which count as independent.

    Ablation blocks, for example, are too few to show the remaining autocorrelation. Student's t
    over the logarithms.

    Args:
        over: mean step per round, s.
        under: the same for other turns.

    Returns:
        None with fewer than two rounds in common.
    """
    shared = sorted(over.keys() & under.keys())
    if len(shared) < 2:
        return None
    above = np.array([over[number] for number in shared])
    below = np.array([under[number] for number in shared])
    logs = np.log(above / below)
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    half = min(float(quantile(0.975, len(logs) - 1)) * error, MOST_LOG_HALF)
    value = float(above.mean() / below.mean())
    return Interval(
        mean=value,
        low=value * math.exp(-half),
        high=value * math.exp(half),
        effective_samples=len(logs),
    )


def standing(rates: Sequence[Mapping[int, float]]) -> Standing | None:
    """How far each run is from the fastest, from the rounds that all runs share.

    The mean of each round is removed from the logarithms of the rates; what remains of each run,
    with its autocorrelation, gives the error of its mean. The comparison is the one that the
    analysis makes (:func:`~dpeval.stats.best.compared_with_best`).

    Args:
        rates: throughput per round of each run, at least two.

    Returns:
        None with fewer than :data:`MIN_ROUNDS` rounds in common.
    """
    shared = sorted(set.intersection(*(set(one) for one in rates)))
    if len(shared) < MIN_ROUNDS:
        return None
    logs = np.log([[one[number] for number in shared] for one in rates])
    own = logs - logs.mean(axis=0)
    means = own.mean(axis=1)
    # Removing the mean of k runs leaves each with (k-1)/k of its variance.
    lost = np.sqrt(len(rates) / (len(rates) - 1))
    halves = [mean_interval(1 + row - row.mean(), 1 - CHOSEN_ERROR).rel_half_width for row in own]
    errors = lost * np.array(halves) / float(quantile(0.975, math.inf))
    return compared_with_best(means, errors, math.inf)


def _busy_by_round(record: Record) -> dict[int, float]:
    """Mean step of a single rank without its waits for data, per round, s."""
    if record.sitting is None or record.window is None or len(record.ranks) != 1:
        return {}
    (rank,) = record.ranks
    busy_s = np.array(rank.step_s) - np.array(rank.phase_s["data"])
    return by_round(busy_s, record.sitting.rounds, record.window.first)


def _alone_by_round(record: Record) -> dict[int, float]:
    """The same of the first rank alone."""
    blocks = record.ablation.blocks if record.ablation is not None else []
    return {
        block.round: float(np.mean(np.array(block.step_s[0]) - np.array(block.data_s[0])))
        for block in blocks
        if block.kind == "alone" and block.round is not None
    }


def samples_of(run: Record, plan: Plan) -> float:
    """Samples of all ranks in one step of `run`, which was made by `plan`."""
    return run.samples_per_step or plan.global_batch_size


def compared(run: Record, base: Record) -> Record:
    """`run` with its throughput over that of `base`, which took turns with it.

    Args:
        run: a record with a sitting.
        base: the record of the run on the fewest devices that is configured like it.
    """
    if run.sitting is None or run.plan is None or base.plan is None:
        return run
    ended_by: StopReason = "time_limit"
    if run.window is not None and run.window.stopped_by in ("ratios", "best"):
        ended_by = "precision"
    found = ratio(rounds_of(base), rounds_of(run), ended_by)
    # More under weak scaling.
    samples = samples_of(run, run.plan) / samples_of(base, base.plan)
    strategy = base.config.get("strategy")
    sitting = run.sitting.model_copy(
        update={
            "alone": of_few(_busy_by_round(base), _alone_by_round(run)),
            "base_devices": base.plan.world_size,
            "base_strategy": str(strategy.get("name")) if isinstance(strategy, dict) else "",
            "speedup": None if found is None else Interval(
                mean=found.mean * samples,
                low=found.low * samples,
                high=found.high * samples,
                effective_samples=found.effective_samples,
            ),
        }
    )  # fmt: skip
    return run.model_copy(update={"sitting": sitting})
