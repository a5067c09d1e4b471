"""How often the intervals of single runs cover the truth; printed by benchmarks/coverage.py.

Windows of fixed length, and the throughput that is computed from them; then whole runs: the steps
of a simulated run are shown to the rule that ends runs, as often as rank 0 looks at them, and the
interval in the record is held against the truth.

AR(1) is what the interval assumes. Two regimes, slow humps, heavy tails and a drift are what it
does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.scoring import Score, autoregressive, score
from dpeval.commands.hydra_app import compose
from dpeval.config import MeasureConfig
from dpeval.instruments.stop_sync import steps_ahead
from dpeval.record.codes import StopReason
from dpeval.stats.intervals import mean_interval
from dpeval.stats.steady_state import decide, window
from dpeval.stats.throughput import throughput
from dpeval.util.arrays import Floats

LENGTHS = (6, 12, 26, 60, 150)
VARIATION = 0.10
"""Standard deviation of a step in windows of fixed length, over the mean of 1 s."""
SOJOURN, REGIME_SHARE = 20, 0.5
"""Steps that a regime lasts on average, and the share of the variance that regimes have."""
PERIOD, HUMP = 60, 15
"""One hump every so many steps, of so many steps and three standard deviations of the noise."""
DRIFT = 0.05
"""Change of the step over the mean: over a window that drifts, or within 100 steps of a run."""
PRESETS = ("quick", "repeated", "standard", "rigorous")
VARIATIONS = (0.02, 0.05, 0.14)
STEP_S, COLD_FACTOR = 0.5, 3.0
"""Mean step of a simulated run, s (rank 0 then looks after every step), and its first step."""

Noise = Callable[[np.random.Generator, int, int], Floats]
"""Noise of mean 0 over the long run: generator, series, steps → shape [series, steps]."""


def regimes(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """Two levels, between which a series switches at random, under white noise."""
    begin = generator.integers(0, 2, (series, 1))
    switches = generator.random((series, steps - 1)) < 1 / SOJOURN
    level = np.c_[begin, begin + np.cumsum(switches, axis=1)] % 2 * 2 - 1
    white = generator.normal(size=(series, steps))
    made: Floats = np.sqrt(REGIME_SHARE) * level + np.sqrt(1 - REGIME_SHARE) * white
    return made


def humps(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """White noise under humps that come at regular times; a series begins anywhere."""
    phase = (generator.integers(0, PERIOD, (series, 1)) + np.arange(steps)) % PERIOD
    hump = 3 * np.where(phase < HUMP, np.sin(np.pi * (phase + 0.5) / HUMP), 0.0)
    mean = 3 * float(np.sin(np.pi * (np.arange(HUMP) + 0.5) / HUMP).sum()) / PERIOD
    made: Floats = generator.normal(size=(series, steps)) + hump - mean
    return made


def heavy_tails(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """Independent, Student's t with 3 degrees of freedom, of variance 1."""
    made: Floats = generator.standard_t(3, (series, steps)) / np.sqrt(3.0)
    return made


def drift(generator: np.random.Generator, series: int, steps: int) -> Floats:
    """White noise; the line is added by what knows how long it is."""
    made: Floats = generator.normal(size=(series, steps))
    return made


MODELLED: dict[str, Noise] = {
    f"AR(1), r = {rho:g}": functools.partial(autoregressive, rho)
    for rho in (0.0, 0.3, 0.6, 0.8, 0.9)
}
OTHERS: dict[str, Noise] = {
    "two regimes": regimes,
    "slow humps": humps,
    "heavy tails (t3)": heavy_tails,
    "linear drift (5 %)": drift,
}


def of_window(noise: Noise, steps: int, runs: int) -> tuple[Score, Score]:
    """Of the mean step, and of the throughput of one image a step, in windows of `steps`."""
    generator = np.random.default_rng(steps)
    # A step takes time: of the widest tails, a few values are drawn in to a tenth of the mean.
    drawn = np.maximum(0.1, 1 + VARIATION * noise(generator, runs, steps))
    if noise is drift:  # the truth is the line's middle
        drawn = drawn + DRIFT * np.linspace(-0.5, 0.5, steps)
    found = [mean_interval(series) for series in drawn]
    rates = [throughput(1, [series], one) for series, one in zip(drawn, found, strict=True)]
    return (
        score([(one.low, one.high) for one in found], 1.0),
        score([(one.low, one.high) for one in rates], 1.0),
    )


@functools.cache
def preset(name: str) -> MeasureConfig:
    """One of the files of ``conf/measure``."""
    return compose([f"measure={name}"]).measure


def ended(step_s: Floats, config: MeasureConfig) -> tuple[int, StopReason]:
    """After how many steps a run ends, and why; rank 0 looks as often as in a run.

    As in a run, the time limit begins when the first step has finished.
    """
    elapsed_s, count = np.cumsum(step_s) - step_s[0], 1
    while count < len(step_s):
        reason = decide(step_s[:count], float(elapsed_s[count - 1]), config).reason
        if reason is not None:
            return count, reason
        ahead = steps_ahead(count, float(elapsed_s[count - 1]), float(step_s[count - 1]), config)
        count = min(len(step_s), count + ahead)
    return count, "max_steps"


@dataclass(frozen=True)
class Runs:
    """Whole runs of one kind, with a cold first step."""

    preset: str
    noise: str
    variation: float
    """Standard deviation of a step, over its mean."""

    def scored(self, runs: int) -> tuple[Score, float, float]:
        """Of the mean step; the median of steps; the share that precision ended."""
        config = preset(self.preset)
        most = min(config.max_steps, int(2 * config.time_limit_s / STEP_S))
        generator = np.random.default_rng([int(1000 * self.variation), len(self.noise)])
        noise = (MODELLED | OTHERS)[self.noise]
        line = DRIFT / 100 * np.arange(most) * (noise is drift)
        ends: list[tuple[float, float]] = []
        counts, precise = [], 0
        for _ in range(runs):
            steps = STEP_S * np.maximum(0.1, 1 + self.variation * noise(generator, 1, most)[0])
            steps += STEP_S * line
            steps[0] *= COLD_FACTOR
            count, reason = ended(steps, config)
            found = window([steps[:count]], reason, config)
            truth_s = STEP_S * (1 + float(line[found.first : count].mean()))
            ends.append((found.step_s.low / truth_s, found.step_s.high / truth_s))
            counts.append(count)
            precise += reason == "precision"
        return score(ends, 1.0), float(np.median(counts)), precise / runs


def windows_table(runs: int) -> Iterator[str]:
    """Windows of fixed length."""
    yield f"95 % intervals of windows of fixed length, CV {VARIATION:.0%}, {runs} series each:"
    yield "coverage, median half-width (its 97.5 % quantile); the throughput's coverage"
    yield f"{'noise':20}" + "".join(f"{f'{steps} steps':>36}" for steps in LENGTHS)
    for name, noise in (MODELLED | OTHERS).items():
        cells = []
        for steps in LENGTHS:
            of_step, of_rate = of_window(noise, steps, runs)
            cells.append(f"{of_step}; {of_rate.covered:6.1%}")
        yield f"{name:20}" + "".join(f"{cell:>36}" for cell in cells)


def presets_table(runs: int, processes: int) -> Iterator[str]:
    """Whole runs, for each way to measure."""
    yield f"whole runs of {STEP_S:g} s steps, {runs} runs each (a tenth with rigorous)"
    heads = f"{'CV':>5}{'coverage, half-width':>28}{'steps':>7}{'precise':>9}"
    yield f"{'measure':10}{'noise':20}{heads}"
    cases = [
        Runs(name, noise, variation)
        for name in PRESETS
        for noise in (MODELLED | OTHERS)
        for variation in VARIATIONS
    ]
    draws = [runs // 10 if one.preset == "rigorous" else runs for one in cases]
    covered: dict[str, list[float]] = {}
    with ProcessPoolExecutor(processes) as pool:
        for one, (found, steps, precise) in zip(
            cases, pool.map(Runs.scored, cases, draws), strict=True
        ):
            if one.noise in MODELLED:
                covered.setdefault(one.preset, []).append(found.covered)
            cell = f"{one.variation:5.0%}{found!s:>28}{steps:7.0f}{precise:9.0%}"
            yield f"{one.preset:10}{one.noise:20}{cell}"
    for name, shares in covered.items():
        yield f"{name}, AR(1): {np.mean(shares):.1%} on average, {min(shares):.1%} at least"
