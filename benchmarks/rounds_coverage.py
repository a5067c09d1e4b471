"""How often ratios by rounds cover the truth; printed by benchmarks/coverage.py.

Two runs take turns under a disturbance that both share. After some rounds, and whenever there are
a tenth more, it is asked how well their ratio is known; they end when it was precise twice in a row
(:mod:`dpeval.sitting.settling`), or at a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from benchmarks.noise import DRIFTING, MODELLED, OTHERS, Noise
from benchmarks.scoring import Score, autoregressive, score
from dpeval.stats.intervals import means
from dpeval.stats.paired import STOPPED_ERROR

PRECISION = 0.05
"""Half-width at which a ratio is known: that of measure=quick."""
COMMON, MEMORY = 0.15, 0.8
"""Standard deviation, and correlation from round to round, of what slows both runs alike."""
MOST_ROUNDS, GROWTH = 400, 0.1
FEWEST = (6, 20)
"""Rounds after which the ratio is first asked for: few where turns have several steps."""
VARIATIONS = (0.05, 0.12)


def of_ratio(noise: Noise, variation: float, fewest: int, draws: int) -> tuple[Score, float]:
    """The interval of the ratio of two equal runs as they end, and the median of their rounds.

    Args:
        noise: each run's own, from round to round.
        variation: its standard deviation, over the mean.
        fewest: rounds after which the ratio is first asked for.
        draws: how many pairs of runs.
    """
    generator = np.random.default_rng(3)
    common = np.exp(COMMON * autoregressive(MEMORY, generator, draws, MOST_ROUNDS))
    over, under = (
        common * np.maximum(0.1, 1 + variation * noise(generator, draws, MOST_ROUNDS))
        for _ in range(2)
    )
    log, half, counts = np.zeros(draws), np.zeros(draws), np.zeros(draws)
    was_narrow, going, count = np.zeros(draws, dtype=np.bool_), np.arange(draws), fewest
    while len(going):
        x, y = over[going, :count], under[going, :count]
        relative = x / x.mean(axis=1, keepdims=True) - y / y.mean(axis=1, keepdims=True)
        log[going] = np.log(x.mean(axis=1) / y.mean(axis=1))
        half[going] = means(1 + relative, 1 - STOPPED_ERROR).half
        counts[going] = count
        is_narrow = half[going] <= math.asinh(PRECISION)
        ended = (is_narrow & was_narrow[going]) | (count == MOST_ROUNDS)
        was_narrow[going] = is_narrow
        going = going[~ended]
        count = min(MOST_ROUNDS, count + max(1, int(GROWTH * count)))
    ends = zip(np.exp(log - half).tolist(), np.exp(log + half).tolist(), strict=True)
    return score(list(ends), 1.0), float(np.median(counts))


def table(draws: int) -> Iterator[str]:
    """Coverage, median half-width and rounds, by the runs' own noise."""
    yield (
        f"95 % intervals of ratios that ended their rounds at ±{PRECISION:.0%}, {draws} draws "
        "each: coverage, median half-width, median rounds"
    )
    cases = [(fewest, variation) for fewest in FEWEST for variation in VARIATIONS]
    heads = [f"from {fewest} rounds, CV {variation:.0%}" for fewest, variation in cases]
    yield f"{'noise of each run':20}" + "".join(f"{head:>26}" for head in heads)
    # A drift of the machine is common to both.
    for name, noise in {k: one for k, one in (MODELLED | OTHERS).items() if k != DRIFTING}.items():
        found = [of_ratio(noise, variation, fewest, draws) for fewest, variation in cases]
        cells = [f"{one.covered:.1%} ±{one.median:.1%}, {count:.0f}" for one, count in found]
        yield f"{name:20}" + "".join(f"{cell:>26}" for cell in cells)
