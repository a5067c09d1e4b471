"""Measures what a run of a sweep costs beyond its steps: from its start to its first step, and from
its last step to its record.

    python benchmarks/sweep_cost.py [--runs 6] [overrides …]

Runs a sweep through the command line, then computes from the records the wall time of each run but
the first, minus the time of all its steps. Target: 1.0 s at most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from dpeval import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    overrides = given.overrides or [
        "dataset=imagenette_like",
        "dataset.image_px=32",
        "num_devices=2",
    ]
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "dpeval.train", "-m", "measure=quick", "analyze=false",
             f"hydra.sweep.dir={folder}", "seed=" + ",".join(map(str, range(given.runs))),
             *overrides],
            cwd=root, check=True,
        )  # fmt: skip
        runs = [
            record.read(Path(folder) / str(number) / "metrics.json") for number in range(given.runs)
        ]
    costs = [run.wall_s - max(sum(rank.step_s) for rank in run.ranks) for run in runs]
    setups = [run.setup.total_s if run.setup else float("nan") for run in runs]
    print(f"first run        {costs[0]:.2f} s")
    print(f"runs after it    median {np.median(costs[1:]):.2f} s, max {max(costs[1:]):.2f} s")
    print(f"  of which until the first step: median {np.median(setups[1:]):.2f} s")
    for run in runs[1:2]:
        if run.setup:
            print(
                "  "
                + ", ".join(f"{name} {value:.2f} s" for name, value in run.setup.parts_s.items())
            )


if __name__ == "__main__":
    main()
