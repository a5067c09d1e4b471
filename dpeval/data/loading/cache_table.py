"""A finished cache, mapped into memory so that all ranks of a node share one copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data.images.augment import Boxes, Flips, place, scaled
from dpeval.data.loading.sampler import Step
from dpeval.data.sources.pixel_cache import layout, record_type
from dpeval.data.sources.source import Source

PAGE_BYTES = 4096


class CacheTable:
    """The records of a cache, in this node's page cache."""

    def __init__(self, source: Source, config: DatasetConfig) -> None:
        """Map the cache that ``prepare`` built for `config`."""
        if source.cache is None:
            raise ValueError(f"{source.root} was prepared for a loader other than {config.loader}")
        self._layout = layout(config)
        kind, images = record_type(self._layout.side_px), len(source.train_files)
        # Copy-on-write, because torch has no read-only tensors; nothing ever writes to it.
        self._bytes = np.memmap(source.cache, np.uint8, "c", shape=(images, kind.itemsize))
        records: NDArray[Any] = self._bytes.view(kind)[:, 0]
        self.squares = split_rows(self.rows, self.side_px)
        """uint8 [images, side, side, 3]"""
        self._sizes: NDArray[np.int32] = records["size"].copy()

    @property
    def side_px(self) -> int:
        return self._layout.side_px

    @property
    def rows(self) -> Tensor:
        """Whole records, uint8 [images, record]; see :func:`split_rows`."""
        return torch.from_numpy(self._bytes)

    def read_in(self) -> None:
        """Fault in every page now, so that no step does."""
        self._bytes.reshape(-1)[::PAGE_BYTES].max()

    def crops(self, step: Step) -> tuple[Boxes, Flips]:
        """The crops of a step in pixels of the squares, [b, 4], and the flips, [b]."""
        count, side = len(step.indices), self.side_px
        if self._layout.content == "middle":
            return np.tile([0, 0, side, side], (count, 1)), np.zeros(count, bool)
        heights, widths = self._sizes[step.indices].T
        boxes, flips = place(heights, widths, step.draws, "random_resized_crop")
        sides = np.full(count, side)
        return scaled(boxes, heights, widths, sides, sides), flips

    def where(self, step: Step) -> Tensor:
        """:meth:`crops` as one tensor, for a single transfer: boxes and flips, int64 [b, 5]."""
        boxes, flips = self.crops(step)
        return torch.from_numpy(np.column_stack([boxes, flips]))


def split_rows(rows: Tensor, side_px: int) -> Tensor:
    """The squares in `rows`, uint8 [b, record], as [b, side, side, 3]."""
    return rows[:, : 3 * side_px**2].view(len(rows), side_px, side_px, 3)
