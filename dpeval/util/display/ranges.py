"""A value with its interval as text: ``26.57 ± 0.42``, or ``26.57 (22.10 to 38.40)``."""

from __future__ import annotations

import math

UNKNOWN = "(interval unknown)"


def decimals_of(value: float) -> int:
    """Decimal places that show `value` with three significant digits."""
    return max(0, 2 - math.floor(math.log10(max(abs(value), 1e-9))))


def number(value: float, places: int | None = None) -> str:
    """`value` with thousands separated; to three significant digits unless told the places."""
    shown = decimals_of(value) if places is None else places
    if shown == 0 and places is None and abs(value) >= 1000:
        value = float(f"{value:.3g}")
    return f"{value:,.{shown}f}"


def percent(share: float, decimals: int | None = 0, *, signed: bool = False) -> str:
    """`share` as people read it: ``95 %``.

    Args:
        share: 1 for the whole.
        decimals: decimal places to print; None: as many as two significant digits take.
        signed: print a plus sign, too.
    """
    form = ".2g" if decimals is None else f".{decimals}f"
    return f"{100 * share:{'+' * signed}z{form}} %".replace("-", "−")


def percents(low: float, high: float) -> str:
    """The ends of an interval of shares: ``8–16 %``, ``−2 to 6 %`` where one is negative."""
    ends = [percent(end).removesuffix(" %") for end in (low, high)]
    joint = " to " if any(end.startswith("−") for end in ends) else "–"
    return f"{joint.join(dict.fromkeys(ends))} %"


def span(value: float, low: float, high: float, decimals: int, *, as_percent: bool = False) -> str:
    """The interval of `value`: ``± 0.42`` where it is symmetric to the printed digits.

    Otherwise its ends, ``(22.10 to 38.40)``; :data:`UNKNOWN` where one is not finite.

    Args:
        value: the estimate, between the ends.
        low, high: the ends, in the unit of `value`.
        decimals: decimal places to print.
        as_percent: print percentages: everything times 100, with a percent sign.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNKNOWN
    unit = " %" if as_percent else ""
    value, low, high = (100 * one if as_percent else one for one in (value, low, high))
    below, above = (f"{half:.{decimals}f}" for half in (value - low, high - value))
    if below != above:
        return f"({low:.{decimals}f} to {high:.{decimals}f}{unit})"
    if float(above) == 0 and high > low:
        return f"± <{10.0**-decimals:g}{unit}"
    return f"± {above}{unit}"


def with_span(value: float, low: float, high: float, decimals: int | None = None) -> str:
    """`value` with its :func:`span`.

    Args:
        value: the estimate, between the ends.
        low, high: the ends, in the unit of `value`.
        decimals: decimal places to print; None: those of :func:`decimals_of`.
    """
    places = decimals_of(value) if decimals is None else decimals
    return f"{value:.{places}f} {span(value, low, high, places)}"
