"""How long the reference work between steps took: how fast the machine itself was."""

from __future__ import annotations

import numpy as np
from pydantic import model_validator

from dpeval.util.arrays import Floats
from dpeval.util.frozen import Frozen

PAGES = 256
"""About 0.5 ms; less than a huge page, which the system might give in their place."""


class ReferenceTimes(Frozen):
    """The times of one rank's reference work; the lists are equally long."""

    step: list[int] = []
    """The number of steps taken before each reading."""
    product_s: list[float] = []
    """Time of the products of small matrices."""
    page_s: list[float] = []
    """Time to take one page from the OS and touch it."""

    @model_validator(mode="after")
    def _even(self) -> ReferenceTimes:
        if not len(self.step) == len(self.product_s) == len(self.page_s):
            raise ValueError("the lists of fixed work differ in length")
        return self

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
        """Per reading, the time of all its work, s."""
        both: Floats = np.array(self.product_s) + PAGES * np.array(self.page_s)
        return both
