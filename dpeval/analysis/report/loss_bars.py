"""One bar per configuration, from the ideal to what was measured: what is lost, and to what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpeval.analysis.frame.labels import configuration
from dpeval.analysis.scaling.efficiency import Factor, Waterfall
from dpeval.record.phases import PHASE_WORDS, PHASES
from dpeval.util.display.ranges import percent, percents

MOST_BARS = 8
LEAST_LOSS = 0.005
_USEFUL = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    kind: str
    """Names its colour."""
    text: str
    """Its label: what it is, and how much, with the interval."""
    percent: float
    """Its length, in percent of the bar's room."""


@dataclass(frozen=True)
class Bar:
    """A configuration: what remains of the ideal, then each loss."""

    name: str
    value: str
    """What remains, in words."""
    segments: list[Segment]
    ideal: float
    """Where the ideal is, in percent of the bar's room."""
    is_best: bool


def of_waterfalls(
    found: Sequence[Waterfall], family: Mapping[str, Any], best: tuple[int, int]
) -> list[Bar]:
    """The bars of a family: the recommended configuration first, then those with more devices.

    Args:
        found: of all families.
        family: names the family.
        best: devices and batch of the recommended configuration.
    """
    own = [one for one in found if all(one.key[name] == value for name, value in family.items())]
    ordered = sorted(
        own,
        key=lambda one: (
            (one.key["num_devices"], one.key["batch"]) != best,
            one.key["batch"] != best[1],
            -one.key["num_devices"],
            -one.key["batch"],
        ),
    )
    return [_bar(one, best) for one in ordered[:MOST_BARS]]


def _bar(found: Waterfall, best: tuple[int, int]) -> Bar:
    key = found.key
    level = 1.0
    losses: list[tuple[Factor, float, float]] = []
    gains: list[tuple[Factor, float, float]] = []
    for factor in found.factors:
        after = level * factor.value
        (losses if after < level else gains).append((factor, level, abs(level - after)))
        level = after
    room = level + sum(length for _, _, length in losses)
    segments = [Segment("measured", f"{percent(level)} measured", 100 * level / room)]
    segments += [
        Segment(
            _kind(factor),
            f"{factor.short} −{percent(length)}{_interval(factor, before)}",
            100 * length / room,
        )
        for factor, before, length in losses
        if length >= LEAST_LOSS
    ]
    gained = [
        f"{factor.short} +{percent(length)}" for factor, _, length in gains if length >= LEAST_LOSS
    ]
    return Bar(
        name=configuration(key["num_devices"], key["batch"], key["scaling"], key["hardware"]),
        value=f"{percent(found.efficiency)} of the ideal"
        + f" ({', '.join(gained)} included)" * bool(gained),
        segments=segments,
        ideal=100 / room,
        is_best=(key["num_devices"], key["batch"]) == best,
    )


def _interval(factor: Factor, before: float) -> str:
    """What the factor costs at least and at most, in points of efficiency."""
    if factor.half != factor.half:  # NaN
        return ""
    low, high = (before * (1 - end) for end in (factor.high, factor.low))
    return f" ({percents(low, min(high, before))})"


def _kind(factor: Factor) -> str:
    return factor.parts[0].replace(" ", "-") if len(factor.parts) == 1 else "several"


def of_phases(row: Mapping[str, Any]) -> list[Bar]:
    """One bar of a step's phases, where no efficiency is known.

    Args:
        row: of the recommended configuration, with the phases in seconds.
    """
    step = float(row["step_s"])
    shares = {
        phase: float(row[f"{phase}_s"]) / step
        for phase in PHASES
        if row[f"{phase}_s"] == row[f"{phase}_s"] and float(row[f"{phase}_s"]) > LEAST_LOSS * step
    }
    if not shares:
        return []
    useful = sum(shares.get(phase, 0.0) for phase in _USEFUL)
    total = max(1.0, sum(shares.values()))
    return [
        Bar(
            name=configuration(row["num_devices"], row["batch"], row["scaling"], row["hardware"]),
            value=f"{percent(useful)} of a step computes",
            segments=[
                Segment(phase, f"{PHASE_WORDS[phase]} {percent(share)}", 100 * share / total)
                for phase, share in shares.items()
            ],
            ideal=100.0,
            is_best=True,
        )
    ]
