"""Feeds hand one rank its share of every global batch, as far out of the way as asked.

``jpeg`` decodes files in every step; ``cached`` crops pixels that were decoded once;
``resident`` keeps those pixels on the device and crops there; ``constant`` gives one batch
again and again (no training, but the upper bound). Images stay uint8 until they are on the
device, and the same step shows the same crops of the same images on every loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data.images.device_transforms import Normaliser, crop_batch
from dpeval.data.loading.cache_table import CacheTable, split_rows
from dpeval.data.loading.readers import (
    Batches,
    CacheReader,
    GatherReader,
    JpegReader,
    Reader,
    WholeReader,
)
from dpeval.data.loading.sampler import ShardedSampler
from dpeval.data.sources.source import Source
from dpeval.devices.base import Device
from dpeval.util.importing import locate

MAX_WORKERS = 16
"""Per rank; one core decodes about a thousand full-size images a second."""
CACHE_WORKERS = 2
"""Copying from the cache needs no more."""


class Feed(Protocol):
    """What a rank's loop needs of its data."""

    images_read: int

    def next(self) -> Any:
        """The next batch as the host has it: timed as `data`."""

    def put(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The batch on the device, images float32 [b, 3, px, px], labels int64: timed as `h2d`.

        Images and labels are valid until the next call.
        """

    def close(self) -> None:
        """Let go of workers and files."""


@dataclass(frozen=True)
class Share:
    """What one rank is to read, and for which device."""

    source: Source
    config: DatasetConfig
    shares: Sequence[int]
    rank: int
    seed: int
    device: Device
    channels_last: bool
    spare_cpus: Sequence[int]

    def sampler(self) -> ShardedSampler:
        return ShardedSampler(len(self.source.train_files), self.shares, self.rank, self.seed)

    def normaliser(self) -> Normaliser:
        return Normaliser(self.device.torch_device, channels_last=self.channels_last)

    def workers(self) -> int:
        """Processes that read ahead: as asked, or else as many as have a core of their own."""
        if self.config.workers is not None:
            return self.config.workers
        if self.config.loader == "jpeg":
            return min(len(self.spare_cpus), MAX_WORKERS)
        # On CPU a crop out of the cache costs less than handing it from process to process.
        return min(len(self.spare_cpus), CACHE_WORKERS) if self.device.is_cuda else 0


def make_feed(
    source: Source,
    config: DatasetConfig,
    *,
    shares: Sequence[int],
    rank: int,
    seed: int,
    device: Device,
    channels_last: bool,
    spare_cpus: Sequence[int],
) -> Feed:
    """The feed of one rank.

    Args:
        shares: images of each rank in one global batch.
        spare_cpus: logical CPUs on which this rank may read ahead; with none it reads between
            its steps, and the time shows as waiting for data.

    Raises:
        DataError: fewer images than one global batch.
    """
    share = Share(source, config, shares, rank, seed, device, channels_last, spare_cpus)
    if source.feed:
        feed: Feed = locate(source.feed, key="the data set's feed")(share)
        return feed
    return LOADERS[config.loader](share)


class HostFeed:
    """Pixels come ready from the host: ``jpeg``, and ``cached`` on CPU."""

    def __init__(self, share: Share, reader: Reader) -> None:
        self._normalised = share.normaliser()
        self._host = Batches(
            reader,
            share.sampler(),
            workers=share.workers(),
            cpus=share.spare_cpus,
            pinned=share.device.is_cuda,
        )
        self._sender = share.device.sender()
        self._batches: Iterator[Any] = self._sender.ahead(self._host)
        self.images_read = 0

    def next(self) -> Any:
        return next(self._batches)

    def put(self, batch: Any) -> tuple[Tensor, Tensor]:
        pixels, labels, *where = self._sender.receive(batch)
        self.images_read += len(labels)
        return self._normalised(self._cropped(pixels, *where)), labels

    def _cropped(self, pixels: Tensor) -> Tensor:
        return pixels

    def close(self) -> None:
        self._host.close()


class DeviceCroppedFeed(HostFeed):
    """Records come whole from the host and are cropped by the device: ``cached`` on CUDA."""

    def __init__(self, share: Share) -> None:
        table = CacheTable(share.source, share.config)
        self._side_px, self._px = table.side_px, share.config.image_px
        super().__init__(share, WholeReader(share.source, table))

    def _cropped(self, pixels: Tensor, *where: Tensor) -> Tensor:
        squares = split_rows(pixels, self._side_px)
        return crop_batch(squares, where[0], self._px)


class ResidentFeed:
    """Keeps all pixels on a CUDA device and crops there: the input costs next to nothing."""

    def __init__(self, share: Share) -> None:
        self._table = CacheTable(share.source, share.config)
        self._px = share.config.image_px
        self._device = share.device.torch_device
        self._rows = self._table.rows.to(self._device)
        self._labels = torch.tensor(share.source.train_labels, device=self._device)
        self._normalised = share.normaliser()
        self._steps = iter(share.sampler())
        self.images_read = 0

    def next(self) -> Tensor:
        step = next(self._steps)
        return torch.column_stack([torch.from_numpy(step.indices), self._table.where(step)])

    def put(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.images_read += len(batch)
        there = batch.to(self._device, non_blocking=True)
        index, where = there[:, 0], there[:, 1:]
        squares = split_rows(self._rows.index_select(0, index), self._table.side_px)
        return self._normalised(crop_batch(squares, where, self._px)), self._labels[index]

    def close(self) -> None:
        pass


class ConstantFeed:
    """One batch, made once and given again and again: no training, only an upper bound."""

    def __init__(self, share: Share) -> None:
        reader = JpegReader(share.source, share.config.image_px, share.config.augment)
        pixels, labels = reader(next(iter(share.sampler())))
        device = share.device.torch_device
        self._ready = share.normaliser()(pixels.to(device)), labels.to(device)
        self.images_read = 0

    def next(self) -> tuple[Tensor, Tensor]:
        return self._ready

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.images_read += len(batch[1])
        return batch

    def close(self) -> None:
        pass


def jpeg(share: Share) -> Feed:
    """Decodes files in every step: what training really costs."""
    config = share.config
    return HostFeed(share, JpegReader(share.source, config.image_px, config.augment))


def cached(share: Share) -> Feed:
    """Crops pixels that were decoded once: on the host for CPU, on the device for CUDA."""
    if share.device.is_cuda:
        return DeviceCroppedFeed(share)
    return _from_table(share, CacheTable(share.source, share.config))


def resident(share: Share) -> Feed:
    """The cache in the device's memory, which for CPU is the mapped file read in beforehand."""
    if share.device.is_cuda:
        return ResidentFeed(share)
    table = CacheTable(share.source, share.config)
    table.read_in()
    return _from_table(share, table)


def _from_table(share: Share, table: CacheTable) -> Feed:
    px = share.config.image_px
    if table.side_px == px:
        return HostFeed(share, GatherReader(share.source, table))
    return HostFeed(share, CacheReader(share.source, table, px))


LOADERS: dict[str, Callable[[Share], Feed]] = {
    "jpeg": jpeg,
    "cached": cached,
    "resident": resident,
    "constant": ConstantFeed,
}
