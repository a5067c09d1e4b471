"""Prepares data once, in the parent process, before any rank starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from dpeval.config import LOADERS, DatasetConfig
from dpeval.data.sources import pixel_cache
from dpeval.data.sources.progress import Report
from dpeval.data.sources.source import Source, data_root, one_line
from dpeval.errors import ConfigError, DataError
from dpeval.record.schema import DatasetUsed
from dpeval.util.importing import check_arguments, locate


class MakeSource(Protocol):
    """The signature of what ``dataset._target_`` names."""

    def __call__(self, config: DatasetConfig, root: Path, report: Report, **args: Any) -> Source:
        """Prepare the data unless it exists; return its files and labels.

        Called for every run, in one process of every node, before any rank starts.

        Args:
            config: the keys of ``dataset``; the source must have ``num_classes`` classes.
            root: folder for the data: ``dataset.root``, or dpeval's data folder.
            report: prints one line for the user.
            args: ``dataset.args``.

        Raises:
            DataError: the data is missing or damaged; the message is one line.
        """


def prepare(config: DatasetConfig, report: Report = print) -> Source:
    """Prepare the data of `config`; concurrent processes prepare it only once.

    Raises:
        DataError: the data is missing or damaged and cannot be repaired.
        ConfigError: ``dataset._target_`` or ``dataset.loader`` cannot be imported, or does not
            accept its arguments.
    """
    make = locate(config._target_, key="dataset._target_")
    check_arguments(make, ("config", "root", "report"), config.args, key="dataset.args")
    needs_cache = _needs_cache(config)
    with one_line(f"dataset={config.name}"):
        source = _checked(make(config, data_root(config), report, **config.args), config)
        if needs_cache and not source.loader:
            source = pixel_cache.ensure(source, config, report)
    return source


def _needs_cache(config: DatasetConfig) -> bool:
    """Whether the loader reads decoded images; also checks that it exists and its arguments fit."""
    if "." not in config.loader:
        if config.loader_args:
            raise ConfigError(
                f"dataset.loader={config.loader} takes no dataset.loader_args, but "
                f"{dict(config.loader_args)} was given; only your own loaders take arguments"
            )
        return LOADERS[config.loader].needs_cache
    loader = locate(config.loader, key="dataset.loader")
    check_arguments(loader, ("shard",), config.loader_args, key="dataset.loader_args")
    return bool(getattr(loader, "needs_cache", False))


def _checked(source: object, config: DatasetConfig) -> Source:
    if not isinstance(source, Source):
        raise ConfigError(
            f"dataset={config.name}: {config._target_} returned a {type(source).__name__}; "
            "it must return a dpeval.data.Source"
        )
    if source.num_classes != config.num_classes:
        raise DataError(
            f"{source.root} has {source.num_classes} classes, but dataset.num_classes="
            f"{config.num_classes}; set dataset.num_classes={source.num_classes}"
        )
    if len(source.train_files) != len(source.train_labels):
        raise ConfigError(
            f"dataset={config.name}: {config._target_} returned {len(source.train_files)} "
            f"train_files and {len(source.train_labels)} train_labels; every file needs a label"
        )
    requested = source.requested or config.name
    named = {"requested": requested, "used": source.used or requested}
    return source.model_copy(update=named)


def used(source: Source, config: DatasetConfig) -> DatasetUsed:
    """The entry on the data in the record."""
    note = source.note
    if config.loader == "constant" and not source.loader:
        upper = "one batch is repeated: an upper bound on speed, not real training"
        note = f"{note}; {upper}" if note else upper
    return DatasetUsed(
        requested=source.requested,
        used=source.used,
        root=source.root,
        train_images=source.train_samples,
        val_images=len(source.val_files),
        num_classes=source.num_classes,
        note=note,
        loader="own" if source.loader else config.loader,
        augment=config.augment,
        left_out=source.left_out,
    )
