"""How often intervals cover the truth, and how wide they are, under noise of several kinds.

    python benchmarks/coverage.py [--runs 2000] [--preset-runs 1000] [--sweeps 2000]
        [--only windows|presets|comparisons|factors]

First the interval of the mean step for windows of fixed length, and that of the throughput that is
computed from it. Then whole runs: the steps of a simulated run are shown to the rule that ends
runs, as often as rank 0 looks at them, and the interval in the record is held against the truth.
Then whole sweeps, whose runs stray from the truth: efficiency on several device counts, how often
it is called super-linear where it is 1, how often the best configuration is excluded, and of two
unchanged sweeps the ratio that ``--compare`` prints and how often it calls any of several different
(``benchmarks/comparison.py`` also shows which changes it finds). Last the factors of efficiency, of
single runs and of repetitions.

AR(1) is what the interval assumes. The other kinds are what it does not: two regimes, slow humps,
heavy tails and a drift.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.comparison import CONFIGURATIONS, simulate
from benchmarks.factor_coverage import table as factors_table
from benchmarks.scoring import Score, autoregressive, score
from dpeval.analysis.scaling.run_spread import ASSUMED_SHARE, RunSpread, pooled
from dpeval.commands.hydra_app import compose
from dpeval.config import MeasureConfig
from dpeval.instruments.stop_sync import steps_ahead
from dpeval.record.codes import StopReason
from dpeval.record.measurement import Interval
from dpeval.stats.best import compared_with_best
from dpeval.stats.comparison import LARGEST_SPREAD, quantile
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
"""Change of the step over a window that drifts, over the mean."""
PRESETS = ("quick", "standard", "rigorous", "repeated")
VARIATIONS, CORRELATIONS = (0.02, 0.05, 0.14), (0.0, 0.4, 0.8)
STEP_S, COLD_FACTOR = 0.5, 3.0
"""Mean step of a simulated run, s (rank 0 then looks after every step), and its first step."""
EFFICIENCIES = (1.0, 1.0, 1.0, 1.01)
"""Of the configurations of a sweep; the first is the baseline."""
SPREADS, REPETITIONS = (0.0, 0.02, 0.05), (1, 2, 3, 5)
OWN_ERROR, SWEEP_STEPS = 0.005, 60
"""Standard error of a run's mean step, as far as its own steps tell it, and those steps."""

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
    """White noise on a line; the truth is the line's middle."""
    line = np.linspace(-0.5, 0.5, steps) * DRIFT / VARIATION
    made: Floats = generator.normal(size=(series, steps)) + line
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
    """After how many steps a run ends, and why; rank 0 looks as often as in a run."""
    elapsed_s, count = np.cumsum(step_s), 1
    while count < len(step_s):
        reason = decide(step_s[:count], float(elapsed_s[count - 1]), config).reason
        if reason is not None:
            return count, reason
        ahead = steps_ahead(count, float(elapsed_s[count - 1]), float(step_s[count - 1]), config)
        count = min(len(step_s), count + ahead)
    return count, "max_steps"


def of_preset(
    name: str, variation: float, rho: float, runs: int, step_s: float = STEP_S
) -> tuple[Score, float, float]:
    """Of whole runs with a cold first step; the median of steps, the share ended by precision."""
    config = preset(name)
    generator = np.random.default_rng(int(1000 * variation + 10 * rho))
    most = min(config.max_steps, int(2 * config.time_limit_s / step_s))
    found: list[Interval] = []
    ends: list[tuple[int, StopReason]] = []
    for _ in range(runs):
        noise = autoregressive(rho, generator, 1, most)[0]
        steps = step_s * np.exp(variation * noise - variation**2 / 2)
        steps[0] *= COLD_FACTOR
        ends.append(ended(steps, config))
        found.append(window([steps[: ends[-1][0]]], ends[-1][1], config).step_s)
    return (
        score([(one.low, one.high) for one in found], step_s),
        float(np.median([count for count, _ in ends])),
        float(np.mean([reason == "precision" for _, reason in ends])),
    )


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


def presets_table(runs: int) -> Iterator[str]:
    """Whole runs, for each way to measure."""
    yield f"whole runs of {STEP_S:g} s steps, lognormal AR(1) noise, {runs} runs each"
    heads = ("CV", "r", "coverage, half-width", "median steps", "precise")
    yield f"{'measure':12}{heads[0]:>6}{heads[1]:>6}{heads[2]:>28}{heads[3]:>14}{heads[4]:>9}"
    for name in PRESETS:
        covered = []
        for variation in VARIATIONS:
            for rho in CORRELATIONS:
                found, steps, precise = of_preset(name, variation, rho, runs)
                covered.append(found.covered)
                cell = f"{found!s:>28}{steps:14.0f}{precise:9.0%}"
                yield f"{name:12}{variation:6.0%}{rho:6.1f}{cell}"
        yield f"{name}: {np.mean(covered):.1%} on average, {min(covered):.1%} at least"


def of_sweeps(spread: float, repetitions: int, sweeps: int) -> tuple[Score, float, float]:
    """Of efficiency; the share called super-linear where it is 1; of best ones that are excluded.

    The best configuration is the one with the fewest device-seconds per image. What pooling and
    speedup do with a frame is done here with arrays.
    """
    generator = np.random.default_rng([int(1000 * spread), repetitions])
    shape = (sweeps, len(EFFICIENCIES), repetitions)
    truth = np.log(EFFICIENCIES)
    strays = np.hypot(spread, OWN_ERROR) * generator.standard_normal(shape)
    own_half = float(quantile(0.975, SWEEP_STEPS - 1)) * OWN_ERROR
    ends: list[tuple[float, float]] = []
    above, excluded = [], []
    for logs in truth[:, None] + strays:
        found = found_spread(logs)
        means = logs.mean(axis=1)
        half = math.sqrt(2) * math.hypot(found.half(repetitions), own_half / math.sqrt(repetitions))
        error = math.sqrt((found.share**2 + OWN_ERROR**2) / repetitions)
        ratio = means[1:] - means[0]
        ends += [(math.exp(one - half), math.exp(one + half)) for one in ratio - truth[1:]]
        above += [one > half for one, true in zip(ratio, truth[1:], strict=True) if true == 0]
        standing = compared_with_best(means, np.full(len(means), error), found.freedom)
        excluded.append(not standing.could_be_best[int(np.argmax(truth))])
    return score(ends, 1.0), float(np.mean(above)), float(np.mean(excluded))


def found_spread(logs: Floats) -> RunSpread:
    """What runs show of the spread between them, shape [configurations, repetitions]."""
    if logs.shape[1] < 2:
        return pooled(np.empty(0), np.empty(0), np.empty(0))
    count = np.full(len(logs), float(logs.shape[1]))
    return pooled(count, logs.var(axis=1, ddof=1), np.full(len(logs), OWN_ERROR**2))


def comparisons_table(sweeps: int) -> Iterator[str]:
    """Figures that compare runs, by the spread between runs and the number of repetitions."""
    yield (
        f"efficiency of {len(EFFICIENCIES)} configurations, {sweeps} sweeps each, whose runs have "
        f"a standard error of {OWN_ERROR:.1%} from their own steps"
    )
    heads = ("spread", "repeat", "coverage, half-width", "super-linear", "best excluded")
    more = f"{'ratio of --compare':>22}{f'any of {CONFIGURATIONS} changed':>18}"
    yield f"{heads[0]:>8}{heads[1]:>8}{heads[2]:>28}{heads[3]:>14}{heads[4]:>15}{more}"
    for spread in SPREADS:
        for repetitions in REPETITIONS:
            found, above, excluded = of_sweeps(spread, repetitions, sweeps)
            generator = np.random.default_rng(repetitions)
            of_two = simulate(np.full(CONFIGURATIONS, spread), repetitions, 10 * sweeps, generator)
            cell = f"{of_two.covered:.1%} ±{of_two.half:.1%}"
            yield (
                f"{spread:8.0%}{repetitions:8}{found!s:>28}{above:14.1%}{excluded:15.1%}"
                f"{cell:>22}{of_two.false_alarms:18.1%}"
            )
    yield (
        f"without repetitions a spread of {ASSUMED_SHARE:.0%} is assumed, by --compare "
        f"{LARGEST_SPREAD:.0%}: right at that, wide below and narrow above"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--preset-runs", type=int, default=1000)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--only", choices=("windows", "presets", "comparisons", "factors"))
    given = parser.parse_args()
    tables = {
        "windows": windows_table(given.runs),
        "presets": presets_table(given.preset_runs),
        "comparisons": comparisons_table(given.sweeps),
        "factors": factors_table(given.preset_runs),
    }
    for name, lines in tables.items():
        if given.only in (None, name):
            for line in lines:
                print(line, flush=True)


if __name__ == "__main__":
    main()
