"""Coverage of every interval that dpeval prints, by preset and noise; see benchmarks/coverage.py.

Simulated runs of a preset are the source of all of a row's figures. Sweeps draw their runs from
them and give each a spread of its own; ablation windows are as long as the preset makes them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.factor_coverage import Case, coverage_of_windows
from benchmarks.noise import DRIFT, DRIFTING, MODELLED, OTHERS
from benchmarks.scoring import Score, score, scored_logs
from benchmarks.single_run_coverage import PRESETS, STEP_S, VARIATIONS, Runs, Simulated, preset
from dpeval.analysis.pooling.run_spread import ASSUMED_SHARE, RunSpread, pooled
from dpeval.analysis.scaling import scaling_laws
from dpeval.analysis.scaling.scaling_laws import AMDAHL, USL, Law
from dpeval.stats.comparison import LEAST_FREEDOM, error_of_difference, quantile
from dpeval.util.arrays import Floats
from dpeval.worker.ablation_schedule import schedule

OF_SWEEPS = ("throughput", "speedup", "--compare")
FACTORS = ("contention", "balance", "sync")
SPREAD = ASSUMED_SHARE
"""Standard deviation of a run as a whole, in logarithm."""
VARIATION = 0.05
"""Of a step, over its mean, in whatever is made of several runs."""
REPETITIONS = {"quick": (1, 3), "repeated": (5,), "standard": (1, 3), "rigorous": (1,)}
"""Runs of a configuration, by preset."""
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
            return scored_logs(self.alone[:, 0], np.sqrt(self.half[:, 0]))
        return scored_logs(self.error[:, 0], self._comparable()[:, 0])

    def of_ratio(self) -> Score:
        """The interval of a speedup, and so of an efficiency."""
        halves = self._comparable()
        return scored_logs(
            self.error[:, 1] - self.error[:, 0], np.hypot(halves[:, 0], halves[:, 1])
        )

    def of_comparison(self) -> Score:
        """The interval of the ratio that ``--compare`` prints."""
        seen, own = self.seen[:, :2].mean(axis=1), self.own[:, :2].mean(axis=1)
        error = error_of_difference(seen, own, self.runs, self.runs)
        half = quantile(0.975, error.freedom) * error.value
        return scored_logs(self.error[:, 1] - self.error[:, 0], half)

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


def sweeps(made: Simulated, runs: int, count: int) -> Sweeps:
    """Sweeps over :data:`DEVICES` whose runs are drawn from simulated ones.

    What pooling and speedup do with a frame is done here with arrays.

    Args:
        made: runs of one preset under one noise.
        runs: repetitions of each configuration.
        count: how many sweeps.
    """
    generator = np.random.default_rng(runs)
    drawn = generator.integers(0, len(made.half), (count, len(DEVICES), runs))
    half, alone = made.half, made.error[drawn]
    own = (half / quantile(0.975, np.maximum(LEAST_FREEDOM, made.effective - 1))) ** 2
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
        f"{SPREAD:.0%}. Throughput is as its step, efficiency as its speedup. Told: the share of "
        "steps' intervals that miss the truth whose records carry a warning of it."
    )
    steps = [f"step, CV {one:.0%}" for one in VARIATIONS]
    heads = [*steps, "told", *OF_SWEEPS, *FACTORS]
    yield f"{'measure':12}{'noise':20}" + "".join(f"{head:>16}" for head in heads)
    covered: dict[str, list[float]] = {}
    for name, noise in itertools.product(PRESETS, MODELLED | OTHERS):
        for title, cells in of_rows(name, noise, draws):
            if noise in MODELLED:
                covered.setdefault(title, []).extend(
                    one.covered for one in cells.values() if isinstance(one, Score)
                )
            shown = [_shown(cells.get(head)) for head in heads]
            yield f"{title:12}{noise:20}" + "".join(f"{cell:>16}" for cell in shown)
    for title, shares in covered.items():
        yield (
            f"{title}, AR(1) up to r = 0.6: {min(shares):.1%} to {max(shares):.1%}, "
            f"{np.mean(shares):.1%} on average"
        )


def laws_table(draws: int) -> Iterator[str]:
    """Parameters of the true law; of the noise, it sees only the error of each run."""
    yield f"parameters of the true law, over {len(DEVICES)} device counts, {draws} sweeps each"
    yield f"{'measure':12}{'noise':20}" + "".join(f"{head:>16}" for head in LAWS)
    for name, noise in itertools.product(PRESETS, MODELLED):
        made = Runs(name, noise, VARIATION).simulated(draws)
        drawn = sweeps(made, REPETITIONS[name][0], draws)
        cells = [_shown(drawn.of_law(*truth)) for truth in LAWS.values()]
        yield f"{name:12}{noise:20}" + "".join(f"{cell:>16}" for cell in cells)


def of_rows(name: str, noise: str, draws: int) -> Iterator[tuple[str, dict[str, Score | float]]]:
    """All figures of one preset under one noise, by column; one row per number of repetitions."""
    made = [Runs(name, noise, variation).simulated(draws) for variation in VARIATIONS]
    typical = made[VARIATIONS.index(VARIATION)]
    missed = np.array([float((~one.covered).sum()) for one in made])
    told = np.array([one.told for one in made])[missed > 0] @ missed[missed > 0]
    cells: dict[str, Score | float] = {
        **{f"step, CV {one:.0%}": of.scored() for one, of in zip(VARIATIONS, made, strict=True)},
        "told": told / missed.sum() if missed.sum() else math.nan,
        **dict(zip(FACTORS, of_factors(name, noise, typical, draws), strict=True)),
    }
    for runs in REPETITIONS[name]:
        drawn = sweeps(typical, runs, draws)
        figures = (drawn.of_one(), drawn.of_ratio(), drawn.of_comparison())
        cells |= dict(zip(OF_SWEEPS, figures, strict=True))
        yield (name if runs == 1 else f"{name} ×{runs}"), cells
        cells = {}


def _shown(cell: Score | float | None) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, Score):
        return "" if math.isnan(cell) else f"{cell:.0%}"
    width = f"{cell.median:.0%}" if cell.median >= 0.1 else f"{cell.median:.1%}"
    return f"{cell.covered:.1%} ±{width}"
