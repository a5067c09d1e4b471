"""From the cells of tables to rows in SI units, each assigned to a run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from dpeval.analysis.csv_import import guess
from dpeval.analysis.csv_import.fields import (
    BATCHES,
    PHASE_OF,
    RATES,
    SECONDS,
    TEXTS,
    TIMES,
    Column,
    require,
)
from dpeval.analysis.csv_import.text_table import SEPARATORS, TextTable, number_reader
from dpeval.analysis.frame.row import text
from dpeval.config import global_batch_of
from dpeval.errors import ConfigError, nearest

Share = Literal["floor", "even", "nominal"]
SHARES: tuple[Share, ...] = ("floor", "even", "nominal")
MOST_RANKS = 100_000
MOST_S = 1e9

CONFIGURATION = ["model", "device_name", "hardware", "precision", "variant",
                 "num_nodes", "num_devices", "batch", "share"]  # fmt: skip
"""Columns that are equal in repetitions of one run."""


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
    problems = list(table.problems)
    hardware = layout.hardware or _hardware(columns)
    convert = number_reader(_numeric_cells(table, columns), table.separator)
    places = [(column, table.names.index(column.name)) for column in columns]
    made = []
    for line, cells in table.rows:
        where = f"{table.file}, line {line}"
        row: dict[str, Any] = {"file": str(table.file), "line": line, "share": share}
        values = [(column, cells[place]) for column, place in places]
        values += [(Column(one, one), value) for one, value in layout.constants.items()]
        for column, cell in values:
            _enter(row, column, cell, convert)
        problem = _settle(row, share, hardware)
        if problem is not None:
            problems.append(f"{where}: {problem}")
        else:
            made.append(row)
    frame = _framed(made)
    return Rows(frame, problems, [*notes, *_pooled(table, columns, frame)])


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
    cells = dict(table.rows)
    for place, name in enumerate(table.names):
        values = pd.Series([cells[line][place] for line in frame["line"]], index=frame.index)
        is_words = values.str.contains(r"[^\W\d_]", regex=True) & ~values.str.contains(r"\d:\d\d")
        if name in read or not is_words.any() or values.nunique() == len(values):
            continue
        keys = [frame[key] for key in (*CONFIGURATION, "rank")]
        if (values.groupby(keys).nunique() > 1).any():
            yield (
                f"caution: {table.file}: rows of one configuration differ in '{text(name, 40)}', "
                "which is not read, and count as repetitions; if they are not, name every column "
                f"with --columns and add {text(name, 40)}=variant"
            )


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


def _numeric_cells(table: TextTable, columns: Sequence[Column]) -> Iterator[str]:
    places = [table.names.index(one.name) for one in columns if one.field not in TEXTS]
    for _, cells in table.rows:
        for place in places:
            yield cells[place]


_WITH_UNIT = re.compile(rf"(.*\d)\s*({'|'.join(sorted(SECONDS, key=len, reverse=True))})",
                        re.IGNORECASE)  # fmt: skip


def _enter(row: dict[str, Any], column: Column, cell: str, convert: Any) -> None:
    """Put a cell into its row, times in seconds; NaN if it is not a number."""
    if column.field in TEXTS:
        entered = text(cell, 80)
        if column.field == "variant" and "variant" in row:
            entered = f"{row['variant']}, {column.name} {entered}"
        elif column.field == "variant":
            entered = f"{column.name} {entered}"
        row[column.field] = entered
        return
    unit_s = column.unit_s
    if column.field in TIMES and (found := _WITH_UNIT.fullmatch(cell.strip())):
        cell, unit_s = found[1], SECONDS[found[2].casefold()]
    try:
        row[column.field] = value = convert(cell) * unit_s
        if math.isnan(value):
            raise ValueError(cell)
    except ValueError:
        row[column.field] = math.nan
        row.setdefault("unread", {})[column.field] = cell


def _settle(row: dict[str, Any], share: Share, hardware: str) -> str | None:
    """Derive the row's other fields; return why the row cannot be used, if so."""
    unread = row.pop("unread", {})
    if "placement" in row and "num_devices" not in row:
        if not re.fullmatch(r"[1-9]+", row["placement"]):
            return f"placement '{text(row['placement'], 20)}' is not one digit per node"
        row["num_devices"] = float(sum(map(int, row["placement"])))
        row.setdefault("num_nodes", float(len(row["placement"])))
        if len(set(row["placement"])) > 1:  # otherwise nodes and devices say the same
            row["variant"] = f"{row.get('variant', '')} placement {row['placement']}".strip()
    if "devices_per_node" in row and "num_devices" not in row:
        row["num_devices"] = row["devices_per_node"] * row.get("num_nodes", math.nan)
    for batch in BATCHES:
        if batch in row:
            row["batch"] = row.pop(batch)
    _settle_hardware(row, hardware)
    row["by_rank"] = "rank" in row
    for name in ("num_devices", "batch", "rank", "num_nodes"):
        least = 0 if name == "rank" else 1
        value = row.setdefault(name, 0.0 if name == "rank" else 1.0)
        if not (math.isfinite(value) and value == int(value) and least <= value <= MOST_RANKS):
            shown = unread.get(name, f"{value:g}")
            return f"{name} is '{text(shown, 20)}', not an integer of at least {least}"
    if row["rank"] >= row["num_devices"]:
        return f"rank {row['rank']:g} is out of range for {row['num_devices']:g} ranks"
    if row["num_nodes"] > row["num_devices"]:
        return f"{row['num_devices']:g} devices cannot be on {row['num_nodes']:g} nodes"
    for name in ("num_devices", "batch", "rank", "num_nodes"):
        row[name] = int(row[name])
    row["unread"] = "; ".join(
        f"{name} is '{text(cell, 20)}', not a number" for name, cell in unread.items()
    )
    if not set(TIMES) & set(row):
        _time_of_rate(row, share)
    return None


def _settle_hardware(row: dict[str, Any], default: str) -> None:
    given = row.get("hardware", "")
    row["hardware"] = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu"}.get(given.casefold(), default)
    if given and row["hardware"] == default and given.casefold() not in ("cpu", "gpu", "cuda"):
        row.setdefault("device_name", given)


def _time_of_rate(row: dict[str, Any], share: Share) -> None:
    """Derive the step time from the row's throughput."""
    name = next(one for one in RATES if one in row)
    rate = RATES[name]
    per_s = row[name] * (row["num_devices"] if rate.per_device else 1)
    images = processed(row["num_devices"], row["batch"], share)
    amount = {"samples": images, "steps": 1.0, "tokens": images * row.get("seq_len", math.nan)}
    row["step_s"] = amount[rate.of] / per_s if per_s > 0 else math.nan
    if math.isnan(row["step_s"]) and not row["unread"]:
        row["unread"] = f"{name} is {row[name]:g}"


def processed(devices: int, batch: int, share: Share) -> int:
    """Images that all devices process in a step.

    Args:
        devices: the world size.
        batch: the batch in the table, images.
        share: how it was divided (:attr:`Layout.share`).
    """
    images = global_batch_of("weak" if share == "nominal" else "strong", batch, devices)
    return images - images % devices if share == "floor" else images


def step_s(row: Mapping[Any, Any]) -> float:
    """Time of the row's step, s."""
    if "step_s" in row:
        return float(row["step_s"])
    return math.fsum(float(row[name]) for name in PHASE_OF if name in row)


def why_no_time(row: Mapping[Any, Any]) -> str | None:
    """Why the times of the row cannot be used, if so."""
    if row["unread"]:
        return str(row["unread"])
    for name in TIMES:
        value = float(row.get(name, 0.0))
        if not (math.isfinite(value) and 0 <= value < MOST_S):
            return f"{name} is {value:g}, not a time"
    return None if step_s(row) > 0 else "the step time is zero"


def _framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    for name in CONFIGURATION:
        frame[name] = frame[name].fillna("") if name in frame else ""
    return frame


def run_keys(frame: pd.DataFrame) -> tuple[pd.Series[Any], list[str]]:
    """The run of each row within its configuration (``""`` if unknown), and why runs are unknown.

    Rows with the same `run_id` belong together; if two files both have a rank of that id, only
    within a file. Without `run_id`, the rows of a run follow one another with ascending ranks;
    otherwise the k-th row of every rank belongs to the k-th run, which requires that no rank lacks
    a row."""
    keys = pd.Series("", index=frame.index, dtype=object)
    problems: list[str] = []
    for _, group in frame.groupby(CONFIGURATION, sort=False):
        if "run_id" in group and group["run_id"].notna().all():
            keys[group.index] = _by_id(group)
        else:
            found, problem = _by_order(group)
            keys[group.index] = found
            problems += [problem] if problem else []
    return keys, problems


def _by_id(group: pd.DataFrame) -> pd.Series[Any]:
    ids = group["run_id"].astype(str)
    is_shared = group.duplicated(["run_id", "rank"], keep=False).groupby(ids).transform("any")
    return ids.where(~is_shared, ids + " of " + group["file"])


def _by_order(group: pd.DataFrame) -> tuple[list[str], str | None]:
    blocks = (group["rank"].diff().fillna(-1) <= 0).cumsum() - 1
    # The end of a file ends a run only if the ranks start over.
    counts = group["rank"].value_counts()
    if int(blocks.iloc[-1]) + 1 == int(counts.max()):
        numbers = blocks.astype(int)
    elif counts.nunique() == 1:
        numbers = group.groupby("rank").cumcount()
    else:
        first = group.iloc[0]
        fewest, most = counts.idxmin(), counts.idxmax()
        problem = (
            f"{first['file']}: {len(group)} rows of {first['num_devices']} devices and batch "
            f"{first['batch']} from line {first['line']} on: rank {fewest} has {counts[fewest]} "
            f"and rank {most} has {counts[most]}, so it is unclear which belong together; map a "
            "column that numbers the runs with =run_id"
        )
        return [""] * len(group), problem
    return [f"{number:06d}" for number in numbers], None
