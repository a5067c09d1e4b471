"""Tables on the console: framed in a terminal, aligned plain lines when piped."""

from __future__ import annotations

import sys
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 200


def make_console() -> Console:
    """A console on standard output; if piped, wide enough that no table row wraps."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, soft_wrap=True, width=PIPED_WIDTH)


def make_table(title: str, columns: dict[str, Literal["left", "right"]]) -> Table:
    """A table with the given columns: framed in a terminal, aligned plain lines when piped."""
    frame = box.ROUNDED if sys.stdout.isatty() else None
    table = Table(title=title, title_justify="left", title_style="bold", box=frame)
    for name, justify in columns.items():
        table.add_column(name, justify=justify)
    return table
