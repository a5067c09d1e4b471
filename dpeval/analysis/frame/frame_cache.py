"""A cache of what was read from records: one Parquet file beside the analysis."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpeval.analysis.frame import columns
from dpeval.analysis.frame.reader import Line
from dpeval.record.io import SCHEMA_VERSION
from dpeval.util.files import replacing
from dpeval.util.version import __version__

FILE_NAME = ".cache.parquet"
_KEY = b"dpeval"
_STAMP = pa.schema(
    {"file": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64(), "problem": pa.string()}
)
# A file without a row has none of these columns, and series are assigned to all runs together.
_SCHEMA = pa.schema(
    [*_STAMP, *(each.with_nullable(True) for each in columns.SCHEMA if each.name != "series")]
)


@dataclass(frozen=True)
class Entry:
    """What one file contained, with its size (bytes) and modification time (ns) when it was
    read."""

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
        """Whether the entry of `file` is current."""
        entry = self.entries.get(file)
        return entry is not None and entry.stamp == stamp and stamp != (0, 0)

    def get(self, file: str) -> Line:
        """What `file` contained."""
        return self.entries[file].line


def _version() -> bytes:
    """A version that changes whenever the same record may give a different row."""
    return json.dumps(
        [__version__, SCHEMA_VERSION, columns.VERSION, [str(each) for each in columns.SCHEMA]]
    ).encode()


def read(path: Path) -> Cache:
    """The cache at `path`; empty if it is absent, damaged or of another version."""
    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(_KEY) != _version():
            return Cache()
        values = table.to_pydict()
        files = [str(name) for name in values["file"]]
        stamps = list(zip(values["size"], values["mtime_ns"], strict=True))
        problems = values["problem"]
        names = [name for name in values if name not in _STAMP.names]
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
    """Save `entries`; if the folder cannot be written, do nothing."""
    rows = [
        {
            "file": entry.file,
            "size": entry.stamp[0],
            "mtime_ns": entry.stamp[1],
            **(entry.line if isinstance(entry.line, dict) else {"problem": entry.line}),
        }
        for entry in entries
    ]
    table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata({_KEY: _version()}))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)
