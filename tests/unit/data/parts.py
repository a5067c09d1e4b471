"""A dataset and a loader of a user's own, named by their import paths in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data import Source
from dpeval.data.loading.loaders import Shard
from dpeval.data.sources.progress import Report


def files_named(config: DatasetConfig, root: Path, report: Report, *, names: list[str]) -> Source:
    """A source whose files are named by an argument of its own."""
    return Source(
        root=str(root),
        num_classes=config.num_classes,
        train_files=names,
        train_labels=[0] * len(names),
    )


def unlabelled(config: DatasetConfig, root: Path, report: Report) -> Source:
    """A source that forgets a label."""
    return Source(root=str(root), num_classes=config.num_classes, train_files=["a.jpg"])


def a_folder(config: DatasetConfig, root: Path, report: Report) -> Path:
    """No source."""
    return root


class Grey:
    """A loader whose images have one brightness, and that asks for the decoded images."""

    needs_cache = True

    def __init__(self, shard: Shard, *, brightness: float = 0.5) -> None:
        self.images_read = 0
        self.cache = shard.source.cache
        self._batch, self._px, self._brightness = shard.batch, shard.config.image_px, brightness

    def next(self) -> Tensor:
        return torch.full((self._batch, 3, self._px, self._px), self._brightness)

    def put(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.images_read += len(batch)
        return batch, torch.zeros(len(batch), dtype=torch.int64)

    def close(self) -> None:
        pass


def no_loader(shard: Shard) -> dict[str, Any]:
    """No loader."""
    return {}
