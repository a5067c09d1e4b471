"""How a value and its interval are printed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dpeval
from dpeval.util.display.ranges import decimals_of, percent, percents, span, with_span


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


@pytest.mark.parametrize(
    ("share", "decimals", "signed", "shown"),
    [
        (0.954, 0, False, "95 %"),
        (0.954, 1, True, "+95.4 %"),
        (-0.0004, 0, False, "0 %"),
        (-0.07, 0, True, "−7 %"),
        (0.0312, None, False, "3.1 %"),
        (0.02, None, False, "2 %"),
    ],
)
def test_a_share_is_printed_in_one_style(
    share: float, decimals: int | None, signed: bool, shown: str
) -> None:
    assert percent(share, decimals, signed=signed) == shown


def test_the_ends_of_a_range_of_shares_that_are_printed_alike_are_printed_once() -> None:
    assert percents(0.051, 0.049) == "5 %"
    assert percents(0.05, 0.31) == "5–31 %"


def test_percent_is_a_hundred_times_the_value() -> None:
    assert span(0.8, 0.75, 0.85, 1, as_percent=True) == "± 5.0 %"
    assert span(0.8, 0.7, 0.95, 0, as_percent=True) == "(70 to 95 %)"


def test_no_other_code_prints_percentages() -> None:
    others = [
        path.name
        for path in Path(dpeval.__file__).parent.rglob("*.py")
        if re.search(r":[+,]?\.\d%\}", path.read_text(encoding="utf-8"))
    ]
    assert others == []
