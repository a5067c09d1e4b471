"""Loaders hand one rank its shard of every global batch.

``jpeg`` decodes files in every step; ``cached`` crops pixels that were decoded once;
``resident`` keeps those pixels on the device and crops there; ``constant`` gives one batch
again and again (no training, but the upper bound). Images stay uint8 until they are on the
device, and the same step shows the same crops of the same images on every loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dpeval.config import LOADERS, DatasetConfig
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
from dpeval.errors import ConfigError
from dpeval.util.importing import locate

MAX_WORKERS = 16
"""Per rank; one core decodes about a thousand full-size images a second."""
CACHE_WORKERS = 2
"""Copying from the cache needs no more."""


@runtime_checkable
class Loader(Protocol):
    """What a rank's loop needs of its data.

    ``dataset.loader`` may name another one by its import path: a class, or a function that returns
    one, called as ``loader(shard, **loader_args)`` with a :class:`Shard`. A class that sets
    ``needs_cache = True`` finds the decoded images at ``shard.source.cache``.
    """

    images_read: int
    """How many images :meth:`put` has handed out."""

    def next(self) -> Any:
        """The next batch as the host has it: timed as `data`."""

    def put(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The batch on the device, images float32 [b, 3, px, px], labels int64: timed as `h2d`.

        Images and labels are valid until the next call.
        """

    def close(self) -> None:
        """Let go of workers and files."""


@dataclass(frozen=True)
class Shard:
    """What one rank is to read, and for which device."""

    source: Source
    config: DatasetConfig
    shares: Sequence[int]
    """Images of each rank in one global batch."""
    rank: int
    seed: int
    device: Device
    channels_last: bool
    spare_cpus: Sequence[int]
    """Logical CPUs on which this rank may read ahead."""

    @property
    def batch(self) -> int:
        """This rank's images in one global batch."""
        return self.shares[self.rank]

    def sampler(self) -> ShardedSampler:
        """Which images this rank reads in which step."""
        return ShardedSampler(len(self.source.train_files), self.shares, self.rank, self.seed)

    def normaliser(self) -> Normaliser:
        """Turns uint8 pixels on the device into what a model takes."""
        return Normaliser(self.device.torch_device, channels_last=self.channels_last)

    def workers(self) -> int:
        """Processes that read ahead: as asked, or else as many as have a core of their own."""
        if self.config.workers is not None:
            return self.config.workers
        built_in = LOADERS.get(self.config.loader)
        if built_in is None or not built_in.needs_cache:
            return min(len(self.spare_cpus), MAX_WORKERS)
        # On CPU a crop out of the cache costs less than handing it from process to process.
        return min(len(self.spare_cpus), CACHE_WORKERS) if self.device.is_cuda else 0


def make_loader(
    source: Source,
    config: DatasetConfig,
    *,
    shares: Sequence[int],
    rank: int,
    seed: int,
    device: Device,
    channels_last: bool,
    spare_cpus: Sequence[int],
) -> Loader:
    """The loader of one rank.

    Args:
        source: the prepared data.
        config: the keys of ``dataset``.
        shares: images of each rank in one global batch.
        rank: the rank that reads.
        seed: decides the order of the images and all augmentation.
        device: where batches go.
        channels_last: the order of dimensions in which the model takes images.
        spare_cpus: logical CPUs on which this rank may read ahead; with none it reads between
            its steps, and the time shows as waiting for data.

    Raises:
        DataError: fewer images than one global batch.
        ConfigError: a loader of the user's own is not one.
    """
    shard = Shard(source, config, shares, rank, seed, device, channels_last, spare_cpus)
    if source.loader:
        return _made(source.loader, "the source's loader", shard, {})
    if "." in config.loader:
        return _made(config.loader, "dataset.loader", shard, config.loader_args)
    return _made(LOADERS[config.loader].path, "dataset.loader", shard, {})


def _made(path: str, key: str, shard: Shard, args: Mapping[str, Any]) -> Loader:
    made = locate(path, key=key)(shard, **args)
    if not isinstance(made, Loader):
        raise ConfigError(
            f"{key}={path} made a {type(made).__name__}; it must have images_read, next(), put() "
            "and close(), as dpeval.data.loading.loaders.Loader describes"
        )
    return made


class HostLoader:
    """Pixels come ready from the host: ``jpeg``, and ``cached`` on CPU."""

    def __init__(self, shard: Shard, reader: Reader) -> None:
        self._normalised = shard.normaliser()
        self._host = Batches(
            reader,
            shard.sampler(),
            workers=shard.workers(),
            cpus=shard.spare_cpus,
            pinned=shard.device.is_cuda,
        )
        self._sender = shard.device.transfer()
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


class DeviceCroppedLoader(HostLoader):
    """Records come whole from the host and are cropped by the device: ``cached`` on CUDA."""

    def __init__(self, shard: Shard) -> None:
        table = CacheTable(shard.source, shard.config)
        self._side_px, self._px = table.side_px, shard.config.image_px
        super().__init__(shard, WholeReader(shard.source, table))

    def _cropped(self, pixels: Tensor, *where: Tensor) -> Tensor:
        squares = split_rows(pixels, self._side_px)
        return crop_batch(squares, where[0], self._px)


class ResidentLoader:
    """Keeps all pixels on a CUDA device and crops there: the input costs next to nothing."""

    def __init__(self, shard: Shard) -> None:
        self._table = CacheTable(shard.source, shard.config)
        self._px = shard.config.image_px
        self._device = shard.device.torch_device
        self._rows = self._table.rows.to(self._device)
        self._labels = torch.tensor(shard.source.train_labels, device=self._device)
        self._normalised = shard.normaliser()
        self._steps = iter(shard.sampler())
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


class ConstantLoader:
    """One batch, made once and given again and again: no training, only an upper bound."""

    def __init__(self, shard: Shard) -> None:
        reader = JpegReader(shard.source, shard.config.image_px, shard.config.augment)
        pixels, labels = reader(next(iter(shard.sampler())))
        device = shard.device.torch_device
        self._ready = shard.normaliser()(pixels.to(device)), labels.to(device)
        self.images_read = 0

    def next(self) -> tuple[Tensor, Tensor]:
        return self._ready

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.images_read += len(batch[1])
        return batch

    def close(self) -> None:
        pass


def jpeg(shard: Shard) -> Loader:
    """Decodes files in every step: what training really costs."""
    config = shard.config
    return HostLoader(shard, JpegReader(shard.source, config.image_px, config.augment))


def cached(shard: Shard) -> Loader:
    """Crops pixels that were decoded once: on the host for CPU, on the device for CUDA."""
    if shard.device.is_cuda:
        return DeviceCroppedLoader(shard)
    return _from_table(shard, CacheTable(shard.source, shard.config))


def resident(shard: Shard) -> Loader:
    """The cache in the device's memory, which for CPU is the mapped file read in beforehand."""
    if shard.device.is_cuda:
        return ResidentLoader(shard)
    table = CacheTable(shard.source, shard.config)
    table.read_in()
    return _from_table(shard, table)


def _from_table(shard: Shard, table: CacheTable) -> Loader:
    px = shard.config.image_px
    if table.side_px == px:
        return HostLoader(shard, GatherReader(shard.source, table))
    return HostLoader(shard, CacheReader(shard.source, table, px))
