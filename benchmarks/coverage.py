"""How often the intervals that dpeval prints cover the truth, and how wide they are.

    python benchmarks/coverage.py [--draws 1000]
        [--only presets windows rounds gains lists comparisons factors laws]

One table (``presets``) has every interval, by preset and noise: step, throughput, speedup,
efficiency, the ratio of ``--compare``, factors, and the parameters of laws. It takes ten minutes on
one core. The other tables vary what it holds fixed: the number of steps of a window; the rounds
of a ratio, and of a lever's gain; steps that a table lists one by one; the spread
between runs and their repetitions, with how often an efficiency of 1 is called super-linear, the
best configuration excluded, and any of several unchanged ones different
(``benchmarks/comparison.py`` also shows which changes are found); rounds and repetitions, for
factors; and sweeps, for laws.

Every table is a generator of lines. A new figure is a function that simulates what it is made of,
and gives :func:`benchmarks.scoring.score` its intervals (low, high) and the truth; its table is
named in :func:`main`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator

import numpy as np

from benchmarks import laws
from benchmarks.comparison import CONFIGURATIONS, simulate
from benchmarks.factor_coverage import table as factors_table
from benchmarks.list_coverage import table as lists_table
from benchmarks.preset_coverage import laws_table as preset_laws
from benchmarks.preset_coverage import table as presets_table
from benchmarks.rounds_coverage import gains_table
from benchmarks.rounds_coverage import table as rounds_table
from benchmarks.scoring import Score, score
from benchmarks.single_run_coverage import windows_table
from dpeval.analysis.pooling.run_spread import ASSUMED_SHARE, RunSpread, pooled
from dpeval.stats.best import Differences, compared_with_best
from dpeval.stats.comparison import LARGEST_SPREAD, quantile
from dpeval.util.arrays import Floats

EFFICIENCIES = (1.0, 1.0, 1.0, 1.01)
"""Of the configurations of a sweep; the first is the baseline."""
SPREADS, REPETITIONS = (0.0, 0.02, 0.05), (1, 2, 3, 5)
OWN_ERROR, SWEEP_STEPS = 0.005, 60
"""Standard error of a run's mean step, as far as its own steps tell it, and those steps."""


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
        standing = compared_with_best(
            Differences.of_independent(means, np.full(len(means), error), found.freedom)
        )
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


def laws_table(draws: int) -> Iterator[str]:
    """Parameters of the true law, by scenario."""
    yield f"parameters of scaling laws, {draws} sweeps each"
    yield f"{'law':8}{'batch':>6}{'counts':>7}{'repeat':>7}{'spread':>8}{'coverage':>10}"
    for one in laws.scenarios():
        if one.truth:
            covered = np.mean(laws.tally(one, draws).covered)
            runs = f"{len(one.counts):7}{one.repeat:7}{one.spread:8.1%}"
            yield f"{one.law.name:8}{one.batch:6}{runs}{covered:10.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    names = (
        "presets", "windows", "rounds", "gains", "lists", "comparisons", "factors", "laws",
    )  # fmt: skip
    parser.add_argument("--only", choices=names, nargs="+", default=["presets"])
    given = parser.parse_args()
    tables = {
        "presets": itertools.chain(presets_table(given.draws), preset_laws(given.draws)),
        "windows": windows_table(2 * given.draws),
        "rounds": rounds_table(given.draws),
        "gains": gains_table(given.draws),
        "lists": lists_table(given.draws),
        "comparisons": comparisons_table(2 * given.draws),
        "factors": factors_table(given.draws),
        "laws": laws_table(given.draws),
    }
    for name in given.only:
        for line in tables[name]:
            print(line, flush=True)


if __name__ == "__main__":
    main()
