"""How often ratios by rounds cover the truth; printed by benchmarks/coverage.py.

Two runs take turns under a disturbance that both share. After some rounds, and whenever there are
a tenth more, it is asked how well their ratio is known; they end when it was precise twice in a row
(:mod:`dpeval.sitting.settling`), or at a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.noise import DRIFTING, MODELLED, OTHERS, Noise
from benchmarks.scoring import Score, autoregressive, scored_logs
from dpeval.stats.comparison import quantile
from dpeval.stats.intervals import means
from dpeval.stats.paired import STOPPED_ERROR, Turns, contrast
from dpeval.util.arrays import Floats, Ints

PRECISION = 0.05
"""Half-width at which a ratio is known: that of measure=quick."""
COMMON, MEMORY = 0.15, 0.8
"""Standard deviation, and correlation from round to round, of what slows both runs alike."""
MOST_ROUNDS, GROWTH = 400, 0.1
FEWEST = (6, 20)
"""Rounds after which the ratio is first asked for: few where turns have several steps."""
VARIATIONS = (0.05, 0.12)
SITTINGS, OF_SITTINGS = (1, 3, 5), 0.02
"""Sittings in which a lever was tried, and how much its ratio strays between them."""


@dataclass(frozen=True)
class Ended:
    """Pairs of runs that took turns until their ratio was known."""

    over: Floats
    """Mean step of every round, s, shape [draws, rounds]; so is the next."""
    under: Floats
    counts: Ints
    """Rounds after which each pair ended."""
    log: Floats
    """Logarithm of each ratio."""
    half: Floats
    """Half-width of its 95 % interval."""


def ended(
    noise: Noise, variation: float, fewest: int, draws: int, generator: np.random.Generator
) -> Ended:
    """Two equal runs that take turns.

    Args:
        noise: each run's own, from round to round.
        variation: its standard deviation, over the mean.
        fewest: rounds after which the ratio is first asked for.
        draws: how many pairs of runs.
        generator: of everything random.
    """
    common = np.exp(COMMON * autoregressive(MEMORY, generator, draws, MOST_ROUNDS))
    over, under = (
        common * np.maximum(0.1, 1 + variation * noise(generator, draws, MOST_ROUNDS))
        for _ in range(2)
    )
    log, half, counts = np.zeros(draws), np.zeros(draws), np.zeros(draws, dtype=np.int64)
    was_narrow, going, count = np.zeros(draws, dtype=np.bool_), np.arange(draws), fewest
    while len(going):
        x, y = over[going, :count], under[going, :count]
        relative = x / x.mean(axis=1, keepdims=True) - y / y.mean(axis=1, keepdims=True)
        log[going] = np.log(x.mean(axis=1) / y.mean(axis=1))
        half[going] = means(1 + relative, 1 - STOPPED_ERROR).half
        counts[going] = count
        is_narrow = half[going] <= math.asinh(PRECISION)
        is_done = (is_narrow & was_narrow[going]) | (count == MOST_ROUNDS)
        was_narrow[going] = is_narrow
        going = going[~is_done]
        count = min(MOST_ROUNDS, count + max(1, int(GROWTH * count)))
    return Ended(over, under, counts, log, half)


def of_ratio(noise: Noise, variation: float, fewest: int, draws: int) -> tuple[Score, float]:
    """The interval of the ratio of two equal runs as they end, and the median of their rounds.

    The arguments are those of :func:`ended`.
    """
    found = ended(noise, variation, fewest, draws, np.random.default_rng(3))
    return scored_logs(found.log, found.half), float(np.median(found.counts))


def of_gain(noise: Noise, variation: float, sittings: int, draws: int) -> Score:
    """The interval of a lever's gain: of two configurations in one sitting or several.

    In each sitting a process of its own is faster or slower as a whole, by :data:`OF_SITTINGS`; the
    other arguments are those of :func:`ended`.
    """
    generator = np.random.default_rng(sittings)
    made = [ended(noise, variation, FEWEST[-1], draws, generator) for _ in range(sittings)]
    strays = np.exp(OF_SITTINGS * generator.standard_normal((sittings, draws)) * (sittings > 1))
    logs, halves = [], []
    for draw in range(draws):
        sides: list[list[Turns]] = [[], []]
        for number, one in enumerate(made):
            rounds = range(one.counts[draw])
            for side, times in zip(
                sides, (strays[number, draw] * one.over, one.under), strict=True
            ):
                by_round = dict(zip(rounds, times[draw].tolist(), strict=False))
                side.append(Turns(str(number), 1.0, by_round, "ratios"))
        found = contrast(*sides)
        assert found is not None
        logs.append(found.value)
        halves.append(float(quantile(0.975, found.freedom)) * found.error)
    return scored_logs(np.array(logs), np.array(halves))


def gains_table(draws: int) -> Iterator[str]:
    """Coverage and half-width of levers' gains, by the runs' own noise and the sittings."""
    yield (
        f"95 % intervals of a lever's gain, from sittings whose rounds ended at ±{PRECISION:.0%} "
        f"(CV {VARIATIONS[0]:.0%}), {draws} draws each: coverage, median half-width. Between "
        f"several sittings the ratio strays by {OF_SITTINGS:.0%}."
    )
    heads = [f"{count} sitting{'s' * (count > 1)}" for count in SITTINGS]
    yield f"{'noise of each run':20}" + "".join(f"{head:>20}" for head in heads)
    for name, noise in {k: one for k, one in (MODELLED | OTHERS).items() if k != DRIFTING}.items():
        found = [of_gain(noise, VARIATIONS[0], count, draws) for count in SITTINGS]
        cells = [f"{one.covered:.1%} ±{one.median:.1%}" for one in found]
        yield f"{name:20}" + "".join(f"{cell:>20}" for cell in cells)


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
