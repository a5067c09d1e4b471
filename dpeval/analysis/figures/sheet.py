"""What a drawing function is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpeval.analysis.figures.cells import Family, cells, common_words, families
from dpeval.errors import RecordError
from dpeval.record import FILE_NAME, Record, read


class UnsupportedError(Exception):
    """The data cannot support a figure; the message says what is lacking."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure and what it shows, in words."""

    figure: Figure
    alt: str


@dataclass(frozen=True)
class Fit:
    """A law fitted to the speed-ups of one batch, with its 95 % band."""

    devices: Sequence[float]
    speedup: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    words: str = ""


@dataclass(frozen=True)
class Sheet:
    """The data that all figures draw from."""

    runs: pd.DataFrame
    table: pd.DataFrame
    """One row per configuration; see :func:`dpeval.analysis.figures.cells.cells`."""
    families: list[Family]
    laws: Mapping[tuple[str, int], Sequence[Fit]] = field(default_factory=dict)
    """By family label and batch: the laws that the data support."""

    @classmethod
    def of(cls, runs: pd.DataFrame, pooled: pd.DataFrame) -> Sheet:
        if "conditions_bad" not in runs:
            runs = runs.assign(conditions_bad="")
        table = cells(runs, pooled)
        return cls(runs=runs, table=table, families=families(table))

    def fits(self, family: Family, batch: int) -> Sequence[Fit]:
        """The laws that the data of `batch` support; empty where they support none."""
        return self.laws.get((family.label, batch), ())

    def records(self, runs: pd.DataFrame) -> list[Record]:
        """Read the records of `runs` again, for what the frame does not hold (single steps)."""
        found = []
        for path in runs["path"]:
            try:
                found.append(read(Path(path) / FILE_NAME))
            except RecordError:  # gone or changed since the frame was made
                continue
        return found

    def words(self, hardware: str | None = None) -> str:
        """What all drawn configurations share, for a subtitle."""
        table = self.table
        if hardware is not None:
            table = table[table["hardware"] == hardware]
        return common_words(table)
