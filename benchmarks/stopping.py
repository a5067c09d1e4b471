"""What the stopping rule saves over fixed lengths, and what its intervals are worth.

    python benchmarks/stopping.py [metrics.json …]

First, how often intervals cover the truth where steps depend on the steps before them. Then
series with a cold start, autocorrelation and lognormal noise are simulated from a known mean
step; with records given, their steady steps are resampled in blocks instead (the mean of all of
them is then the truth). For each way to measure: steps needed, error, and how often its own
interval covers the truth. An epoch is that of Imagenette at batch 32: 295 steps.

A machine that itself wanders by a few per cent within minutes is simulated, too: one run cannot
know that, however long its interval says it need not go on; short repetitions can.

A record is also replayed as it came: where the rule would have stopped, against all its steps, and
how fast the machine itself was in either; and repetitions are replayed together.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpeval import record
from dpeval.analysis.names import configuration
from dpeval.analysis.pool import student
from dpeval.cli import compose
from dpeval.config import MeasureConfig
from dpeval.measure import (
    Decision,
    Interval,
    decide,
    mean_interval,
    naive_interval,
    steady_start,
)

Series = np.ndarray[Any, np.dtype[np.float64]]
EPOCH_STEPS = 9_469 // 32
CHECK_STEPS = 2
WINDOW, SPREAD = 300, 0.2
REPETITIONS, MOST_STEPS = 5, 2_000
WANDER, WANDER_STEPS = 0.02, 150
"""Standard deviation of a machine's own speed, and how many steps it takes to be another."""


@functools.cache
def preset(name: str) -> MeasureConfig:
    """One of the files of ``conf/measure``."""
    return compose([f"measure={name}"]).measure


def autoregressive(generator: np.random.Generator, count: int, rho: float) -> Series:
    """A stationary series of unit variance whose lag-1 correlation is `rho`."""
    state = generator.normal(0, np.sqrt(1 - rho**2), count)
    state[0] = generator.normal()
    for index in range(1, count):
        state[index] += rho * state[index - 1]
    return state


def simulated(generator: np.random.Generator) -> tuple[Series, float]:
    """Steps (s) around 1 s with a cold start of one very slow and a few slower steps."""
    rho, spread = generator.uniform(0, 0.6), generator.uniform(0.01, 0.06)
    steps = np.exp(spread * autoregressive(generator, MOST_STEPS, rho))
    steps[0] *= generator.uniform(1.5, 6)
    cold = int(generator.integers(0, 5))
    steps[1 : 1 + cold] *= generator.uniform(1.05, 1.5)
    return steps, float(np.exp(spread**2 / 2))


def wandering(generator: np.random.Generator) -> tuple[Series, float]:
    """One run on a machine whose own speed wanders around 1; its minutes are like no other's."""
    steps, mean = simulated(generator)
    slow = autoregressive(generator, len(steps), float(np.exp(-1 / WANDER_STEPS)))
    return steps * np.exp(WANDER * slow - WANDER**2 / 2), mean


def resampled(run: record.Record) -> Callable[[np.random.Generator], tuple[Series, float]]:
    """Series of a real run, put together from blocks of ten of its steady steps."""
    assert run.window is not None
    steps = np.array(run.ranks[0].step_s)
    main = steps[run.window.first :]

    def draw(generator: np.random.Generator) -> tuple[Series, float]:
        size = min(10, len(main))
        begins = generator.integers(0, len(main) - size + 1, MOST_STEPS // size + 1)
        blocks = np.concatenate([main[begin : begin + size] for begin in begins])
        return np.r_[steps[: run.window.first], blocks], float(main.mean())  # type: ignore[union-attr]

    return draw


@dataclass(frozen=True)
class Replay:
    """Where the rule would have stopped in a run as it came."""

    steps: int
    first: int
    """Where the rule saw the steady state begin."""
    found: Interval
    all_s: Series
    """Every step from there on, s."""

    @property
    def error(self) -> float:
        """Of the rule's mean, against the mean of all."""
        return self.found.mean / float(self.all_s.mean()) - 1


def replayed(run: record.Record, measure: MeasureConfig) -> Replay:
    steps = np.array(run.ranks[0].step_s)
    count, decision = stopped(steps, measure)
    assert decision.interval is not None
    return Replay(count, decision.first, decision.interval, steps[decision.first :])


def of_the_machine(run: record.Record, seen: Replay) -> str:
    """How much longer fixed work took between the rule's steps than between all."""
    readings = [rank.yardstick for rank in run.ranks if rank.yardstick is not None]

    def median_s(last: int) -> float:
        return float(np.median([t for y in readings for t in y.within(seen.first, last).work_s]))

    if not readings:
        return ""
    change = median_s(seen.steps) / median_s(len(run.ranks[0].step_s)) - 1
    return f"; fixed work between the rule's steps took {change:+.1%} against that between all"


def words(run: record.Record) -> str:
    """One run replayed, in words.

    Nothing that stops early can know what the machine does later: how far tenths of the run lie
    from its mean tells how much of an error is the machine's.
    """
    seen = replayed(run, preset("standard"))
    truth_s, total = float(seen.all_s.mean()), len(run.ranks[0].step_s)
    within = "covers" if seen.found.low <= truth_s <= seen.found.high else "misses"
    tenths = [float(part.mean()) / truth_s - 1 for part in np.array_split(seen.all_s, 10)]
    return (
        f"as it came: the rule stops after {seen.steps} of {total} steps ({total / seen.steps:.1f} "
        f"times fewer), {seen.error:+.2%} from the mean of all, which its interval {within}; "
        f"tenths of the run lie {min(tenths):+.1%} to {max(tenths):+.1%} from it"
        f"{of_the_machine(run, seen)}"
    )


def pooled(found: list[Interval]) -> tuple[float, float]:
    """Mean and half-width of repetitions, as the analysis has them where there are several."""
    means = np.array([one.mean for one in found])
    own = np.array([(one.high - one.low) / 2 for one in found])
    half = student(len(means) - 1) * float(means.std(ddof=1)) / np.sqrt(len(means))
    return float(means.mean()), max(half, float(np.sqrt((own**2).sum())) / len(own))


def together(runs: list[record.Record], name: str) -> str:
    """Repetitions of one configuration, each stopped as measure=`name` does, and pooled."""
    seen = [replayed(run, preset(name)) for run in runs]
    truth_s = float(np.mean([one.all_s.mean() for one in seen]))
    mean_s, half_s = pooled([one.found for one in seen])
    singles = [one.found.mean / truth_s - 1 for one in seen]
    error = mean_s / truth_s - 1
    within = "covers" if abs(error) <= half_s / truth_s else "misses"
    what = configuration(runs[0].config["num_devices"], runs[0].config["batch"])
    steps = sum(one.steps - one.first for one in seen)
    return (
        f"{len(runs)} repetitions of {what}, measure={name}: {steps} measured steps in all; single "
        f"runs lie {min(singles):+.1%} to {max(singles):+.1%} from the mean of all steps of all "
        f"runs; together {error:+.2%} ± {half_s / truth_s:.2%}, which {within}"
    )


def repetitions(runs: list[record.Record]) -> list[list[record.Record]]:
    """Runs that differ in their repetition alone, where there are several."""
    groups: dict[str, list[record.Record]] = {}
    for run in runs:
        key = json.dumps({**run.config, "repetition": 0}, sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def stopped(steps: Series, measure: MeasureConfig) -> tuple[int, Decision]:
    """After how many steps the rule stops, and what it says there."""
    for count in range(CHECK_STEPS, len(steps) + 1, CHECK_STEPS):
        found = decide(steps[:count], 0.0, measure)
        if found.reason is not None and found.interval is not None:
            return count, found
    raise SystemExit(f"the rule does not stop within these {len(steps)} steps")


def by_rule(steps: Series) -> tuple[int, float, bool]:
    """Steps taken by the rule, its mean, whether its interval covers 1.0 (the scaled truth)."""
    count, found = stopped(steps, preset("standard"))
    assert found.interval is not None
    return count, found.interval.mean, found.interval.low <= 1.0 <= found.interval.high


def by_length(steps: Series, count: int) -> tuple[int, float, bool]:
    """The first `count` steps, all of them in the mean, as most studies do."""
    taken = steps[:count]
    if count == 1:
        return 1, float(taken[0]), False
    interval = naive_interval(taken)
    return count, interval.mean, interval.low <= 1.0 <= interval.high


def by_epoch_without_warm_up(steps: Series) -> tuple[int, float, bool]:
    taken = steps[:EPOCH_STEPS]
    interval = mean_interval(taken[steady_start(taken, 3).first :])
    return EPOCH_STEPS, interval.mean, interval.low <= 1.0 <= interval.high


WAYS: dict[str, Callable[[Series], tuple[int, float, bool]]] = {
    "one step, cold": lambda steps: by_length(steps, 1),
    "100 steps": lambda steps: by_length(steps, 100),
    "one epoch": lambda steps: by_length(steps, EPOCH_STEPS),
    "one epoch, steady part": by_epoch_without_warm_up,
    "dpeval, standard (2 %)": by_rule,
}


def coverage(runs: int) -> None:
    """How often a 95 % interval of dependent lognormal steps covers their true mean."""
    generator, truth = np.random.default_rng(0), float(np.exp(SPREAD**2 / 2))
    print(f"95 % intervals of {WINDOW} steps, {runs} series for each lag-1 correlation")
    print(f"{'correlation':26}{'dpeval covers':>15}{'taken as independent':>22}")
    for rho in (0.0, 0.2, 0.4, 0.6, 0.8):
        hits = np.zeros(2)
        for _ in range(runs):
            steps = np.exp(SPREAD * autoregressive(generator, WINDOW, rho))
            found = mean_interval(steps), naive_interval(steps)
            hits += [interval.low <= truth <= interval.high for interval in found]
        print(f"{rho:<26}{hits[0] / runs:15.1%}{hits[1] / runs:22.1%}")


def table(
    name: str, draw: Callable[[np.random.Generator], tuple[Series, float]], runs: int
) -> None:
    generator = np.random.default_rng(0)
    scaled = [steps / truth for steps, truth in (draw(generator) for _ in range(runs))]
    errors_of: dict[str, float] = {}
    steps_of: dict[str, float] = {}
    print(f"\n{name}: {runs} series")
    print(f"{'way to measure':26}{'steps':>8}{'median error':>14}{'95 % error':>12}{'covered':>9}")
    for way, measure in WAYS.items():
        taken = [measure(steps) for steps in scaled]
        errors = np.array([abs(mean - 1) for _, mean, _ in taken])
        steps = np.median([count for count, _, _ in taken])
        errors_of[way], steps_of[way] = float(np.quantile(errors, 0.95)), float(steps)
        covered = np.mean([hit for _, _, hit in taken])
        print(
            f"{way:26}{steps:8.0f}{np.median(errors):14.2%}{np.quantile(errors, 0.95):12.2%}"
            f"{covered:9.1%}"
        )
    rule = list(WAYS)[-1]
    print(
        f"an epoch is {EPOCH_STEPS / steps_of[rule]:.1f} times the rule's steps; with the cold "
        f"steps in the mean, its 95 % error takes {equal_length(scaled, errors_of[rule])} steps"
    )


def wander_table(runs: int) -> None:
    """One run or several where the machine wanders: measured steps, error, coverage."""
    generator = np.random.default_rng(0)
    found: dict[str, list[tuple[int, float, float]]] = {}
    for _ in range(runs):
        draws = [
            steps / truth for steps, truth in (wandering(generator) for _ in range(REPETITIONS))
        ]
        epoch = draws[0][:EPOCH_STEPS]
        whole = mean_interval(epoch[steady_start(epoch, 3).first :])
        ways = {
            "one epoch, steady part": [(whole, EPOCH_STEPS)],
            "1 run, standard": [_own(draws[0], "standard")],
            f"{REPETITIONS} runs, standard": [_own(draw, "standard") for draw in draws],
            f"{REPETITIONS} runs, repeated": [_own(draw, "repeated") for draw in draws],
        }
        for way, taken in ways.items():
            intervals = [interval for interval, _ in taken]
            own = (intervals[0].mean, (intervals[0].high - intervals[0].low) / 2)
            mean, half = pooled(intervals) if len(taken) > 1 else own
            found.setdefault(way, []).append((sum(steps for _, steps in taken), mean - 1, half))
    print(f"\na machine that wanders by {WANDER:.0%}: {runs} series")
    print(f"{'way to measure':26}{'steps':>8}{'median error':>14}{'95 % error':>12}{'covered':>9}")
    for way, rows in found.items():
        steps, error, half = np.array(rows).T
        print(
            f"{way:26}{np.median(steps):8.0f}{np.median(np.abs(error)):14.2%}"
            f"{np.quantile(np.abs(error), 0.95):12.2%}{np.mean(np.abs(error) <= half):9.1%}"
        )


def _own(steps: Series, name: str) -> tuple[Interval, int]:
    """The interval of one run and its measured steps."""
    count, decision = stopped(steps, preset(name))
    assert decision.interval is not None
    return decision.interval, count - decision.first


def equal_length(scaled: list[Series], error: float) -> str:
    """From how many steps on 95 % of the means of all steps are, and stay, within `error`."""
    counts = np.arange(1, MOST_STEPS + 1)
    means = np.array([np.cumsum(steps[: len(counts)]) / counts for steps in scaled])
    bad = np.quantile(np.abs(means - 1), 0.95, axis=0) > error
    last = int(counts[bad][-1]) if bad.any() else 0
    return f"{last + 1}" if last < len(counts) else f"more than {len(counts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=500)
    given = parser.parse_args()
    coverage(given.runs)
    table("simulated", simulated, given.runs)
    wander_table(given.runs)
    runs = {path: record.read(path) for path in given.records}
    for path, run in runs.items():
        table(str(path), resampled(run), given.runs)
        print(words(run))
    for group in repetitions(list(runs.values())):
        print(together(group, "standard"))
        print(together(group, "repeated"))


if __name__ == "__main__":
    main()
