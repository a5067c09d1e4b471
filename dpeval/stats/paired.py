"""Ratios of runs that took turns: whatever slows both in a round cancels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from dpeval.record.codes import StopReason
from dpeval.record.measurement import Interval
from dpeval.record.plan import Plan
from dpeval.record.schema import Record
from dpeval.stats.best import Differences
from dpeval.stats.comparison import LEAST_FREEDOM, quantile
from dpeval.stats.intervals import MOST_LOG_HALF, means, on_log_scale, ratio_interval
from dpeval.stats.steady_state import CHOSEN_ERROR
from dpeval.util.arrays import Floats

MIN_ROUNDS = 4
"""Fewer rounds in common give no interval."""
STOPPED_ERROR = 0.03
"""Nominal error (1 - confidence) of the 95 % interval of a ratio whose precision ended the rounds:
it may only have looked calm. Found by simulation (``benchmarks/coverage.py --only rounds``)."""


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
    if record.sitting is None or record.window is None or record.slowest is None:
        return {}
    return by_round(record.slowest.step_s, record.sitting.rounds, record.window.first)


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
    found = on_log_scale(ratio_interval(above, below, 1 - _nominal_error(stopped_by)))
    return Interval(
        mean=value,
        low=value * found.low,
        high=value * found.high,
        effective_samples=found.effective_samples,
    )


def _nominal_error(stopped_by: StopReason) -> float:
    """1 - the confidence with which the 95 % interval of a ratio is computed."""
    return STOPPED_ERROR if stopped_by == "precision" else CHOSEN_ERROR


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


@dataclass(frozen=True)
class Turns:
    """A run in the rounds of its sitting."""

    sitting: str
    """Runs of the same sitting took turns with each other."""
    samples: float
    """Of all ranks in one step."""
    step_s: Mapping[int, float]
    """Mean step of every round that is wholly in the steady state, s."""
    stopped_by: StopReason
    """What ended the run's rounds."""
    energy_j: Mapping[int, float] = field(default_factory=dict[int, float])
    """Energy per step in rounds where it is known, J."""

    @property
    def in_energy(self) -> Turns:
        """The same with energy in place of time: its throughput is samples per joule."""
        return replace(self, step_s=self.energy_j)


@dataclass(frozen=True)
class Contrast:
    """The logarithm of one configuration's throughput over that of another."""

    value: float
    error: float
    """Its standard error: the 95 % interval's half over Student's quantile."""
    freedom: float
    """Degrees of freedom; infinite: the error is known."""
    sittings: int
    """How many it rests on."""


def share_rounds(one: Sequence[Turns], other: Sequence[Turns]) -> bool:
    """Whether some run of the one took turns with some run of the other for long enough."""
    return any(len(a.step_s.keys() & b.step_s.keys()) >= MIN_ROUNDS for a, b in _pairs(one, other))


def contrast(over: Sequence[Turns], under: Sequence[Turns]) -> Contrast | None:
    """How much higher one configuration's throughput is, from the sittings that both took part in.

    One sitting has the interval of its rounds (:func:`ratio`). Several have that of the mean of the
    logarithms: what differs between sittings counts where it is more than rounds explain, with
    Student's t from :data:`~dpeval.stats.comparison.LEAST_FREEDOM` degrees of freedom on. Fewer do
    not show it, so their mean counts as known no better than one of them: with the error of a mean
    of three, 78 % of intervals would cover a ratio that strays by 2 % between sittings
    (``benchmarks/coverage.py --only gains``).

    Args:
        over: runs of one configuration, each of a sitting of its own.
        under: runs of another.

    Returns:
        None if no sitting has :data:`MIN_ROUNDS` rounds of both.
    """
    found = [one for pair in _pairs(over, under) if (one := _of_pair(*pair)) is not None]
    if not found:
        return None
    logs = np.array([math.log(one.mean) for one in found])
    halves = np.array([math.log(one.high / one.low) / 2 for one in found])
    count, normal = len(found), float(quantile(0.975, math.inf))
    typical = float(np.sqrt((halves**2).mean()))
    within = typical / math.sqrt(count)
    if count > LEAST_FREEDOM:
        between = float(logs.std(ddof=1)) / math.sqrt(count)
        if float(quantile(0.975, count - 1)) * between > within:
            return Contrast(float(logs.mean()), between, count - 1, count)
    else:
        within = typical
    return Contrast(float(logs.mean()), within / normal, math.inf, count)


def _pairs(one: Sequence[Turns], other: Sequence[Turns]) -> list[tuple[Turns, Turns]]:
    by_sitting = {turns.sitting: turns for turns in other}
    return [(turns, by_sitting[turns.sitting]) for turns in one if turns.sitting in by_sitting]


def _of_pair(over: Turns, under: Turns) -> Interval | None:
    """Throughput of the one over that of the other."""
    found = ratio(under.step_s, over.step_s, ended_by(over.stopped_by, under.stopped_by))
    return None if found is None else scaled(found, over.samples / under.samples)


def ended_by(*reasons: StopReason) -> StopReason:
    """What ended rounds that several runs share, as far as it matters to their ratio.

    Where the precision of any ratio did, it may have been one that only looked calm.
    """
    is_chosen = any(reason in ("ratios", "best") for reason in reasons)
    return "precision" if is_chosen else "time_limit"


def scaled(interval: Interval, factor: float) -> Interval:
    """`interval` times a positive number that is known exactly."""
    ends = {name: getattr(interval, name) * factor for name in ("mean", "low", "high")}
    return interval.model_copy(update=ends)


def differences(runs: Sequence[Turns]) -> Differences | None:
    """Log throughput of every run less that of every other, from the rounds that all have.

    The same as :func:`contrast` of each two of them, at once.

    Args:
        runs: of one sitting, still measured.

    Returns:
        None with fewer than :data:`MIN_ROUNDS` rounds in common.
    """
    shared = sorted(set.intersection(*(set(one.step_s) for one in runs)))
    if len(shared) < MIN_ROUNDS:
        return None
    step_s = np.array([[one.step_s[number] for number in shared] for one in runs])
    relative = step_s / step_s.mean(axis=1, keepdims=True)
    logs = np.log([one.samples for one in runs]) - np.log(step_s.mean(axis=1))
    value, error = np.subtract.outer(logs, logs), np.zeros((len(runs), len(runs)))
    places = tuple(np.array(list(combinations(range(len(runs)), 2))).T)
    found = means(1.0 + relative[places[0]] - relative[places[1]], 1 - STOPPED_ERROR)
    error[places] = np.minimum(found.half / found.mean, MOST_LOG_HALF)
    error = (error + error.T) / float(quantile(0.975, math.inf))
    return Differences(value, error, np.full_like(error, math.inf))


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
    windows = [window for window in (run.window, base.window) if window is not None]
    reason = ended_by(*(window.stopped_by for window in windows))
    found = ratio(rounds_of(base), rounds_of(run), reason)
    # More under weak scaling.
    samples = samples_of(run, run.plan) / samples_of(base, base.plan)
    strategy = base.config.get("strategy")
    sitting = run.sitting.model_copy(
        update={
            "alone": of_few(_busy_by_round(base), _alone_by_round(run)),
            "base_devices": base.plan.world_size,
            "base_strategy": str(strategy.get("name")) if isinstance(strategy, dict) else "",
            "speedup": None if found is None else scaled(found, samples),
        }
    )
    return run.model_copy(update={"sitting": sitting})
