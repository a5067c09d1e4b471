"""Atomic writing: readers find the old file, the new one or none, never part of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it if the block succeeds.

    The temporary file already exists, so it can be opened by name. If the block raises, the
    temporary file is removed and `path` is unchanged. Nothing is forced to disk.

    Raises:
        OSError: the folder is missing or cannot be written (no space, no permission).
    """
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8; it is on disk before it replaces an older file.

    Raises:
        OSError: the folder is missing or cannot be written (no space, no permission).
    """
    with replacing(path) as temporary:
        _write(temporary, text)


def write_new(path: Path, text: str) -> bool:
    """Write `text` to `path` unless that exists; return whether it was written.

    The file is linked into place, which fails if one exists, even on a network file system that
    does not show it to this machine yet.

    Raises:
        OSError: the folder is missing or cannot be written (no space, no permission).
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
    """An empty file beside `path`, removed at the end if it is still there."""
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
