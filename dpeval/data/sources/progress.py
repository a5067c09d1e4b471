"""How far work of known size is: a bar where someone watches, a line now and then where not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Say = Callable[[str], None]
"""Tells the user one line."""
Advance = Callable[[int], None]
"""Says that so many more units are done."""
TELL_EVERY_S = 5.0


@runtime_checkable
class Bars(Protocol):
    """A :data:`Say` that draws progress bars, too."""

    def bar(self, what: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show `what` advancing to `total`; `unit` is ``B`` for bytes, or a word."""


@contextmanager
def progress(say: Say, what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Report the progress of `what`, of which `done` units are there already."""
    if isinstance(say, Bars):
        with say.bar(what, total, unit) as advance:
            advance(done)
            yield advance
        return
    say(what)
    told_s = time.monotonic()

    def advance_lines(count: int) -> None:
        nonlocal done, told_s
        done += count
        if time.monotonic() - told_s > TELL_EVERY_S and done < total:
            told_s = time.monotonic()
            say(f"  {done / total:.0%} of {amount(total, unit)}")

    yield advance_lines


def amount(count: int, unit: str) -> str:
    """``amount(99_003_388, "B")`` is "99 MB"; "12 images" for a word."""
    if unit != "B":
        return f"{count:,} {unit}"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
