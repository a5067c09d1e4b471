"""What a report says not to trust, in words."""

from __future__ import annotations

import pandas as pd

from dpeval.analysis.figures.figure_data import FigureData
from dpeval.analysis.frame.labels import cell_name

_MOST = 12


def cautions(figure_data: FigureData) -> list[str]:
    """What makes the figures less trustworthy, one sentence for each cause."""
    table = figure_data.table
    ok = table[table["status"] == "ok"] if not table.empty else table
    if ok.empty:
        return []
    causes = {
        "never became steady": ~ok["steady"].astype(bool),
        "ran more ranks than cores (oversubscribed)": ok["oversubscribed"].astype(bool),
        "fed generated stand-in images, not the data that was asked for": ok["stand_in"],
    }
    found = [f"{_which(ok[mask], len(ok))} {what}." for what, mask in causes.items() if mask.any()]
    found += [
        f"{cell_name(cell)}: {str(cell.bad)[:200]}." for cell in ok[ok["bad"] != ""].itertuples()
    ][:_MOST]
    single = ok[ok["n_runs"] == 1]
    if not single.empty:
        found.append(
            f"{_which(single, len(ok))} ran once: the spread between runs is not known "
            "(measure=repeated repeat=5 measures it)."
        )
    return found


def _which(cells: pd.DataFrame, of: int) -> str:
    if len(cells) == of > 1:
        return "Every configuration"
    shown = [cell_name(cell) for cell in cells.head(4).itertuples()]
    more = len(cells) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
