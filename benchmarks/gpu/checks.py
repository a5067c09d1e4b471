"""What a stage of the campaign finds: figures, each next to its truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """One figure and the truth that it is held against."""

    name: str
    measured: float | str | None
    """None: not measured; `note` says why."""
    truth: float | str | None = None
    """None: there is nothing to compare with; the figure is only reported."""
    unit: str = ""
    tolerance: float = 0.0
    """How far `measured` may be from `truth`, in `unit`."""
    passed: bool | None = None
    """None: nothing was compared."""
    note: str = ""
    stage: str = ""
    is_timing: bool = False
    """Whether a busy machine can spoil it; a rehearsal does not judge such a figure."""


def near(
    name: str,
    measured: float,
    truth: float,
    unit: str,
    *,
    share: float = 0.0,
    at_least: float = 0.0,
    note: str = "",
    is_timing: bool = False,
) -> Check:
    """A figure that must be within max(`share` of the truth, `at_least`) of the truth.

    Args:
        name: what was measured.
        measured: the figure.
        truth: what it should be.
        unit: of both.
        share: tolerated difference over the truth.
        at_least: tolerated difference, in `unit`.
        note: how the truth is known.
        is_timing: whether a busy machine can spoil it.
    """
    tolerance = max(share * abs(truth), at_least)
    passed = abs(measured - truth) <= tolerance
    return Check(name, measured, truth, unit, tolerance, passed, note, is_timing=is_timing)


def at_most(
    name: str,
    measured: float,
    limit: float,
    note: str = "",
    *,
    unit: str = "",
    is_timing: bool = False,
) -> Check:
    """A figure that must not exceed a limit.

    Args:
        name: what was measured.
        measured: the figure.
        limit: the most that it may be.
        note: what else was seen.
        unit: of both.
        is_timing: whether a busy machine can spoil it.
    """
    passed = measured <= limit
    text = f"truth: at most; {note}" if note else "truth: at most"
    return Check(name, measured, limit, unit, 0.0, passed, text, is_timing=is_timing)


def same(name: str, measured: str, truth: str, note: str = "") -> Check:
    """A word that must be exactly `truth`."""
    return Check(name, measured, truth, passed=measured == truth, note=note)


def report(name: str, measured: float | str, unit: str = "", note: str = "") -> Check:
    """A figure without a truth."""
    return Check(name, measured, unit=unit, note=note)


def not_measured(name: str, why: str) -> Check:
    """A figure that cannot be had here."""
    return Check(name, None, note=why)


def append(path: Path, checks: Iterable[Check]) -> Iterator[Check]:
    """Write each check as a line of JSON as soon as it is made, so that none is lost."""
    with path.open("a", encoding="utf-8") as file:
        for check in checks:
            file.write(json.dumps(dataclasses.asdict(check)) + "\n")
            file.flush()
            yield check


def read(path: Path) -> list[Check]:
    """The checks that :func:`append` wrote."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return [Check(**row) for row in rows]
