"""Atomic writing: readers find the old file, the new one or none, never part of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems without hard links (vfat, some FUSE and SMB mounts)."""
_TEMPORARY = re.compile(r"^\..*-(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")


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


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` to `path` as UTF-8.

    Args:
        path: replaced only when everything is written.
        text: what it will hold.
        durable: whether it must be on disk before it replaces an older file, which takes a few
            milliseconds.

    Raises:
        OSError: the folder is missing or cannot be written (no space, no permission).
    """
    with replacing(path) as temporary:
        _write(temporary, text, durable)


def write_new(path: Path, text: str) -> bool:
    """Write `text` to `path` unless it exists; return whether it was written.

    The file is linked into place, which fails if one exists, even on a network file system that
    does not show it to this machine yet. On a file system without hard links, `path` is first
    created empty.

    Raises:
        OSError: the folder is missing or cannot be written (no space, no permission).
    """
    with _temporary(path) as temporary:
        _write(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _replace_new(temporary, path)
        return True


def _replace_new(temporary: Path, path: Path) -> bool:
    """Move `temporary` to `path` unless it exists; return whether it was moved."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    temporary.replace(path)
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that writers on this machine left in `folder` when killed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _TEMPORARY.match(path.name)
            if found is None or found["host"] != _host() or _lives(int(found["pid"])):
                continue
            with contextlib.suppress(OSError):
                path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # a process of another user
    return True


def _host() -> str:
    """This machine, as a word that is valid in a file name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, removed at the end if it is still there.

    The user's umask decides who may read it. Its name says who writes it, so that it can be
    removed once that process is gone (:func:`remove_leftovers`).
    """
    name = f".{path.stem}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    temporary.open("x").close()
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, text: str, durable: bool = True) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        if not durable:
            return
        file.flush()
        os.fsync(file.fileno())


def only_we_write(path: Path) -> bool:
    """Whether `path` belongs to this user and nobody else can write to it, so its code is safe.

    Raises:
        OSError: it cannot be inspected.
    """
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
