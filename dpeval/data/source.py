"""Data made ready: found, downloaded or generated once, by the parent, under a lock."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dpeval.config import DatasetConfig
from dpeval.data.progress import Say
from dpeval.errors import DataError
from dpeval.record import DatasetUsed
from dpeval.schema import Frozen

LOCK_WAIT_S = 3600.0
Make = Callable[[DatasetConfig, Path, Say], object]
"""What ``dataset._target_`` names: from the configuration and the data's folder to a source."""


class Source(Frozen):
    """Prepared data: which files, with which labels. Travels to every rank."""

    requested: str
    used: str
    root: str
    """Folder that the files' paths are relative to."""
    note: str = ""
    num_classes: int
    train_files: list[str]
    train_labels: list[int]
    val_files: list[str] = []
    val_labels: list[int] = []
    cache: str | None = None
    """The decoded images, where the loader wants them (see :mod:`dpeval.data.cache`)."""
    feed: str = ""
    """Importable feed factory of a source that is no folder of images; "" for the loaders."""


def store() -> Path:
    """Where dpeval keeps data: ``$DPEVAL_DATA`` or ``~/.cache/dpeval``."""
    return Path(os.environ.get("DPEVAL_DATA") or "~/.cache/dpeval").expanduser().absolute()


def data_root(config: DatasetConfig) -> Path:
    """Where the data of `config` lies: ``dataset.root``, or the store."""
    return Path(config.root).expanduser().absolute() if config.root else store()


def prepare(config: DatasetConfig, say: Say = print) -> Source:
    """Make the data of `config` ready, once however many processes ask at a time.

    Raises:
        DataError: the data is absent or damaged and cannot be mended.
        ConfigError: ``dataset._target_`` cannot be imported.
    """
    # Late: models imports torch, which the processes that only generate images do without.
    from dpeval.models import locate

    make: Callable[[DatasetConfig, Path, Say], object] = locate(
        config._target_, key="dataset._target_"
    )
    with one_line(f"dataset={config.name}"):
        source = _checked(make(config, data_root(config), say), config)
        if config.loader in ("cached", "resident") and not source.feed:
            from dpeval.data import cache

            source = cache.ensure(source, config, say)
    return source


def _checked(source: object, config: DatasetConfig) -> Source:
    if not isinstance(source, Source):
        raise DataError(
            f"dataset={config.name}: {config._target_} returned a {type(source).__name__}; "
            "it must return a dpeval.data.Source"
        )
    if source.num_classes != config.num_classes:
        raise DataError(
            f"{source.root} has {source.num_classes} classes and dataset.num_classes="
            f"{config.num_classes}; set dataset.num_classes={source.num_classes}"
        )
    return source


def used(source: Source, config: DatasetConfig) -> DatasetUsed:
    """What the record says of the data."""
    note = source.note
    if config.loader == "constant" and not source.feed:
        upper = "one batch is repeated: an upper bound of the speed, not a training"
        note = f"{note}; {upper}" if note else upper
    return DatasetUsed(
        requested=source.requested,
        used=source.used,
        root=source.root,
        train_images=len(source.train_files),
        val_images=len(source.val_files),
        num_classes=source.num_classes,
        note=note,
        loader="own" if source.feed else config.loader,
        augment=config.augment,
    )


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
