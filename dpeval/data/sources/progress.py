"""Reports progress: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from dpeval.util.display.ranges import percent

Report = Callable[[str], None]
"""Prints one line for the user."""
Advance = Callable[[int], None]
"""Advances progress by a number of units."""
REPORT_EVERY_S = 5.0


@runtime_checkable
class Bars(Protocol):
    """A :data:`Report` that also draws progress bars."""

    def bar(self, what: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show a progress bar.

        Args:
            what: the task, as the user reads it.
            total: units at which the task is complete.
            unit: ``B`` for bytes, or a noun in the plural.
        """


@contextmanager
def progress(
    report: Report, what: str, total: int, unit: str, *, done: int = 0
) -> Iterator[Advance]:
    """Report the progress of a task.

    Args:
        report: prints lines, and may draw bars.
        what: the task, as the user reads it.
        total: units at which the task is complete.
        unit: ``B`` for bytes, or a noun in the plural.
        done: units that are complete at the start.
    """
    if isinstance(report, Bars):
        with report.bar(what, total, unit) as advance:
            advance(done)
            yield advance
        return
    report(what)
    reported_s = time.monotonic()

    def advance_lines(count: int) -> None:
        nonlocal done, reported_s
        done += count
        if time.monotonic() - reported_s > REPORT_EVERY_S and done < total:
            reported_s = time.monotonic()
            report(f"  {percent(done / total)} of {amount(total, unit)}")

    yield advance_lines


def amount(count: int, unit: str) -> str:
    """A count with its unit: ``amount(99_003_388, "B")`` is "99 MB"."""
    if unit != "B":
        return f"{count:,} {unit}"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
