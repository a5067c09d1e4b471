"""Coverage of every interval that dpeval prints, by preset and noise; see benchmarks/coverage.py.

Simulated runs of a preset are the source of all of a row's figures. Sweeps draw their runs from
them and give each a spread of its own; ablation windows are as long as the preset makes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.factor_coverage import Case, coverage_of_windows
from benchmarks.noise import DRIFT, DRIFTING, MODELLED, OTHERS
from benchmarks.scoring import Score, score
from benchmarks.single_run_coverage import PRESETS, STEP_S, VARIATIONS, Runs, Simulated, preset
from dpeval.analysis.pooling.run_spread import ASSUMED_SHARE, RunSpread, pooled
from dpeval.analysis.scaling import scaling_laws
from dpeval.analysis.scaling.scaling_laws import AMDAHL, USL, Law
from dpeval.stats.comparison import LEAST_FREEDOM, error_of_difference, quantile
from dpeval.util.arrays import Floats
from dpeval.worker.ablation_schedule import schedule

SPREAD = ASSUMED_SHARE
"""Standard deviation of a run as a whole, in logarithm."""
VARIATION = 0.05
"""Of a step, over its mean, in whatever is made of several runs."""
REPETITIONS = {"repeated": 5}
"""Runs of a configuration, where a preset is meant for more than one."""
DEVICES = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0])
LAWS: dict[str, tuple[Law, tuple[float, ...]]] = {
    "Amdahl": (AMDAHL, (0.05,)),
    "USL": (USL, (0.05, 0.004)),
}


@dataclass(frozen=True)
class Sweeps:
    """Configurations that were measured in the same way, whose true step is the same."""

    error: Floats
    """Mean log step of each configuration, shape [sweeps, configurations]; the truth is 0."""
    alone: Floats
    """The same without what differs between runs, which a single run's interval leaves out."""
    seen: Floats
    """Variance among the runs of a configuration, likewise; 0: one run."""
    own: Floats
    """Mean squared standard error of a run from its own steps, likewise."""
    half: Floats
    """Mean square of the half-width of a run's own 95 % interval, likewise."""
    spreads: list[RunSpread]
    """What the analysis takes for the spread between runs, of each sweep."""
    runs: int

    def of_one(self) -> Score:
        """The interval of a configuration's throughput."""
        if self.runs == 1:
            return _scored(self.alone[:, 0], np.sqrt(self.half[:, 0]))
        return _scored(self.error[:, 0], self._comparable()[:, 0])

    def of_ratio(self) -> Score:
        """The interval of a speedup, and so of an efficiency."""
        halves = self._comparable()
        return _scored(self.error[:, 1] - self.error[:, 0], np.hypot(halves[:, 0], halves[:, 1]))

    def of_comparison(self) -> Score:
        """The interval of the ratio that ``--compare`` prints."""
        seen, own = self.seen[:, :2].mean(axis=1), self.own[:, :2].mean(axis=1)
        error = error_of_difference(seen, own, self.runs, self.runs)
        half = quantile(0.975, error.freedom) * error.value
        return _scored(self.error[:, 1] - self.error[:, 0], half)

    def of_law(self, law: Law, truth: tuple[float, ...]) -> Score:
        """The intervals of a law's parameters."""
        rates = law.speedup(DEVICES, DEVICES, truth)
        share = np.array([one.share for one in self.spreads])[:, None]
        errors = np.sqrt((share**2 + self.own) / self.runs)
        ends, truths = [], []
        for strays, known, spread in zip(self.error, errors, self.spreads, strict=True):
            found = scaling_laws.fit(law, DEVICES, rates * np.exp(-strays), known, spread.freedom)
            ends += [(one.low, one.high) for one in found.parameters.values()]
            truths += list(truth)
        return score(
            [(low / t, high / t) for (low, high), t in zip(ends, truths, strict=True)], 1.0
        )

    def _comparable(self) -> Floats:
        spread = np.array([one.half(self.runs) for one in self.spreads])
        return np.sqrt(spread[:, None] ** 2 + self.half / self.runs)


def _scored(error: Floats, half: Floats) -> Score:
    """Of intervals of a logarithm whose truth is 0."""
    return score(list(zip(np.exp(error - half), np.exp(error + half), strict=True)), 1.0)


def sweeps(made: Simulated, runs: int, count: int) -> Sweeps:
    """Sweeps over :data:`DEVICES` whose runs are drawn from simulated ones.

    What pooling and speedup do with a frame is done here with arrays.

    Args:
        made: runs of one preset under one noise.
        runs: repetitions of each configuration.
        count: how many sweeps.
    """
    generator = np.random.default_rng(runs)
    drawn = generator.integers(0, len(made.known), (count, len(DEVICES), runs))
    half = np.array([math.log(one.high / one.mean) for one in made.known])
    effective = np.array([one.effective_samples for one in made.known])
    own = (half / quantile(0.975, np.maximum(LEAST_FREEDOM, effective - 1))) ** 2
    alone = np.log(np.array([one.mean for one in made.known]) / made.truth_s)[drawn]
    error = alone + SPREAD * generator.standard_normal(alone.shape)
    of_runs, seen = own[drawn].mean(axis=-1), np.zeros(error.shape[:2])
    spreads = [pooled(np.empty(0), np.empty(0), np.empty(0))] * count
    if runs > 1:
        seen, sizes = error.var(axis=-1, ddof=1), np.full(len(DEVICES), float(runs))
        spreads = [pooled(sizes, one, of) for one, of in zip(seen, of_runs, strict=True)]
    squares = (half**2)[drawn].mean(axis=-1)
    means = error.mean(axis=-1), alone.mean(axis=-1)
    return Sweeps(*means, seen, of_runs, squares, spreads, runs)


def of_factors(name: str, noise: str, made: Simulated, draws: int) -> list[Score]:
    """The factors that ablation windows of a typical run show."""
    config = preset(name)
    typical_s = float(np.median(made.counts)) * STEP_S
    sized = schedule(typical_s, STEP_S, config.ablation_share)
    case = Case(
        noise=(MODELLED | OTHERS)[noise],
        drift=DRIFT / 100 * sized.steps * (noise == DRIFTING),
        rounds=sized.rounds,
        block=max(1, sized.steps - 1),
    )
    return list(coverage_of_windows(case, draws).values())


def table(draws: int) -> Iterator[str]:
    """Everything, by preset and noise."""
    yield (
        f"95 % intervals, {draws} draws each: coverage, median half-width. Steps of {STEP_S:g} s; "
        f"what is made of several runs has steps with CV {VARIATION:.0%} and runs with a spread of "
        f"{SPREAD:.0%}. Throughput is as its step, efficiency as its speedup."
    )
    heads = [f"step, CV {one:.0%}" for one in VARIATIONS]
    heads += ["throughput", "speedup", "--compare", "contention", "balance", "sync", *LAWS]
    yield f"{'measure':12}{'noise':20}" + "".join(f"{head:>16}" for head in heads)
    covered: dict[str, list[float]] = {}
    for name in PRESETS:
        for noise in MODELLED | OTHERS:
            found = of_row(name, noise, draws)
            if noise in MODELLED:
                covered.setdefault(name, []).extend(one.covered for one in found)
            cells = [f"{one.covered:.1%} ±{_width(one.median)}" for one in found]
            yield f"{_title(name):12}{noise:20}" + "".join(f"{cell:>16}" for cell in cells)
    for name, shares in covered.items():
        yield (
            f"{_title(name)}, AR(1) up to r = 0.6: {min(shares):.1%} to {max(shares):.1%}, "
            f"{np.mean(shares):.1%} on average"
        )


def of_row(name: str, noise: str, draws: int) -> list[Score]:
    """All figures of one preset under one noise."""
    made = [Runs(name, noise, variation).simulated(draws) for variation in VARIATIONS]
    typical = made[VARIATIONS.index(VARIATION)]
    drawn = sweeps(typical, REPETITIONS.get(name, 1), draws)
    figures = [drawn.of_one(), drawn.of_ratio(), drawn.of_comparison()]
    laws = [drawn.of_law(law, truth) for law, truth in LAWS.values()]
    return [one.scored() for one in made] + figures + of_factors(name, noise, typical, draws) + laws


def _title(name: str) -> str:
    return f"{name} ×{REPETITIONS[name]}" if name in REPETITIONS else name


def _width(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
