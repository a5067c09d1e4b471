"""Compares speedups of runs that take turns with those of runs one after another.

    python benchmarks/interleaving.py [--minutes 10] [--hog 20] [overrides …]

Sweeps of both orders alternate, each with the same time for its steps. Printed are, for each batch,
how far the speedup spreads between sweeps of one order, the ratio of the two spreads, and how many
of the intervals of single sweeps hold the speedup over all sweeps of both orders. Targets: a
spread of at most 0.6 times where the machine's speed wanders, 1.05 times where it does not, a third
with a hog; 93 to 97 % of the intervals.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import dpeval

ORDERS = ("sequential", "interleaved")
DEFAULTS = ("dataset=imagenette_like", "dataset.image_px=64", "num_devices=1,2", "batch=16,32")
RUNS = 4
"""Runs of the default sweep; each has a share of a sweep's minute."""
HOG = """
import os, sys, time
cpu, period_s = int(sys.argv[1]), float(sys.argv[2])
os.sched_setaffinity(0, [cpu])
while os.getppid() != 1:
    # In step on all CPUs: what slows one rank slows all.
    if time.time() % period_s < period_s / 2:
        pass
    else:
        time.sleep(0.01)
"""


@dataclass
class Speedups:
    """The speedups of one order and batch, a sweep each."""

    values: list[float] = field(default_factory=list[float])
    ends: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @property
    def spread(self) -> float:
        """Standard deviation of their logarithms."""
        return float(np.log(self.values).std(ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10, help="sweeps of each order")
    parser.add_argument("--hog", type=float, default=0.0, help="period of a hog on all cores, s")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    found: dict[tuple[str, int], Speedups] = defaultdict(Speedups)
    with hogs(given.hog), tempfile.TemporaryDirectory() as folder:
        for number in range(2 * given.minutes):
            # ABBA: neither order is always first.
            order = ORDERS[(number + number // 2) % 2]
            place = Path(folder) / str(number)
            sweep(order, place, given.overrides or list(DEFAULTS))
            for batch, point in points(place).items():
                speedups = found[order, batch]
                speedups.values.append(point[0])
                speedups.ends.append(point[1:])
                print(f"{number:3d} {order:11s} batch {batch}: "
                      f"{point[0]:.3f} ({point[1]:.3f} to {point[2]:.3f})", flush=True)  # fmt: skip
    report(found)


def sweep(order: str, folder: Path, overrides: list[str]) -> None:
    """One sweep whose runs each have a share of a minute."""
    subprocess.run(
        [sys.executable, "-m", "dpeval.train", "-m", "measure=quick", "analyze=false",
         f"sweep.order={order}", f"hydra.sweep.dir={folder}", f"measure.time_limit_s={60 / RUNS}",
         "measure.rel_precision=1e-4", "measure.max_steps=20000", *overrides],
        cwd=Path(__file__).resolve().parents[1], check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def points(folder: Path) -> dict[int, tuple[float, float, float]]:
    """Per batch, the speedup on the most devices and its interval."""
    table = dpeval.scaling(dpeval.read(folder))
    most = table[table["num_devices"] == table["num_devices"].max()]
    names = ["speedup", "speedup_low", "speedup_high"]
    return {
        int(row["batch"]): (float(row[names[0]]), float(row[names[1]]), float(row[names[2]]))
        for _, row in most.iterrows()
    }


@contextmanager
def hogs(period_s: float) -> Iterator[None]:
    """A process on every core that is busy for half of each period; none if that is 0."""
    started = [
        subprocess.Popen([sys.executable, "-c", HOG, str(cpu), str(period_s)])
        for cpu in (sorted(os.sched_getaffinity(0)) if period_s else [])
    ]
    time.sleep(0.5 * bool(started))
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def report(found: dict[tuple[str, int], Speedups]) -> None:
    """Print the spreads of both orders and how well the intervals hold."""
    for batch in sorted({batch for _, batch in found}):
        logs = np.concatenate([np.log(found[order, batch].values) for order in ORDERS])
        truth = math.exp(float(logs.mean()))
        spreads = {order: found[order, batch].spread for order in ORDERS}
        print(f"\nbatch {batch}: speedup {truth:.3f} over all sweeps")
        for order in ORDERS:
            one = found[order, batch]
            held = np.mean([low <= truth <= high for low, high in one.ends])
            width = np.median([math.log(high / low) / 2 for low, high in one.ends])
            print(
                f"  {order:11s} spread {spreads[order]:6.1%}, median interval ± {width:.1%}, "
                f"{held:.0%} of {len(one.ends)} hold it"
            )
        print(
            f"  interleaved over sequential: {spreads['interleaved'] / spreads['sequential']:.2f}"
        )


if __name__ == "__main__":
    main()
