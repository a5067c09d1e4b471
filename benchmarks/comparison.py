"""How often ``--compare`` calls unchanged sweeps different, and what change it finds.

    python benchmarks/comparison.py [--draws 20000]

Two sweeps of several configurations are drawn with a spread between runs; the second is unchanged,
or one of its configurations is slower. With "unequal", half of the configurations have a tenth of
the spread.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from dpeval.analysis.scaling.compare import FAMILY_ERROR
from dpeval.stats.comparison import detectable, error_of_difference, p_values, quantile
from dpeval.util.arrays import Floats

CONFIGURATIONS = 8
SPREADS = (0.0, 0.01, 0.02, 0.03, 0.05)
REPEATS = (1, 2, 3, 5, 10)
CHANGES = (0.05, 0.10, 0.20)
WITHIN = 0.005
"""Standard error of a run's mean from its own steps."""


@dataclass(frozen=True)
class Outcome:
    """What the comparison said of simulated sweeps."""

    covered: float
    """Probability that the interval of a configuration's ratio holds the truth."""
    half: float
    """Median half-width of that interval."""
    false_alarms: float
    """Probability that any unchanged configuration is called different."""
    power: tuple[float, ...]
    """Probability that the one slower by each of :data:`CHANGES` is found."""
    detectable: float
    """The change that the comparison says it finds in 80 % of cases, as a fraction."""


def simulate(spreads: Floats, repeats: int, draws: int, generator: np.random.Generator) -> Outcome:
    """Draw sweeps and compare them.

    Args:
        spreads: relative standard deviation between runs of each configuration.
        repeats: runs of each configuration in each sweep.
        draws: number of pairs of sweeps.
        generator: source of randomness.
    """
    scale = np.hypot(spreads, WITHIN)[:, None]
    sides = generator.normal(size=(2, draws, len(spreads), repeats)) * scale
    difference = sides[1].mean(axis=-1) - sides[0].mean(axis=-1)
    seen = sides.var(axis=-1, ddof=1).mean(axis=0) if repeats > 1 else np.zeros_like(difference)
    error = error_of_difference(seen, WITHIN**2, repeats, repeats)
    found = []
    for change in (0.0, *CHANGES):
        shift = np.zeros(len(spreads))
        shift[-1] = np.log(1 - change)
        found.append(p_values(difference + shift, error) < FAMILY_ERROR)
    least = float(np.median(detectable(error, FAMILY_ERROR)[..., -1]))
    half = quantile(0.975, error.freedom) * error.value
    return Outcome(
        float((np.abs(difference) <= half).mean()),
        float(np.median(np.sinh(half))),
        float(found[0].any(axis=-1).mean()),
        tuple(float(one[:, -1].mean()) for one in found[1:]),
        1 - float(np.exp(-least)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000)
    draws, generator = parser.parse_args().draws, np.random.default_rng(1)
    print(f"{CONFIGURATIONS} configurations, {draws} draws; family-wise error {FAMILY_ERROR:.0%}")
    powers = "  ".join(f"finds -{change:.0%}" for change in CHANGES)
    heads = f"{'spread':>12}  repeats  ratio's coverage, half-width  any called different"
    print(f"{heads}  {powers}  says it finds (80 %)")
    for kind in ("", " unequal"):
        for spread in SPREADS:
            spreads = np.full(CONFIGURATIONS, spread)
            if kind:
                spreads[: CONFIGURATIONS // 2] /= 10
            for repeats in REPEATS:
                found = simulate(spreads, repeats, draws, generator)
                shares = "  ".join(f"{power:>10.0%}" for power in found.power)
                print(
                    f"{f'{spread:.0%}{kind}':>12}  {repeats:>7}  "
                    f"{found.covered:>16.1%}  ±{found.half:>9.1%}  "
                    f"{found.false_alarms:>20.1%}  "
                    f"{shares}  {f'-{found.detectable:.0%}':>20}"
                )


if __name__ == "__main__":
    main()
