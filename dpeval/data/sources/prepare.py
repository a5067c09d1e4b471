"""Data made ready once, by the parent, before any rank starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpeval.config import DatasetConfig
from dpeval.data.sources import pixel_cache
from dpeval.data.sources.progress import Say
from dpeval.data.sources.source import Source, data_root, one_line
from dpeval.errors import DataError
from dpeval.record.schema import DatasetUsed
from dpeval.util.importing import locate

Make = Callable[[DatasetConfig, Path, Say], object]
"""What ``dataset._target_`` names: from the configuration and the data's folder to a source."""


def prepare(config: DatasetConfig, say: Say = print) -> Source:
    """Make the data of `config` ready, once however many processes ask at a time.

    Raises:
        DataError: the data is absent or damaged and cannot be mended.
        ConfigError: ``dataset._target_`` cannot be imported.
    """
    make: Callable[[DatasetConfig, Path, Say], object] = locate(
        config._target_, key="dataset._target_"
    )
    with one_line(f"dataset={config.name}"):
        source = _checked(make(config, data_root(config), say), config)
        if config.loader in ("cached", "resident") and not source.feed:
            source = pixel_cache.ensure(source, config, say)
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
