"""From the cells of tables to rows in SI units, each assigned to a run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from dpeval.analysis.csv_import import guess
from dpeval.analysis.csv_import.fields import (
    BATCHES,
    RATES,
    SECONDS,
    TEXTS,
    TIMES,
    Column,
    require,
)
from dpeval.analysis.csv_import.settle import (
    CONFIGURATION,
    Share,
    enter,
    number,
    of_step,
    seconds,
    settle,
)
from dpeval.analysis.csv_import.text_table import SEPARATORS, NumberReader, TextTable
from dpeval.analysis.frame.row import text
from dpeval.errors import ConfigError, nearest

OWN = ("run_id", "iteration", "host")
"""Texts that may differ in every row."""


@dataclass(frozen=True)
class Layout:
    """How to read tables."""

    columns: tuple[Column, ...] | None = None
    """None: guessed from the names of the columns."""
    share: Share | None = None
    """How N ranks shared a global batch B: ``floor``: B//N each, the remainder is dropped;
    ``even``: as evenly as possible; ``nominal``: every rank gets the batch itself. None: nominal if
    a column holds the per-device batch, else floor."""
    hardware: Literal["cpu", "gpu"] | None = None
    """None: guessed from the columns, else cpu."""
    time_unit: str | None = None
    """The unit of times whose name gives none; None: s."""
    constants: Mapping[str, str] = field(default_factory=dict[str, str])
    """Fields that have the same value in every row."""


@dataclass(frozen=True)
class Rows:
    """Rows of one table."""

    frame: pd.DataFrame
    """One row per line that has numbers for its configuration: columns :data:`CONFIGURATION`,
    `rank`, `run_id` if there is one, `host`, `file`, `line`, the times in s (NaN if they cannot be
    read)."""
    problems: list[str]
    """One line for each row that was left out."""
    notes: list[str]
    """The assumptions made."""


def of_table(table: TextTable, layout: Layout) -> Rows:
    """The rows of `table`.

    Raises:
        ConfigError: the table lacks a column, or its columns cannot be identified.
    """
    columns = _columns(table, layout)
    notes = list(_notes(table, columns, layout))
    share = _share(columns, layout)
    frame, problems = _frame(table, columns, layout, share)
    return Rows(frame, [*table.problems, *problems], [*notes, *_pooled(table, columns, frame)])


def _frame(
    table: TextTable, columns: Sequence[Column], layout: Layout, share: Share
) -> tuple[pd.DataFrame, list[str]]:
    """The rows that can be used, and why others cannot.

    A long table has few configurations and many times: what rows say of their configuration is
    worked out once for all that say the same.

    Args:
        table: the cells.
        columns: those to read.
        layout: how to read them.
        share: how N ranks shared a global batch.
    """
    places = {column: table.names.index(column.name) for column in columns}
    cells = {column: [row[at] for _, row in table.rows] for column, at in places.items()}
    numeric = [cells[column] for column in columns if column.field not in TEXTS]
    convert = NumberReader.of(
        itertools.chain.from_iterable(dict.fromkeys(one) for one in numeric), table.separator
    )
    shared = [one for one in columns if one.field not in (*TIMES, *RATES, *OWN)]
    kinds: dict[tuple[str, ...], int] = {}
    lists = [cells[column] for column in shared] or [[""] * len(table.rows)]
    kind_of = np.array(
        [kinds.setdefault(key, len(kinds)) for key in zip(*lists, strict=True)], dtype=np.int64
    )
    start = {"file": str(table.file), "share": share}
    rows: list[dict[str, Any]] = []
    why_not: list[str | None] = []
    for key in kinds:
        row: dict[str, Any] = dict(start)
        for column, cell in zip(shared, key, strict=False):
            enter(row, column, cell, convert)
        for name, value in layout.constants.items():
            enter(row, Column(name, name), value, convert)
        why_not.append(settle(row, share, layout.hardware or _hardware(columns)))
        rows.append(row)
    kept = np.array([why is None for why in why_not], dtype=bool)[kind_of]
    lines = [line for line, _ in table.rows]
    problems = [
        f"{table.file}, line {lines[at]}: {why_not[kind_of[at]]}" for at in np.flatnonzero(~kept)
    ]
    if not kept.any():
        return _framed(pd.DataFrame()), problems
    rate = _rate(columns)
    for row, why in zip(rows, why_not, strict=True):
        row["of_step"] = of_step(row, rate) if rate is not None and why is None else 1.0
    frame = pd.DataFrame(rows).iloc[kind_of[kept]].reset_index(drop=True)
    frame["line"] = list(itertools.compress(lines, kept))
    for column in columns:
        if column not in shared:
            _enter_all(frame, column, list(itertools.compress(cells[column], kept)), convert)
    if rate is not None:
        _times_of_rate(frame, rate)
    return _framed(frame), problems


def _rate(columns: Sequence[Column]) -> str | None:
    """The throughput from which step times are derived, if no column holds a time."""
    fields = {one.field for one in columns}
    return None if fields & set(TIMES) else next((one for one in RATES if one in fields), None)


def _enter_all(
    frame: pd.DataFrame, column: Column, cells: Sequence[str], convert: NumberReader
) -> None:
    """Put a column of times, throughputs or run ids into `frame`.

    Args:
        frame: receives it; what is no number is added to `unread`.
        column: a time, a throughput or one of :data:`OWN`.
        cells: one per row.
        convert: how to read numbers.
    """
    if column.field in OWN:
        shown = {cell: text(cell, 80) for cell in set(cells)}
        frame[column.field] = [shown[cell] for cell in cells]
        return
    unit_s = column.unit_s if column.field in TIMES else 1.0
    values = convert.plain(cells)
    if values is not None:
        values = values * unit_s
    elif column.field in TIMES:
        values = np.array([seconds(cell, unit_s, convert) for cell in cells])
    else:
        values = np.array([number(cell, convert) for cell in cells])
    frame[column.field] = values
    _not_numbers(frame, column.field, cells)


def _not_numbers(frame: pd.DataFrame, name: str, cells: Sequence[str]) -> None:
    """Tell the rows without a number in the column `name`, which holds `cells`."""
    unread = frame["unread"].to_list()
    for at in np.flatnonzero(np.isnan(frame[name].to_numpy(dtype=float))):
        told = f"{name} is '{text(cells[int(at)], 20)}', not a number"
        unread[at] = f"{unread[at]}; {told}" if unread[at] else told
    frame["unread"] = unread


def _times_of_rate(frame: pd.DataFrame, rate: str) -> None:
    """Derive the step times from the throughput in column `rate`."""
    frame["step_s"] = frame["of_step"] / frame[rate].where(frame[rate] > 0)
    unread = frame["unread"].to_list()
    for at in np.flatnonzero(frame["step_s"].isna()):
        unread[at] = unread[at] or f"{rate} is {frame[rate].iloc[at]:g}"
    frame["unread"] = unread


def _columns(table: TextTable, layout: Layout) -> tuple[Column, ...]:
    twice = {name for name in table.names if table.names.count(name) > 1}
    if layout.columns is None:
        columns = guess.columns(list(dict.fromkeys(table.names)), layout.time_unit)
        columns = tuple(one for one in columns if one.field not in _settled_by(layout.constants))
    else:
        columns = layout.columns
        for column in columns:
            if column.name not in table.names:
                raise ConfigError(
                    f"{table.file} has no column '{text(column.name, 40)}'"
                    f"{nearest(column.name, table.names)}; it has "
                    f"{text(', '.join(table.names), 200)} (separator: "
                    f"{SEPARATORS.get(table.separator, table.separator)})"
                )
    for column in columns:
        if column.name in twice:
            raise ConfigError(
                f"{table.file} has several columns '{text(column.name, 40)}'; rename all but one"
            )
    names_shown = text(", ".join(table.names), 200)
    require(columns, f"{table.file} ({names_shown})", layout.constants)
    return columns


def _settled_by(constants: Mapping[str, str]) -> set[str]:
    fields = set(constants)
    return fields | set(BATCHES) if fields & set(BATCHES) else fields


def _notes(table: TextTable, columns: Sequence[Column], layout: Layout) -> Iterator[str]:
    unused = [name for name in table.names if name not in {one.name for one in columns}]
    if layout.columns is None:
        read = ", ".join(f"'{text(one.name, 40)}' as {_told(one)}" for one in columns)
        left = f"; not read: {text(', '.join(unused), 150)}" if unused else ""
        yield f"{table.file}: reading {read}{left} (change this with --columns)"
        if "batch" in {one.field for one in columns} and layout.share is None:
            yield (
                f"{table.file}: the batch is taken as the global batch; if it is per device, add "
                "--per-rank-batch nominal"
            )
    else:
        given = {one.field for one in columns} | set(layout.constants)
        for name, found in guess.looks_like(unused, ("rank", "num_nodes", "run_id")).items():
            if found not in given:
                yield (
                    f"caution: {table.file}: column '{text(name, 40)}' is not read; if it is "
                    f"{found}, add {text(name, 40)}={found} to --columns"
                )


def _pooled(table: TextTable, columns: Sequence[Column], frame: pd.DataFrame) -> Iterator[str]:
    """Warn about unread text columns that differ between rows taken as repetitions."""
    if frame.empty:
        return
    read = {one.name for one in columns}
    lines = set(frame["line"])
    rows = [row for line, row in table.rows if line in lines]
    for place, name in enumerate(table.names):
        if name in read:
            continue
        cells = [row[place] for row in rows]
        different = set(cells)
        if len(different) == len(cells) or not any(_is_words(cell) for cell in different):
            continue
        values = pd.Series(cells, index=frame.index)
        keys = [frame[key] for key in (*CONFIGURATION, "rank")]
        if (values.groupby(keys).nunique() > 1).any():
            yield (
                f"caution: {table.file}: rows of one configuration differ in '{text(name, 40)}', "
                "which is not read, and count as repetitions; if they are not, name every column "
                f"with --columns and add {text(name, 40)}=variant"
            )


def _is_words(cell: str) -> bool:
    """Whether it is neither a number nor a time of day."""
    return bool(re.search(r"[^\W\d_]", cell)) and not re.search(r"\d:\d\d", cell)


def _told(column: Column) -> str:
    if column.field not in TIMES:
        return column.field
    unit = next(name for name, length in SECONDS.items() if length == column.unit_s)
    return f"{column.field.removesuffix('_s')} in {unit}"


def _share(columns: Sequence[Column], layout: Layout) -> Share:
    fields = {one.field for one in columns} | set(layout.constants)
    if "per_device_batch" in fields:
        if layout.share not in (None, "nominal"):
            raise ConfigError(
                f"per_device_batch and --per-rank-batch {layout.share} exclude each other: a "
                "per-device batch is not divided"
            )
        return "nominal"
    if "global_batch" in fields and layout.share == "nominal":
        raise ConfigError(
            "global_batch and --per-rank-batch nominal exclude each other; name the column "
            "per_device_batch"
        )
    return layout.share or "floor"


def _hardware(columns: Sequence[Column]) -> str:
    is_gpu = any(
        one.field == "device_name"
        or (one.field == "num_devices" and re.search("gpu|accel", one.name, re.IGNORECASE))
        for one in columns
    )
    return "gpu" if is_gpu else "cpu"


def _framed(frame: pd.DataFrame) -> pd.DataFrame:
    for name in CONFIGURATION:
        frame[name] = frame[name].fillna("") if name in frame else ""
    return frame
