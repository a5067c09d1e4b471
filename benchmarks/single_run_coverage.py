"""How often the intervals of single runs cover the truth; printed by benchmarks/coverage.py.

Windows of fixed length, and the throughput that is computed from them; then whole runs: the steps
of simulated runs are shown to the rule that ends runs, whenever rank 0 asks it, and the intervals
in their records are held against the truth.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.noise import DRIFT, DRIFTING, MODELLED, OTHERS, Noise, drift
from benchmarks.scoring import Score, score, scored_logs
from dpeval.commands.hydra_app import compose
from dpeval.config import MeasureConfig
from dpeval.record.codes import StopReason
from dpeval.stats.intervals import MOST_LOG_HALF, mean_interval, means
from dpeval.stats.record_warnings import of_window
from dpeval.stats.steady_state import (
    are_precise,
    first_steps,
    next_asked,
    nominal_error,
    window,
)
from dpeval.stats.throughput import throughput
from dpeval.util.arrays import Bools, Floats, Ints

LENGTHS = (6, 12, 26, 60, 150)
VARIATION = 0.10
"""Standard deviation of a step in windows of fixed length, over the mean of 1 s."""
PRESETS = ("quick", "standard", "repeated", "rigorous")
VARIATIONS = (0.02, 0.05, 0.14)
STEP_S, COLD_FACTOR = 0.5, 3.0
"""Mean step of a simulated run, s (rank 0 then looks after every step), and its first step."""


def of_fixed(noise: Noise, steps: int, runs: int) -> tuple[Score, Score]:
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


def ended(step_s: Floats, config: MeasureConfig) -> tuple[Ints, Bools]:
    """After how many steps each run ends, and whether because it is precise; shape [runs] each.

    Rank 0 looks whenever a run may be precise (``steps_ahead``), and when its time is up, which
    begins when the first step has finished.

    Args:
        step_s: shape [runs, steps].
        config: precision and limits.
    """
    elapsed_s = np.cumsum(step_s, axis=1) - step_s[:, :1]
    is_late = elapsed_s >= config.time_limit_s
    most = min(step_s.shape[1], config.max_steps)
    counts = np.where(is_late.any(axis=1), np.argmax(is_late, axis=1) + 1, most).clip(max=most)
    precise = np.zeros(len(step_s), dtype=np.bool_)
    asked = next_asked(0, config)
    while asked <= most:
        (going,) = np.nonzero(~precise & (counts >= asked))
        done = going[are_precise(step_s[going, :asked], config)]
        counts[done], precise[done] = asked, True
        asked = next_asked(asked, config)
    return counts, precise


@dataclass(frozen=True)
class Runs:
    """Whole runs of one kind, with a cold first step."""

    preset: str
    noise: str
    variation: float
    """Standard deviation of a step, over its mean."""

    def steps(self, runs: int) -> Floats:
        """More steps, s, than `runs` runs take, shape [runs, steps]."""
        config = preset(self.preset)
        most = min(config.max_steps, int(2 * config.time_limit_s / STEP_S))
        generator = np.random.default_rng([int(1000 * self.variation), len(self.noise)])
        made = (MODELLED | OTHERS)[self.noise](generator, runs, most)
        step_s: Floats = STEP_S * (np.maximum(0.1, 1 + self.variation * made) + self._line(most))
        step_s[:, 0] *= COLD_FACTOR
        return step_s

    def _line(self, steps: int) -> Floats:
        """What a drift adds to each step, over the mean."""
        return DRIFT / 100 * np.arange(steps, dtype=np.float64) * (self.noise == DRIFTING)

    def simulated(self, runs: int) -> Simulated:
        """What `runs` runs record."""
        config, step_s = preset(self.preset), self.steps(runs)
        counts, precise = ended(step_s, config)
        line = self._line(step_s.shape[1])
        firsts = np.zeros_like(counts)
        for count in np.unique(counts):
            these = counts == count
            firsts[these] = first_steps(step_s[these, :count], config.min_warmup_steps)
        sizes = counts - firsts
        mean, half, effective = np.empty((3, runs))
        for size, is_precise in {*zip(sizes.tolist(), precise.tolist(), strict=True)}:
            (those,) = np.nonzero((sizes == size) & (precise == is_precise))
            error = nominal_error(_reason(is_precise), size, config.min_steps)
            main = np.stack([step_s[run, firsts[run] : counts[run]] for run in those])
            known = means(main, 1 - error)
            mean[those], effective[those] = known.mean, known.effective
            half[those] = np.minimum(known.half / known.mean, MOST_LOG_HALF)
        ends = zip(firsts.tolist(), counts.tolist(), strict=True)
        truth = STEP_S * (1 + np.array([line[first:count].mean() for first, count in ends]))
        made = Simulated(counts, precise, mean, half, effective, truth)
        (missed,) = np.nonzero(~made.covered)
        return dataclasses.replace(made, told=self._told(step_s, made, missed))

    def _told(self, step_s: Floats, made: Simulated, those: Ints) -> float:
        """The share of some runs whose records carry a warning of their window; NaN of none."""
        config = preset(self.preset)
        asked = dataclasses.asdict(config)
        told = []
        for run in those.tolist():
            series = step_s[run, : made.counts[run]]
            found = window([series], _reason(made.precise[run]), config)
            told.append(bool(of_window(found, series[found.first :], asked)))
        return float(np.mean(told)) if told else math.nan


def _reason(is_precise: bool) -> StopReason:
    return "precision" if is_precise else "time_limit"


@dataclass(frozen=True)
class Simulated:
    """Runs as they ended; arrays have one entry per run."""

    counts: Ints
    precise: Bools
    mean_s: Floats
    half: Floats
    """Half-width of the 95 % interval of log(mean_s)."""
    effective: Floats
    """Independent steps that a window is worth."""
    truth_s: Floats
    told: float = math.nan
    """The share of intervals that miss the truth whose records carry a warning of it."""

    @property
    def error(self) -> Floats:
        """Of log(mean_s)."""
        return np.log(self.mean_s / self.truth_s)

    @property
    def covered(self) -> Bools:
        """Whether each interval holds the truth."""
        return np.asarray(np.abs(self.error) <= self.half)

    def scored(self) -> Score:
        """Of the mean step."""
        return scored_logs(self.error, self.half)


def windows_table(runs: int) -> Iterator[str]:
    """Windows of fixed length."""
    yield f"95 % intervals of windows of fixed length, CV {VARIATION:.0%}, {runs} series each:"
    yield "coverage, median half-width (its 97.5 % quantile); the throughput's coverage"
    yield f"{'noise':20}" + "".join(f"{f'{steps} steps':>36}" for steps in LENGTHS)
    for name, noise in (MODELLED | OTHERS).items():
        cells = []
        for steps in LENGTHS:
            of_step, of_rate = of_fixed(noise, steps, runs)
            cells.append(f"{of_step}; {of_rate.covered:6.1%}")
        yield f"{name:20}" + "".join(f"{cell:>36}" for cell in cells)
