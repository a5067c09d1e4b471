"""Measures what the stopping rule saves over fixed lengths, and how well its intervals cover.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.scoring import autoregressive_series
from dpeval import record
from dpeval.analysis.frame.labels import configuration
from dpeval.analysis.pooling import run_spread
from dpeval.analysis.pooling.repetitions import interval
from dpeval.analysis.pooling.run_spread import own_errors
from dpeval.commands.hydra_app import compose
from dpeval.config import MeasureConfig
from dpeval.record.measurement import Interval
from dpeval.stats.intervals import mean_interval, naive_interval
from dpeval.stats.steady_state import Decision, decide, steady_start

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


def simulated(generator: np.random.Generator) -> tuple[Series, float]:
    """Steps (s) around 1 s with a cold start of one very slow and a few slower steps."""
    rho, spread = generator.uniform(0, 0.6), generator.uniform(0.01, 0.06)
    steps = np.exp(spread * autoregressive_series(generator, MOST_STEPS, rho))
    steps[0] *= generator.uniform(1.5, 6)
    cold = int(generator.integers(0, 5))
    steps[1 : 1 + cold] *= generator.uniform(1.05, 1.5)
    return steps, float(np.exp(spread**2 / 2))


def wandering(generator: np.random.Generator) -> tuple[Series, float]:
    """One run on a machine whose own speed wanders around 1; its minutes are like no other's."""
    steps, mean = simulated(generator)
    slow = autoregressive_series(generator, len(steps), float(np.exp(-1 / WANDER_STEPS)))
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
    def measured(self) -> int:
        """Steps that entered the rule's mean."""
        return self.steps - self.first

    @property
    def error(self) -> float:
        """Of the rule's mean, against the mean of all."""
        return self.found.mean / float(self.all_s.mean()) - 1


def replayed(steps: Series, measure: MeasureConfig) -> Replay:
    count, decision = stopped(steps, measure)
    assert decision.interval is not None
    return Replay(count, decision.first, decision.interval, steps[decision.first :])


def of_the_machine(run: record.Record, seen: Replay) -> str:
    """How much longer the reference work took during the rule's steps than during all."""
    readings = [rank.reference_times for rank in run.ranks if rank.reference_times is not None]

    def median_s(last: int) -> float:
        return float(np.median([t for y in readings for t in y.within(seen.first, last).work_s]))

    if not readings:
        return ""
    change = median_s(seen.steps) / median_s(len(run.ranks[0].step_s)) - 1
    return f"; reference work took {change:+.1%} longer during the rule's steps than during all"


def describe(run: record.Record) -> str:
    """Describe the replay of one run.

    Nothing that stops early can know what the machine does later: how far tenths of the run lie
    from its mean tells how much of an error is the machine's.
    """
    steps = np.array(run.ranks[0].step_s)
    seen = replayed(steps, preset("standard"))
    truth_s, total = float(seen.all_s.mean()), len(steps)
    within = "covers" if seen.found.low <= truth_s <= seen.found.high else "misses"
    tenths = [float(part.mean()) / truth_s - 1 for part in np.array_split(seen.all_s, 10)]
    return (
        f"as it came: the rule stops after {seen.steps} of {total} steps ({total / seen.steps:.1f} "
        f"times fewer), {seen.error:+.2%} from the mean of all, which its interval {within}; "
        f"tenths of the run lie {min(tenths):+.1%} to {max(tenths):+.1%} from it"
        f"{of_the_machine(run, seen)}"
    )


def pooled(seen: list[Replay]) -> tuple[float, float, float]:
    """Mean of repetitions (or of one run) and its interval, as the analysis has them."""
    means = np.array([one.found.mean for one in seen])
    runs = pd.DataFrame(
        {
            "img_per_s": 1 / means,
            "img_per_s_low": [1 / one.found.high for one in seen],
            "img_per_s_high": [1 / one.found.low for one in seen],
            "steps": [one.steps for one in seen],
            "effective_steps": [one.found.effective_samples for one in seen],
        }
    )
    low, high = runs["img_per_s_low"].iloc[0], runs["img_per_s_high"].iloc[0]
    if len(seen) > 1:
        scatter, own = np.log(means).var(ddof=1), (own_errors(runs) ** 2).mean()
        spread = run_spread.pooled(np.array([len(seen)]), np.array([scatter]), np.array([own]))
        low, high = interval(float(1 / means.mean()), runs, spread)
    return float(means.mean()), float(1 / high), float(1 / low)


def together(runs: list[record.Record], name: str) -> Iterator[str]:
    """Repetitions of one configuration, each stopped as measure=`name` does: pooled by fives, then
    all of them."""
    seen = [replayed(np.array(run.ranks[0].step_s), preset(name)) for run in runs]
    truth_s = float(np.mean([one.all_s.mean() for one in seen]))
    config = runs[0].config
    what = f"{configuration(config['num_devices'], config['batch'])}, measure={name}"
    begins = range(0, len(seen) - REPETITIONS + 1, REPETITIONS)
    fives = [seen[begin : begin + REPETITIONS] for begin in begins]
    for several in fives if len(seen) == REPETITIONS else [*fives, seen]:
        yield f"{what}: {pooled_words(several, truth_s)}"


def pooled_words(seen: list[Replay], truth_s: float) -> str:
    """What `seen` say together, against the mean of all steps of all runs."""
    mean_s, low_s, high_s = pooled(seen)
    singles = [one.found.mean / truth_s - 1 for one in seen]
    within = "covers" if low_s <= truth_s <= high_s else "misses"
    steps = sum(one.measured for one in seen)
    return (
        f"{len(seen)} repetitions, {steps} measured steps in all; single runs lie "
        f"{min(singles):+.1%} to {max(singles):+.1%} from the mean of all steps of all runs; "
        f"together {mean_s / truth_s - 1:+.2%} ± {(high_s - mean_s) / truth_s:.2%}, which {within}"
    )


def repetitions(runs: list[record.Record]) -> list[list[record.Record]]:
    """Runs that differ in their repetition alone, where there are several."""
    groups: dict[str, list[record.Record]] = {}
    for run in runs:
        key = json.dumps({**run.config, "repetition": 0}, sort_keys=True)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: int(run.config["repetition"]))
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
            steps = np.exp(SPREAD * autoregressive_series(generator, WINDOW, rho))
            found = mean_interval(steps), naive_interval(steps)
            hits += [interval.low <= truth <= interval.high for interval in found]
        print(f"{rho:<26}{hits[0] / runs:15.1%}{hits[1] / runs:22.1%}")


def table(
    name: str, draw: Callable[[np.random.Generator], tuple[Series, float]], runs: int
) -> None:
    generator = np.random.default_rng(0)
    scaled = [steps / truth for steps, truth in (draw(generator) for _ in range(runs))]
    shown = show(
        f"{name}: {runs} series",
        {way: [measure(steps) for steps in scaled] for way, measure in WAYS.items()},
    )
    steps, error = shown[list(WAYS)[-1]]
    print(
        f"an epoch is {EPOCH_STEPS / steps:.1f} times the rule's steps; with the cold "
        f"steps in the mean, its 95 % error takes {equal_length(scaled, error)} steps"
    )


def show(
    title: str, found: dict[str, list[tuple[int, float, bool]]]
) -> dict[str, tuple[float, float]]:
    """Print a table of ways to measure; returns each one's median steps and 95 % error.

    Args:
        found: per way, the steps of every series, its mean (of a truth of 1) and whether its
            interval covers the truth.
    """
    print(f"\n{title}")
    print(f"{'way to measure':26}{'steps':>8}{'median error':>14}{'95 % error':>12}{'covered':>9}")
    shown = {}
    for way, taken in found.items():
        counts, means, hits = np.array(taken, dtype=float).T
        errors = np.abs(means - 1)
        shown[way] = float(np.median(counts)), float(np.quantile(errors, 0.95))
        print(
            f"{way:26}{shown[way][0]:8.0f}{np.median(errors):14.2%}{shown[way][1]:12.2%}"
            f"{hits.mean():9.1%}"
        )
    return shown


def wander_table(runs: int) -> None:
    """One run or several where the machine wanders: measured steps, error, coverage."""
    generator = np.random.default_rng(0)
    found: dict[str, list[tuple[int, float, bool]]] = {}
    for _ in range(runs):
        draws = [
            steps / truth for steps, truth in (wandering(generator) for _ in range(REPETITIONS))
        ]
        _, mean, hit = by_epoch_without_warm_up(draws[0][:EPOCH_STEPS])
        found.setdefault("one epoch, steady part", []).append((EPOCH_STEPS, mean, hit))
        for name, count in (("standard", 1), ("standard", REPETITIONS), ("repeated", REPETITIONS)):
            seen = [replayed(draw, preset(name)) for draw in draws[:count]]
            mean, low, high = pooled(seen)
            way = f"{count} run{'s' * (count > 1)}, {name}"
            taken = sum(one.measured for one in seen)
            found.setdefault(way, []).append((taken, mean, low <= 1.0 <= high))
    show(f"a machine that wanders by {WANDER:.0%}: {runs} series", found)


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
        print(describe(run))
    for group in repetitions(list(runs.values())):
        for name in ("standard", "repeated"):
            print(*together(group, name), sep="\n")


if __name__ == "__main__":
    main()
