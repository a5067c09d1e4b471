"""What was read from records before, kept in one Parquet file beside the analysis."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpeval import __version__
from dpeval.analysis.frame import columns
from dpeval.analysis.frame.reader import Line
from dpeval.record.io import SCHEMA_VERSION
from dpeval.util.files import replacing

FILE_NAME = ".cache.parquet"
_KEY = b"dpeval"
_STAMP = ("file", "size", "mtime_ns", "problem")


@dataclass(frozen=True)
class Entry:
    """What one file said, and the size (bytes) and time of change (ns) that it had then."""

    file: str
    stamp: tuple[int, int]
    line: Line


@dataclass(frozen=True)
class Cache:
    """Entries by file."""

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])

    def __len__(self) -> int:
        return len(self.entries)

    def has(self, file: str, stamp: tuple[int, int]) -> bool:
        """Whether `file` is known as it is now."""
        entry = self.entries.get(file)
        return entry is not None and entry.stamp == stamp and stamp != (0, 0)

    def get(self, file: str) -> Line:
        """What `file` said."""
        return self.entries[file].line


def _version() -> bytes:
    """Changes whenever the same record may give another row."""
    return json.dumps(
        [__version__, SCHEMA_VERSION, columns.VERSION, list(columns.COLUMNS)]
    ).encode()


def read(path: Path) -> Cache:
    """What `path` keeps; nothing where it is absent, damaged or of another version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(_KEY) != _version():
            return Cache()
        values = table.to_pydict()
        files = [str(name) for name in values["file"]]
        stamps = list(zip(values["size"], values["mtime_ns"], strict=True))
        problems = values["problem"]
        names = [name for name in values if name not in _STAMP]
        lists = [values[name] for name in names]
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return Cache()
    entries = {
        file: Entry(file, stamp, problem or dict(zip(names, line, strict=True)))
        for file, stamp, problem, line in zip(
            files, stamps, problems, zip(*lists, strict=True), strict=True
        )
    }
    return Cache(entries)


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Keep `entries`; where the folder cannot be written there is no cache, and no error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [entry.line if isinstance(entry.line, dict) else {} for entry in entries]
    problems = [entry.line if isinstance(entry.line, str) else "" for entry in entries]
    arrays: dict[str, Any] = {
        "file": pa.array([entry.file for entry in entries], pa.string()),
        "size": pa.array([entry.stamp[0] for entry in entries], pa.int64()),
        "mtime_ns": pa.array([entry.stamp[1] for entry in entries], pa.int64()),
        "problem": pa.array(problems, pa.string()),
    }
    for name in columns.COLUMNS:
        if name != "series":
            arrays[name] = pa.array([line.get(name) for line in lines], _type(name))
    table = pa.table(arrays).replace_schema_metadata({_KEY: _version()})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)


def _type(name: str) -> Any:
    import pyarrow as pa

    if name in columns.TEXTS:
        return pa.string()
    if name in columns.INTEGERS:
        return pa.int64()
    return pa.bool_() if name in columns.BOOLEANS | columns.OBJECTS else pa.float64()
