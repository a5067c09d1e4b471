"""The reference work that CPU ranks do between steps.

:mod:`dpeval.stats.machine_speed` evaluates its times.
"""

from __future__ import annotations

import mmap
import time

import numpy as np
import torch

from dpeval.record.reference_times import PAGES, ReferenceTimes
from dpeval.util.arrays import Floats

SIDE, PRODUCTS = 96, 40
"""Three matrices of 36 KiB fit into a core's cache; their products take about 0.7 ms."""
INTERVAL_S = 0.5
COST_SHARE = 0.0025
"""Share of the time in steps. If ranks share cores, the work takes longer and is done less
often."""


class ReferenceWork:
    """Does the reference work and records its times."""

    def __init__(self) -> None:
        self._left, self._right = (torch.full((SIDE, SIDE), 1 / SIDE) for _ in range(2))
        self._product = torch.empty(SIDE, SIDE)
        self.pause_s = 0.0
        """Time in steps until the work is due again, s."""
        self._step: list[int] = []
        self._times: list[tuple[float, float]] = []
        # The first execution selects kernels and allocates memory.
        self._once()

    def is_due(self, step_s: Floats) -> bool:
        """Whether enough time in steps has passed since the last time; `step_s`: all steps, s."""
        done = self._step[-1] if self._step else 0
        return float(step_s[done:].sum()) >= self.pause_s

    def do(self, steps: int) -> None:
        """Do the work once, after `steps` steps."""
        begin_s = time.monotonic()
        self._step.append(steps)
        self._times.append(self._once())
        self.pause_s = max(INTERVAL_S, (time.monotonic() - begin_s) / COST_SHARE)

    @property
    def readings(self) -> ReferenceTimes:
        """All times so far."""
        return ReferenceTimes(
            step=list(self._step),
            product_s=[times[0] for times in self._times],
            page_s=[times[1] for times in self._times],
        )

    def _once(self) -> tuple[float, float]:
        torch.mm(self._left, self._right, out=self._product)
        begin_s = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(self._left, self._right, out=self._product)
        product_s = time.perf_counter() - begin_s
        return product_s, _page_s()


def _page_s() -> float:
    """Time to fault in one fresh page, s."""
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as fresh:
        pages = np.frombuffer(fresh, dtype=np.uint8)
        begin_s = time.perf_counter()
        pages[:: mmap.PAGESIZE] = 1
        elapsed_s = time.perf_counter() - begin_s
        del pages
    return elapsed_s / PAGES
