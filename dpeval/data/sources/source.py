"""A source: prepared data, where it lies, and the lock under which it is made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dpeval.config import DatasetConfig
from dpeval.data.sources.progress import Say
from dpeval.errors import DataError
from dpeval.util.frozen import Frozen

LOCK_WAIT_S = 3600.0


class Source(Frozen):
    """Prepared data, as it travels to every rank: image files and their labels.

    Data that is no folder of images leaves the files out and names its own `loader`.
    """

    requested: str = ""
    """The dataset that was asked for; "": its name in the configuration."""
    used: str = ""
    """What the images really are, where that differs."""
    root: str
    """Folder that the files' paths are relative to."""
    note: str = ""
    """Anything a reader of the figures has to know about the data."""
    num_classes: int
    train_files: list[str] = []
    train_labels: list[int] = []
    """The class of each file, from 0."""
    val_files: list[str] = []
    val_labels: list[int] = []
    cache: str | None = None
    """The decoded images, where the loader wants them (:mod:`dpeval.data.sources.pixel_cache`)."""
    loader: str = ""
    """Import path of the loader of a source that is no folder of images, called as
    ``loader(shard)``; "": ``dataset.loader``."""


def store() -> Path:
    """Where dpeval keeps data: ``$DPEVAL_DATA`` or ``~/.cache/dpeval``."""
    return Path(os.environ.get("DPEVAL_DATA") or "~/.cache/dpeval").expanduser().absolute()


def data_root(config: DatasetConfig) -> Path:
    """Where the data of `config` lies: ``dataset.root``, or the store."""
    return Path(config.root).expanduser().absolute() if config.root else store()


@contextmanager
def making(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock under which `path` is made; say so while another process holds it.

    Whoever needs `path` looks for it first, so that finished data can be read where nothing
    can be written, and looks again once the lock is held.

    Raises:
        DataError: another process holds the lock for over an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process makes {path}; waiting for it")
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout as error:
            raise DataError(
                f"{path} is being made by another process for over {LOCK_WAIT_S / 60:.0f} "
                "minutes; end that process, or choose another folder with DPEVAL_DATA"
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn what the file system refuses into a :class:`DataError` that names the file."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "; free space there or choose another folder with DPEVAL_DATA",
            errno.EDQUOT: "; free space there or choose another folder with DPEVAL_DATA",
            errno.EACCES: "; choose a folder that can be written with DPEVAL_DATA",
            errno.EPERM: "; choose a folder that can be written with DPEVAL_DATA",
            errno.EROFS: "; choose a folder that can be written with DPEVAL_DATA",
        }.get(error.errno or 0, "")
        named = f"{what}: {error.filename}" if error.filename else what
        raise DataError(f"{named}: {error.strerror or error}{advice}") from error
