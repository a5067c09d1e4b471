"""What a drawing function is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpeval.analysis.frame.configurations import Family, cells, common_words, families
from dpeval.errors import RecordError
from dpeval.record.io import FILE_NAME, read
from dpeval.record.schema import Record


@dataclass(frozen=True)
class Drawing:
    """A finished figure and what it shows, in words."""

    figure: Figure
    alt: str


@dataclass(frozen=True)
class Models:
    """What the laws and the efficiency model say, for figures to draw; frames may be empty."""

    factors: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per configuration and factor, in order: the columns of a cell
    (:data:`~dpeval.analysis.frame.configurations.CELL`), `factor` (name) and `value`; the
    product over a configuration is its efficiency."""
    laws: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Curves of the laws that the data support: the columns of a cell without `num_devices`,
    `law` (name), `devices`, `speedup`, `low` and `high` (95 % band)."""


@dataclass(frozen=True)
class FigureData:
    """The data that all figures draw from."""

    runs: pd.DataFrame
    table: pd.DataFrame
    """One row per configuration; see :func:`dpeval.analysis.frame.configurations.cells`."""
    families: list[Family]
    models: Models = field(default_factory=Models)

    @property
    def factors(self) -> pd.DataFrame:
        return self.models.factors

    @classmethod
    def of(
        cls, runs: pd.DataFrame, summary: pd.DataFrame, models: Models | None = None
    ) -> FigureData:
        """Prepare what the figures draw.

        Args:
            runs: one row per run (:data:`dpeval.analysis.frame.runs_frame.COLUMNS`).
            summary: one row per configuration, with its speedup and efficiency
                (:attr:`dpeval.analysis.scaling.findings.Findings.summary`).
            models: laws and efficiency factors, where they were computed.
        """
        table = cells(runs, summary)
        return cls(runs, table, families(table), models or Models())

    def laws(self, family: Family, batch: int) -> list[tuple[str, pd.DataFrame]]:
        """Name and curve of each law that the data of `batch` support."""
        laws = self.models.laws
        if laws.empty:
            return []
        chosen = laws[laws["batch"] == batch]
        for column, value in family.key.items():
            chosen = chosen[chosen[column] == value]
        return [(str(name), curve) for name, curve in chosen.groupby("law")]

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
