"""Tables on the console: framed in a terminal, aligned plain lines when piped."""

from __future__ import annotations

import sys
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 200
NARROW = 80
"""A terminal with fewer columns gets plain lines, which it wraps, so that no cell is cut."""


WIDE = 140
"""A terminal with fewer columns gets wide tables in a compact form."""


def make_console(*, to_error: bool = False) -> Console:
    """A console on standard output; if piped or narrow, no table row is wrapped or cut.

    `to_error` makes it one on standard error, where standard output is for a program.
    """
    if to_error:
        return Console(highlight=False, soft_wrap=True, stderr=True)
    if is_roomy():
        return Console(highlight=False)
    # rich assumes 80 columns on a dumb terminal unless width and height are given.
    return Console(highlight=False, soft_wrap=True, width=PIPED_WIDTH, height=25)


def is_roomy() -> bool:
    """Whether standard output is a terminal in which frames and live lines can be drawn."""
    console = Console()
    is_screen = sys.stdout.isatty() and not console.is_dumb_terminal
    return is_screen and console.width >= NARROW


def is_compact() -> bool:
    """Whether standard output is a terminal with frames, but not :data:`WIDE`."""
    return is_roomy() and Console().width < WIDE


def make_table(title: str, columns: dict[str, Literal["left", "right"]]) -> Table:
    """A table with the given columns: framed in a terminal, aligned plain lines when piped."""
    frame = box.ROUNDED if is_roomy() else None
    table = Table(title=title, title_justify="left", title_style="bold", box=frame)
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold")
    return table
