"""How often the medians of steps that a table lists one by one cover the truth; printed by
benchmarks/coverage.py.

The steps follow one another. Of long lists, medians of consecutive steps are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.noise import DRIFTING, MODELLED, OTHERS, Noise
from benchmarks.scoring import Score, score
from dpeval.analysis.csv_import.run_keys import MOST_RUNS, thinned
from dpeval.analysis.csv_import.settle import CONFIGURATION
from dpeval.analysis.pooling.repetitions import median_interval
from dpeval.util.arrays import Floats

LENGTHS = (12, 60, 300, 3000)
SYMMETRIC = [name for name in MODELLED | OTHERS if name not in (DRIFTING, "slow humps")]
"""Noise whose median is its mean."""
VARIATION = 0.10


def of_list(noise: Noise, steps: int, draws: int) -> Score:
    """Of the median of `steps` steps."""
    generator = np.random.default_rng(steps)
    drawn = np.maximum(0.1, 1 + VARIATION * noise(generator, draws, steps))
    return score([median_interval(kept(series))[:2] for series in drawn], 1.0)


def kept(step_s: Floats) -> Floats:
    """The steps that the import of a list keeps."""
    if len(step_s) <= MOST_RUNS:
        return step_s
    rows = pd.DataFrame({"step_s": step_s, "run_key": range(len(step_s)), "rank": 0})
    rows = rows.assign(**dict.fromkeys(CONFIGURATION, 1))
    found: Floats = thinned(rows)[0]["step_s"].to_numpy(dtype=float)
    return found


def table(draws: int) -> Iterator[str]:
    """Coverage, and median half-width with its 97.5 % quantile, by noise and length."""
    yield (
        f"95 % intervals of the median of listed steps, CV {VARIATION:.0%}, {draws} lists each; of "
        f"more than {MOST_RUNS}, medians of consecutive steps are kept"
    )
    yield f"{'noise':20}" + "".join(f"{f'{steps} steps':>26}" for steps in LENGTHS)
    for name in SYMMETRIC:
        found = [of_list((MODELLED | OTHERS)[name], steps, draws) for steps in LENGTHS]
        yield f"{name:20}" + "".join(f"{one!s:>26}" for one in found)
