"""What makes a report less trustworthy, in sentences."""

from __future__ import annotations

import pandas as pd

from dpeval.analysis.figures.figure_data import FigureData
from dpeval.analysis.frame.labels import cell_name
from dpeval.record.codes import SHORT_WARNINGS

_MOST = 12


def cautions(figure_data: FigureData) -> list[str]:
    """What makes the figures less trustworthy, one sentence per cause."""
    table = figure_data.table
    ok = table[table["status"] == "ok"] if not table.empty else table
    if ok.empty:
        return []
    causes = {
        SHORT_WARNINGS["unsteady"]: ~ok["steady"].astype(bool),
        "oversubscribed (more ranks than cores or GPUs)": ok["oversubscribed"].astype(bool),
        f"{SHORT_WARNINGS['stand_in']}, not the requested data": ok["stand_in"],
    }
    found = [
        f"{what.capitalize()}: {_which(ok[mask], len(ok))}."
        for what, mask in causes.items()
        if mask.any()
    ]
    found += [
        f"{cell_name(cell)}: {str(cell.bad)[:200]}." for cell in ok[ok["bad"] != ""].itertuples()
    ][:_MOST]
    return found


def _which(cells: pd.DataFrame, of: int) -> str:
    if len(cells) == of > 1:
        return "every configuration"
    shown = [cell_name(cell) for cell in cells.head(4).itertuples()]
    more = len(cells) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
