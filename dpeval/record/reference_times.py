"""Times of the reference work between steps, which show the speed of the machine itself."""

from __future__ import annotations

import numpy as np
from pydantic import model_validator

from dpeval.util.arrays import Bools, Floats
from dpeval.util.frozen import Frozen

PAGES = 256
"""About 0.5 ms. Less than a huge page, which the OS might provide in one fault."""


class ReferenceTimes(Frozen):
    """The times of one rank's reference work, in lists of equal length."""

    step: list[int] = []
    """Number of steps before each reading."""
    product_s: list[float] = []
    """Time of the products of small matrices."""
    page_s: list[float] = []
    """Time to fault in one fresh page."""

    @model_validator(mode="after")
    def _even(self) -> ReferenceTimes:
        if not len(self.step) == len(self.product_s) == len(self.page_s):
            raise ValueError("the lists of reference times differ in length")
        return self

    def counted(self, kept: Bools) -> ReferenceTimes:
        """The same readings, with only the steps counted that `kept` marks."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return self.model_copy(
            update={"step": [int(before[min(step, len(kept))]) for step in self.step]}
        )

    def within(self, first: int, last: int) -> ReferenceTimes:
        """The readings after step `first` and before step `last`."""
        chosen = [i for i, step in enumerate(self.step) if first < step < last]
        return ReferenceTimes(
            step=[self.step[i] for i in chosen],
            product_s=[self.product_s[i] for i in chosen],
            page_s=[self.page_s[i] for i in chosen],
        )

    @property
    def work_s(self) -> Floats:
        """Total time of each reading, s."""
        both: Floats = np.array(self.product_s) + PAGES * np.array(self.page_s)
        return both
