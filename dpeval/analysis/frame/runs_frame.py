"""Records to two tidy frames: one row per run, and one row per rank, step and phase.

The type, meaning and unit of every column are in :data:`~dpeval.analysis.frame.columns.SCHEMA`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dpeval import record
from dpeval.analysis.frame import cohorts, frame_cache, reader
from dpeval.analysis.frame.columns import COLUMNS, SCHEMA
from dpeval.analysis.frame.row import row, text
from dpeval.errors import RecordError
from dpeval.record.phases import PHASES
from dpeval.record.schema import Record

__all__ = ["COLUMNS", "CONFIGURATION", "Loaded", "find", "is_measured", "load", "of_records", "row"]

CONFIGURATION: list[str] = ["series", "hardware", "scaling", "num_devices", "batch"]
"""What two runs of a series must share to be repetitions of each other."""
STEP_COLUMNS = ("path", "rank", "step", "phase", "seconds", "measured")


@dataclass(frozen=True)
class Loaded:
    """All readable runs, and what could not be read."""

    runs: pd.DataFrame
    """One row per run, columns :data:`~dpeval.analysis.frame.columns.COLUMNS`, oldest first."""
    problems: list[str]
    """One line for each file that was left out, and why."""
    from_cache: int = 0
    """How many files came from the cache."""
    differences: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """Per series, the fields in which the series differ."""

    def steps(self) -> pd.DataFrame:
        """The long frame: one row per run, rank, step and phase; read from the records again.

        Columns: `path` (folder of the record), `rank`, `step` (from the run's first), `phase` (one
        of :data:`PHASES`, or ``step`` for the whole), `seconds`, `measured` (False: warm-up). A
        record that no longer exists is left out."""
        parts = list(_step_parts(self.runs["path"]))
        if not parts:
            return pd.DataFrame(columns=list(STEP_COLUMNS))
        return pd.concat(parts, ignore_index=True)


def is_measured(runs: pd.DataFrame) -> pd.Series[bool]:
    """Which runs succeeded and have a throughput."""
    return runs["status"].eq("ok") & runs["img_per_s"].notna()


def load(paths: Iterable[Path], cached: Path | None = None) -> Loaded:
    """Read every ``metrics.json`` at or below `paths`.

    Args:
        paths: files, or folders to search.
        cached: a Parquet file that caches what was read, so that an unchanged record (same path,
            size and modification time) is not parsed twice; None: no cache.
    """
    files = find(paths)
    known = frame_cache.read(cached) if cached is not None else frame_cache.Cache()
    stamps = {file: _stamp(file) for file in files}
    fresh = [file for file in files if not known.has(str(file), stamps[file])]
    lines = dict(zip(fresh, reader.parse_all(fresh), strict=True))
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    entries: list[frame_cache.Entry] = []
    for file in files:
        line = lines[file] if file in lines else known.get(str(file))
        (problems if isinstance(line, str) else rows).append(line)  # type: ignore[arg-type]
        entries.append(frame_cache.Entry(str(file), stamps[file], line))
    if cached is not None and (fresh or len(files) != len(known)):
        frame_cache.write(cached, entries)
    return _loaded(rows, problems, len(files) - len(fresh))


def of_records(records: Iterable[tuple[Record, Path]]) -> Loaded:
    """The frame of records in memory, each with the folder to show for it."""
    rows, problems = [], []
    for run, folder in records:
        try:
            rows.append(row(run, folder))
        except RecordError as error:
            problems.append(text(error))
    return _loaded(rows, problems, 0)


def _loaded(rows: Sequence[dict[str, Any]], problems: list[str], from_cache: int) -> Loaded:
    runs = typed({name: [line.get(name) for line in rows] for name in COLUMNS})
    runs["series"] = cohorts.assign(runs)
    runs = runs.sort_values(["started_at", "path"], ignore_index=True)
    return Loaded(runs, problems, from_cache, cohorts.differences(runs))


def typed(values: dict[str, list[Any]]) -> pd.DataFrame:
    """A frame with the columns and types of :data:`~dpeval.analysis.frame.columns.SCHEMA`."""
    made = {}
    for column in SCHEMA:
        listed = values[column.name]
        if pa.types.is_string(column.type):
            listed = [value or "" for value in listed]
        if pa.types.is_list(column.type):
            listed = [value or [] for value in listed]
        # Strings and columns that may hold None are objects.
        dtype = object if column.nullable else column.type.to_pandas_dtype()
        made[column.name] = pd.Series(listed, dtype=dtype)
    return pd.DataFrame(made)


def find(paths: Iterable[Path]) -> list[Path]:
    """Every record at or below `paths`, each once, in a fixed order."""
    found: dict[Path, None] = {}
    for path in paths:
        files = [path] if path.is_file() else sorted(record.below(path))
        found.update(dict.fromkeys(files))
    return list(found)


def _stamp(file: Path) -> tuple[int, int]:
    """Size (bytes) and modification time (ns); zeros if the file is gone."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _step_parts(folders: Iterable[str]) -> Iterator[pd.DataFrame]:
    for folder in folders:
        try:
            run = record.read(Path(folder) / record.FILE_NAME)
        except RecordError:
            continue
        first = run.window.first if run.window is not None else None
        for rank in run.ranks:
            for phase, values in (("step", rank.step_s), *rank.phase_s.items()):
                if phase == "step" or phase in PHASES:
                    yield _long(folder, rank.rank, phase, values, first)


def _long(
    folder: str, rank: int, phase: str, values: Sequence[float], first: int | None
) -> pd.DataFrame:
    made = pd.DataFrame({"step": range(len(values)), "seconds": list(values)})
    made["measured"] = made["step"] >= (len(values) if first is None else first)
    return made.assign(path=folder, rank=rank, phase=phase)[list(STEP_COLUMNS)]
