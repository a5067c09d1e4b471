"""How a value and its interval are printed."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.util.display.ranges import decimals_of, span, with_span


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (26.574, 26.15, 27.0, "26.6 ± 0.4"),
        (42.28, 25.5, 110.1, "42.3 (25.5 to 110.1)"),
        (1.0, 1.0, 1.0, "1.00 ± 0.00"),
        (1000.0, 999.9, 1000.1, "1000 ± <1"),
        (1.0, math.nan, math.nan, "1.00 (interval unknown)"),
        (1.0, 0.5, math.inf, "1.00 (interval unknown)"),
    ],
)
def test_a_symmetric_range_is_a_half_width_and_any_other_has_both_ends(
    value: float, low: float, high: float, shown: str
) -> None:
    assert with_span(value, low, high) == shown


@given(value=st.floats(0.01, 1e4), half=st.floats(0, 3))
def test_what_is_printed_is_the_range_to_the_printed_digits(value: float, half: float) -> None:
    low, high = value * math.exp(-half), value * math.exp(half)
    places = decimals_of(value)
    text, unit = span(value, low, high, places), 10.0**-places
    numbers = [float(found) for found in re.findall(r"[\d.]+", text.replace("<", ""))]
    if text.startswith("±"):
        assert abs(value - low - numbers[0]) <= unit
        assert abs(high - value - numbers[0]) <= unit
    else:
        assert numbers == pytest.approx([low, high], abs=0.51 * unit)


def test_percent_is_a_hundred_times_the_value() -> None:
    assert span(0.8, 0.75, 0.85, 1, percent=True) == "± 5.0 %"
    assert span(0.8, 0.7, 0.95, 0, percent=True) == "(70 to 95 %)"
