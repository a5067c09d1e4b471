"""Claims that need an explanation: efficiency above 1, throughput that falls with more devices.

A super-linear speedup nearly always means that the baseline was slower than it should be (Helmbold
& McDowell 1990, "Modeling speedup(n) greater than n", IEEE TPDS 1(2)), so every such claim comes
with the evidence against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from dpeval.analysis.frame.as_rows import as_rows
from dpeval.analysis.frame.labels import configuration, device_count
from dpeval.analysis.frame.runs_frame import CONFIGURATION, is_measured
from dpeval.analysis.scaling.efficiency import Waterfall
from dpeval.analysis.scaling.evidence import (
    OF_SLOW,
    OF_SUPER_LINEAR,
    Finder,
    Pair,
    held_against,
    outlier,
)
from dpeval.analysis.scaling.speedup import FAMILY
from dpeval.util.display.ranges import number

UNKNOWN_MARGIN = 0.02
"""Without an interval, a larger relative difference counts as a claim."""


@dataclass(frozen=True)
class Claim:
    """A surprising result and the evidence about it."""

    key: dict[str, Any]
    """Values of :data:`~dpeval.analysis.frame.runs_frame.CONFIGURATION`."""
    kind: str
    """super-linear, dip, surprise or images."""
    text: str
    causes: tuple[str, ...]
    """Codes of the evidence, for programs; empty: nothing in the records explains it."""
    evidence: tuple[str, ...]
    """The same as text."""

    @property
    def sentence(self) -> str:
        """The claim with its evidence."""
        found = "; ".join(self.evidence)
        return (
            f"{self.text}: {found}."
            if found
            else f"{self.text}; nothing in the records explains it."
        )


def claims(runs: pd.DataFrame, measured: pd.DataFrame, waterfalls: list[Waterfall]) -> list[Claim]:
    """Every surprising claim among the measured configurations, with its evidence.

    Args:
        runs: one row per run (:data:`~dpeval.analysis.frame.columns.COLUMNS`).
        measured: one row per configuration (:func:`~dpeval.analysis.scaling.speedup.points`).
        waterfalls: efficiency factors of the same configurations.
    """
    if measured.empty:
        return []
    # Only the runs of claims are needed, and grouping all runs would be slow.
    good = runs[is_measured(runs)]
    places = good.groupby(CONFIGURATION, dropna=False).indices
    known = {tuple(item.key.values()): item for item in waterfalls}

    def pair(base: dict[str, Any], cell: dict[str, Any]) -> Pair:
        keys = [tuple(row[name] for name in CONFIGURATION) for row in (base, cell)]
        return Pair(
            base, cell, good.iloc[places[keys[0]]], good.iloc[places[keys[1]]],
            known.get(keys[1]), known.get(keys[0]),
        )  # fmt: skip

    found: list[Claim] = []
    for _, group in measured.groupby(FAMILY, dropna=False, sort=True):
        rows = [
            {str(k): v for k, v in row.items()} for row in as_rows(group.sort_values("num_devices"))
        ]
        found += [claim for row in rows for claim in _images(row, pair(row, row))]
        for before, row in pairwise(rows):
            if _is_super_linear(row, pair(rows[0], row)):
                found.append(_super_linear(pair(rows[0], row)))
            if _is_slower(row, before):
                found.append(_dip(pair(before, row)))
            elif row["efficiency_low"] > before["efficiency_high"] and before is not rows[0]:
                found.append(_surprise(pair(rows[0], before), pair(row, before)))
    return found


def _is_slower(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether the interval of the ratio of throughputs excludes 1; if unknown, whether it is
    clearly not 1."""
    gap = math.log(before["img_per_s"] / row["img_per_s"])
    half = math.hypot(
        math.log(before["img_per_s"] / before["comparable_low"]),
        math.log(row["comparable_high"] / row["img_per_s"]),
    )
    return gap > (math.log1p(UNKNOWN_MARGIN) if math.isnan(half) else half)


def _is_super_linear(row: dict[str, Any], against: Pair) -> bool:
    low = row["efficiency_low"]
    if row["efficiency"] > 1 + UNKNOWN_MARGIN if math.isnan(low) else low > 1:
        return True
    # A cold repetition of the baseline both causes the claim and widens the interval that hides it.
    return bool(row["efficiency"] > 1 + UNKNOWN_MARGIN) and outlier(against) is not None


def _key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in CONFIGURATION}


def _name(row: dict[str, Any]) -> str:
    return configuration(int(row["num_devices"]), int(row["batch"]), row["scaling"])


def _super_linear(pair: Pair) -> Claim:
    row = pair.cell
    known = not math.isnan(row["efficiency_low"])
    ends = f"{row['efficiency_low']:.2f} to {row['efficiency_high']:.2f}"
    text = (
        f"{_name(row)}: efficiency {row['efficiency']:.2f} "
        f"({ends if known else 'interval unknown'}) is above 1"
    )
    return _claim("super-linear", text, pair, OF_SUPER_LINEAR)


def _dip(pair: Pair) -> Claim:
    row, before = pair.cell, pair.base
    text = (
        f"{_name(row)} is slower than {device_count(int(before['num_devices']))}: "
        f"{number(row['img_per_s'])} vs. {number(before['img_per_s'])} {row['unit']}/s"
    )
    return _claim("dip", text, pair, OF_SLOW)


def _surprise(pair: Pair, beside: Pair) -> Claim:
    """A configuration that is less efficient than a larger one.

    Args:
        pair: the configuration and the baseline.
        beside: the configuration and the larger one; what both lose alike explains nothing.
    """
    row, after = pair.cell, beside.base
    text = (
        f"{_name(row)} has efficiency {row['efficiency']:.2f}, below the "
        f"{after['efficiency']:.2f} of {device_count(int(after['num_devices']))}"
    )
    return _claim("surprise", text, pair, {**OF_SLOW, **held_against(beside)})


def _claim(kind: str, text: str, pair: Pair, finders: dict[str, Finder]) -> Claim:
    clauses = {code: clause for code, finder in finders.items() if (clause := finder(pair))}
    return Claim(_key(pair.cell), kind, text, tuple(clauses), tuple(clauses.values()))


def _images(row: dict[str, Any], pair: Pair) -> Iterator[Claim]:
    asked, done = pair.cell_runs["global_batch"].median(), row["images_per_step"]
    if pd.isna(asked) or pd.isna(done) or asked == done:
        return
    text = f"{_name(row)} processes {done:g} of the {asked:g} images requested per step"
    share = done / asked
    effect = f"speedup by time alone would be {1 / share:.2f} times too high"
    yield Claim(_key(row), "images", text, ("images_not_processed",), (effect,))
