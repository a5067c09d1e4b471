"""Compares speedups of runs that take turns with those of runs one after another.

    python -m benchmarks.interleaving [--minutes 30] [--hog] [--period 20] [overrides …]

Sweeps of both orders alternate, each with a minute for its steps, until the time is up. Printed
are, for each batch, how far the speedup spreads between sweeps of one order, the ratio of the two
spreads, and how many of the intervals of single sweeps hold the speedup over all sweeps of both
orders; and whether the bounds hold: a spread of at most 0.6 times where the machine's speed wanders
(a spread of sequential sweeps above 3 %), 1.05 times where it does not, a third with a hog; 93 to
97 % of the intervals.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import dpeval
from benchmarks.verdict import share_interval, spread_ratio, verdict

ORDERS = ("sequential", "interleaved")
DEFAULTS = ("dataset=imagenette_like", "dataset.image_px=64", "num_devices=1,2", "batch=16,32")
WANDERS = 0.03
"""Spread of sequential sweeps above which the speed of the machine wanders."""
MOST_OVER = {"hog": 1 / 3, "wandering": 0.6, "quiet": 1.05}
"""Bounds on the interleaved spread over the sequential one."""
COVERED = (0.93, 0.97)
RUNS = 4
"""Runs of the default sweep; each has a share of a sweep's minute."""
PERIODS_S = (5.0, 60.0)
"""Between which a hog's periods are drawn, evenly in their logarithm."""
HOG = """
import os, random, sys, time
cpu, now_s, low_s, high_s = int(sys.argv[1]), *map(float, sys.argv[2:5])
os.sched_setaffinity(0, [cpu])
# The same periods on all CPUs, in step: what slows one rank slows all.
periods = random.Random(0)
while os.getppid() == int(sys.argv[5]):
    period_s = low_s * (high_s / low_s) ** periods.random()
    while time.monotonic() < now_s + period_s / 2:
        pass
    now_s += period_s
    time.sleep(max(0, now_s - time.monotonic()))
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
    parser.add_argument(
        "--minutes", type=float, default=30.0,
        help="no four further sweeps begin after so long; two of each order take place anyway",
    )  # fmt: skip
    parser.add_argument("--hog", action="store_true", help="beside a hog on all cores")
    parser.add_argument(
        "--period", type=float, default=0.0,
        help=f"of the hog, s; default: drawn from {PERIODS_S[0]:g} to {PERIODS_S[1]:g} s",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    found: dict[tuple[str, int], Speedups] = defaultdict(Speedups)
    beside = hogs(given.period) if given.hog else nullcontext()
    with beside, tempfile.TemporaryDirectory() as folder:
        end_s = time.monotonic() + 60 * given.minutes
        for number in itertools.count():
            # ABBA: neither order is always first, and both are equally often.
            if number % 4 == 0 and number and time.monotonic() > end_s:
                break
            order = ORDERS[(number + number // 2) % 2]
            place = Path(folder) / str(number)
            sweep(order, place, given.overrides or list(DEFAULTS))
            for batch, point in points(place).items():
                speedups = found[order, batch]
                speedups.values.append(point[0])
                speedups.ends.append(point[1:])
                print(f"{number:3d} {order:11s} batch {batch}: "
                      f"{point[0]:.3f} ({point[1]:.3f} to {point[2]:.3f})", flush=True)  # fmt: skip
    report(found, is_hogged=given.hog)


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
    """A process on every core that is busy for half of each period.

    Args:
        period_s: the period; 0: drawn anew each time from :data:`PERIODS_S`.
    """
    ends_s = (period_s, period_s) if period_s else PERIODS_S
    told = [str(value) for value in (time.monotonic(), *ends_s, os.getpid())]
    started = [
        subprocess.Popen([sys.executable, "-c", HOG, str(cpu), *told])
        for cpu in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def report(found: dict[tuple[str, int], Speedups], *, is_hogged: bool) -> None:
    """Print the spreads of both orders, how well the intervals hold, and what keeps its bound."""
    for batch in sorted({batch for _, batch in found}):
        logs = np.concatenate([np.log(found[order, batch].values) for order in ORDERS])
        truth = math.exp(float(logs.mean()))
        spreads = {order: found[order, batch].spread for order in ORDERS}
        print(f"\nbatch {batch}: speedup {truth:.3f} over all sweeps")
        for order in ORDERS:
            one = found[order, batch]
            held = sum(low <= truth <= high for low, high in one.ends)
            ends = share_interval(held, len(one.ends))
            width = np.median([math.log(high / low) / 2 for low, high in one.ends])
            print(
                f"  {order:11s} spread {spreads[order]:6.1%}, median interval ± {width:.1%}, "
                f"{held} of {len(one.ends)} hold it ({COVERED[0]:.0%} to {COVERED[1]:.0%}: "
                f"{verdict(*ends, least=COVERED[0], most=COVERED[1])})"
            )
        over, under = (found[order, batch].values for order in reversed(ORDERS))
        kind = "hog" if is_hogged else "wandering" if spreads["sequential"] > WANDERS else "quiet"
        ratio, *between = spread_ratio(over, under)
        print(
            f"  interleaved over sequential: {ratio:.2f} ({between[0]:.2f} to {between[1]:.2f}); "
            f"at most {MOST_OVER[kind]:.2f} ({kind}): {verdict(*between, most=MOST_OVER[kind])}"
        )


if __name__ == "__main__":
    main()
