"""Data made ready: found, downloaded or generated once, by the parent, under a lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from dpeval.config import DatasetConfig
from dpeval.errors import DataError
from dpeval.models import locate
from dpeval.record import DatasetUsed
from dpeval.schema import Frozen

Say = Callable[[str], None]
LOCK_WAIT_S = 3600.0


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


def data_root(config: DatasetConfig) -> Path:
    """Where data lies: ``dataset.root``, ``$DPEVAL_DATA`` or ``~/.cache/dpeval``."""
    return Path(config.root or os.environ.get("DPEVAL_DATA") or "~/.cache/dpeval").expanduser()


def prepare(config: DatasetConfig, say: Say) -> Source:
    """Make the data of `config` ready, once per folder however many processes ask at a time.

    Raises:
        DataError: the data is absent or damaged and cannot be mended.
    """
    from dpeval.data import cache

    make = locate(config._target_, key="dataset._target_")
    root = data_root(config)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock", timeout=LOCK_WAIT_S):
            source: Source = make(config, root, say)
            if config.loader in ("cached", "resident") and not source.feed:
                source = cache.ensure(source, config, root, say)
    except Timeout as error:
        raise DataError(
            f"{root} is being prepared by another process for over {LOCK_WAIT_S / 60:.0f} minutes; "
            "wait for it, or choose another folder with dataset.root"
        ) from error
    except OSError as error:
        raise DataError(
            f"dataset={config.name}: {error.filename or root}: {error.strerror or error}; "
            "free space there or choose another folder with dataset.root"
        ) from error
    if source.num_classes != config.num_classes:
        raise DataError(
            f"{source.root} has {source.num_classes} classes and dataset.num_classes="
            f"{config.num_classes}; set dataset.num_classes={source.num_classes}"
        )
    return source


def used(source: Source, config: DatasetConfig) -> DatasetUsed:
    """What the record says of the data."""
    return DatasetUsed(
        requested=source.requested,
        used=source.used,
        root=source.root,
        train_images=len(source.train_files),
        val_images=len(source.val_files),
        num_classes=source.num_classes,
        note=source.note,
        loader="own" if source.feed else config.loader,
        augment=config.augment,
    )
