"""Types of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def rounded(seconds: Floats) -> list[float]:
    """Times rounded to nanoseconds: no clock is finer, and records stay small."""
    return [round(float(value), 9) for value in seconds]
