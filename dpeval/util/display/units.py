"""Units of size, and the factor from median absolute deviation to standard deviation."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30
MAD_TO_STD = 1.482602218505602
"""A normal variable's standard deviation over its median absolute deviation, 1 / Φ⁻¹(3/4)."""
