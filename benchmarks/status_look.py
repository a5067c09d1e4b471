"""Measures how long ``python -m dpeval.status`` takes, in a new process each time.

    python benchmarks/status_look.py outputs/<study>/<time> [--looks 10]

The sweep must have been submitted to a scheduler that this machine can query. Target on an idle
machine: 2 s for a sweep of 24 runs. A test checks how often a look queries the scheduler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--looks", type=int, default=10)
    given = parser.parse_args()
    looks_s = []
    for _ in range(given.looks):
        begin_s = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dpeval.status", str(given.sweep.absolute())],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        looks_s.append(time.perf_counter() - begin_s)
    print(f"a look takes {np.median(looks_s):.2f} s in the median, {max(looks_s):.2f} s at most")


if __name__ == "__main__":
    main()
