"""Simulated sweeps: is the law that made the data chosen, and are its figures right?

    python benchmarks/laws.py [--draws 300]

Runs of a known law go through the analysis as records do: each has a series of steps with its own
interval, and its mean strays from the truth as runs do. Printed are the law chosen, how often the
true law's misfit is called significant (5 % is right), its median p (0.5 is right), and how often
the 95 % intervals of its parameters hold the truth.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dpeval.analysis.frame import runs_frame
from dpeval.analysis.pooling import repetitions
from dpeval.analysis.scaling import scaling_laws, speedup
from dpeval.analysis.scaling.scaling_laws import AMDAHL, LINEAR, USL, Curve, Law
from dpeval.config import MeasureConfig
from dpeval.stats.steady_state import main_interval
from dpeval.stats.throughput import throughput

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
STEPS, STEP_SPREAD = 20, 0.03
ONE_DEVICE_S = 1.0


@dataclass(frozen=True)
class Scenario:
    """A sweep to simulate."""

    law: Law
    truth: tuple[float, ...]
    repeat: int = 2
    spread: float = 0.02
    """Relative standard deviation of the mean step between runs."""
    batch: int = 96
    """96 images divide by all of :data:`COUNTS`; 32 do not divide by 3, 6 or 12."""
    counts: tuple[int, ...] = COUNTS


def sweep(scenario: Scenario, generator: np.random.Generator) -> pd.DataFrame:
    """The frame of runs of one simulated sweep."""
    devices = np.array(scenario.counts, dtype=float)
    fullest = np.ceil(scenario.batch / devices)
    gains = scenario.law.speedup(devices, scenario.batch / fullest, scenario.truth)
    rows: list[dict[str, Any]] = []
    for count, most, gain in zip(scenario.counts, fullest, gains, strict=True):
        for repetition in range(scenario.repeat):
            strays = np.exp(scenario.spread * generator.standard_normal())
            noise = np.exp(STEP_SPREAD * generator.standard_normal(STEPS))
            series = ONE_DEVICE_S / gain * strays * noise
            own = main_interval(series, "max_steps", MeasureConfig())
            found = throughput(scenario.batch, [series], own)
            rows.append(
                {
                    "status": "ok", "hardware": "cpu", "scaling": "strong", "num_devices": count,
                    "batch": scenario.batch, "images_per_step": scenario.batch,
                    "per_device_batch_max": int(most), "repetition": repetition,
                    "stand_in": False, "oversubscribed": False, "steady": True,
                    "num_nodes": 1, "micro_batches": 1, "threads": 1, "steps": STEPS,
                    "effective_steps": own.effective_samples, "step_s": own.mean,
                    "img_per_s": found.img_per_s, "img_per_s_low": found.low,
                    "img_per_s_high": found.high,
                }
            )  # fmt: skip
    frame = runs_frame.typed({name: [row.get(name) for row in rows] for name in runs_frame.COLUMNS})
    return frame.assign(series="simulated")


def curve(scenario: Scenario, generator: np.random.Generator) -> Curve:
    """What the laws say of one simulated sweep."""
    points = speedup.points(repetitions.pool(sweep(scenario, generator)))
    (found,) = scaling_laws.fit_all(points)
    return found


@dataclass(frozen=True)
class Tally:
    """Over all simulated sweeps of a scenario."""

    chosen: Counter[str]
    misfit_p: list[float]
    """Of the true law."""
    covered: list[bool]
    """Whether the interval of each parameter of the true law holds the truth."""


def tally(scenario: Scenario, draws: int, seed: int = 0) -> Tally:
    generator = np.random.default_rng(seed)
    made = Tally(Counter(), [], [])
    for _ in range(draws):
        found = curve(scenario, generator)
        made.chosen[found.best or "none"] += 1
        fit = next(fit for fit in found.fits if fit.law == scenario.law.name)
        assert fit.misfit_p is not None
        made.misfit_p.append(fit.misfit_p)
        made.covered.extend(
            bool(estimate.low <= true <= estimate.high)
            for estimate, true in zip(fit.parameters.values(), scenario.truth, strict=True)
        )
    return made


def scenarios() -> list[Scenario]:
    base = [
        Scenario(LINEAR, ()),
        Scenario(AMDAHL, (0.05,)),
        Scenario(USL, (0.05, 0.004)),
    ]
    uneven = [replace(one, batch=32) for one in base]
    # One run cannot show the spread between runs: right only where it is what is assumed.
    more = [replace(base[-1], repeat=repeat) for repeat in (1, 5)]
    calm = [replace(one, spread=0.005) for one in base]
    few = [replace(one, counts=(1, 2, 3, 4, 6, 8)) for one in base]
    return [*base, *uneven, *more, *calm, *few]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=300)
    draws = parser.parse_args().draws
    print(
        f"{'truth':8} {'batch':>5} {'counts':>6} {'runs':>4} {'spread':>6} {'median p':>9} "
        f"{'p < 0.05':>9} {'covered':>8}  chosen of {draws}"
    )
    for one in scenarios():
        found = tally(one, draws)
        p = np.array(found.misfit_p)
        covered = f"{np.mean(found.covered):.1%}" if found.covered else "-"
        chosen = ", ".join(f"{law} {count}" for law, count in found.chosen.most_common())
        print(
            f"{one.law.name:8} {one.batch:5} {len(one.counts):6} {one.repeat:4} {one.spread:6.1%} "
            f"{np.median(p):9.2f} {(p < 0.05).mean():9.1%} {covered:>8}  {chosen}",
            flush=True,
        )


if __name__ == "__main__":
    main()
