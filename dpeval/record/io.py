"""Reads and writes ``metrics.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpeval.errors import RecordError
from dpeval.record.schema import Record
from dpeval.util.files import write_atomically

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)
FILE_NAME = "metrics.json"


def write(record: Record, path: Path, *, durable: bool = True) -> None:
    """Write `record` to `path` atomically, and make its folder if needed.

    Args:
        record: what was measured.
        path: its ``metrics.json``.
        durable: whether it must be on disk on return: not if it can be made again.

    Raises:
        OSError: the folder cannot be written (no space, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, record.model_dump_json(indent=None) + "\n", durable=durable)


def read(path: Path) -> Record:
    """Read a record of any schema version.

    Raises:
        RecordError: not JSON, not a dpeval record, truncated, or of a later version.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    return parse(text, str(path))


def below(folder: Path) -> Iterator[Path]:
    """Paths of all records below `folder`, in no particular order."""
    # Path.rglob takes four times as long on a tree of 100,000 folders.
    for base, _, names in os.walk(folder):
        if FILE_NAME in names:
            yield Path(base) / FILE_NAME


def parse(text: bytes, name: str) -> Record:
    """Parse the bytes of a ``metrics.json``.

    Args:
        text: the bytes, JSON.
        name: how messages refer to it, usually its path.

    Raises:
        RecordError: see :func:`read`.
    """
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{name}: {_why(text, error)}") from error


def _why(text: bytes, error: ValidationError) -> str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "is not complete JSON"
    if not isinstance(content, dict) or "schema_version" not in content:
        return "is not a dpeval record (no schema_version)"
    version = content["schema_version"]
    if version not in READABLE:
        return f"has schema version {str(version)[:20]}; this dpeval reads up to {SCHEMA_VERSION}"
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return f"is not a valid record: {where}: {first['msg']}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``metrics.json``."""
    return Record.model_json_schema()
