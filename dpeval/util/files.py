"""Atomic writing: a reader finds the old file, the new one, or none, never a part of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The temporary file exists already, so it can be opened by name. A block that raises leaves
    neither a temporary file nor a changed `path`. Nothing is forced to disk.

    Raises:
        OSError: the folder is not there or cannot be written (no space, no permission).
    """
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, on disk before it takes the place of an older file.

    Raises:
        OSError: the folder is not there or cannot be written (no space, no permission).
    """
    with replacing(path) as temporary:
        _write(temporary, text)


def write_new(path: Path, text: str) -> bool:
    """Write `text` to `path` unless there is a file already; say whether it was written.

    The file is linked into place, which fails where one exists, also on a network file system
    whose listing on this machine does not show it yet.

    Raises:
        OSError: the folder is not there or cannot be written (no space, no permission).
    """
    with _temporary(path) as temporary:
        _write(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, removed at the end wherever it still is."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
