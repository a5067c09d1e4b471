"""What a drawing function is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from dpeval.analysis.figures.cells import Family, cells, common_words, families


class UnsupportedError(Exception):
    """The data cannot support a figure; the message says what is lacking."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure and what it shows, in words."""

    figure: Figure
    alt: str


@dataclass(frozen=True)
class Sheet:
    """The data that all figures draw from."""

    runs: pd.DataFrame
    table: pd.DataFrame
    """One row per configuration; see :func:`dpeval.analysis.figures.cells.cells`."""
    families: list[Family]

    @classmethod
    def of(cls, runs: pd.DataFrame, pooled: pd.DataFrame) -> Sheet:
        table = cells(runs, pooled)
        return cls(runs=runs, table=table, families=families(table))

    def words(self, hardware: str | None = None) -> str:
        """What all drawn configurations share, for a subtitle."""
        table = self.table
        if hardware is not None:
            table = table[table["hardware"] == hardware]
        return common_words(table)
