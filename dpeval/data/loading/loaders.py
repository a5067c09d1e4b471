"""Loaders hand one rank its shard of every global batch.

``jpeg`` decodes files in every step. ``cached`` crops pixels that were decoded once. ``resident``
keeps those pixels on the device and crops there. ``constant`` repeats one batch, which is no real
training but an upper bound on speed. Images stay uint8 until they are on the device, and in the
same step every loader but ``constant`` yields the same crops of the same images.
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
"""Maximum per rank; a core decodes about a thousand full-size images per second."""
CACHE_WORKERS = 2
"""Enough to copy from the cache."""


@runtime_checkable
class Loader(Protocol):
    """What the training loop calls to get its data.

    ``dataset.loader`` may be the import path of your own loader: a class, or a function that
    returns an instance, called as ``loader(shard, **loader_args)`` with a :class:`Shard`. If it has
    the attribute ``needs_cache = True``, the decoded images are at ``shard.source.cache``.
    """

    images_read: int
    """Number of samples that :meth:`put` has returned."""

    def next(self) -> Any:
        """Return the next batch on the host; timed as the phase ``data``."""

    def put(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the batch on the device; timed as the phase ``h2d``.

        Returns:
            Images, float32 [b, 3, px, px], and labels, int64 [b]; or inputs and targets of a
            language model, int64 [b, seq_len]. Valid until the next call.
        """

    def close(self) -> None:
        """Stop workers and close files."""


@dataclass(frozen=True)
class Shard:
    """What one rank reads, and for which device."""

    source: Source
    config: DatasetConfig
    shares: Sequence[int]
    """Per-device batch of each rank."""
    rank: int
    seed: int
    device: Device
    channels_last: bool
    spare_cpus: Sequence[int]
    """Logical CPUs for this rank's workers."""

    @property
    def batch(self) -> int:
        """This rank's per-device batch."""
        return self.shares[self.rank]

    def sampler(self) -> ShardedSampler:
        """Which samples this rank reads in which step."""
        return ShardedSampler(self.source.train_samples, self.shares, self.rank, self.seed)

    def normaliser(self) -> Normaliser:
        """Turns uint8 pixels on the device into model input."""
        return Normaliser(self.device.torch_device, channels_last=self.channels_last)

    def workers(self) -> int:
        """Number of worker processes: ``dataset.workers``, or one per core meant for them."""
        if self.config.workers is not None:
            return self.config.workers
        built_in = LOADERS.get(self.config.loader)
        if built_in is None or not built_in.needs_cache:
            return min(len(self.spare_cpus), MAX_WORKERS)
        # On CPU, cropping from the cache costs less than passing the crop between processes.
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
        shares: per-device batch of each rank.
        rank: the rank that reads.
        seed: decides the order of the images and all augmentation.
        device: where batches go.
        channels_last: memory format of the images.
        spare_cpus: logical CPUs for workers. If there are none, the rank reads between its steps,
            and this time is measured as the phase ``data``.

    Raises:
        DataError: the source has fewer images than one global batch.
        ConfigError: the user's loader lacks an attribute of :class:`Loader`.
    """
    return loader_of(Shard(source, config, shares, rank, seed, device, channels_last, spare_cpus))


def loader_of(shard: Shard) -> Loader:
    """The loader of one rank; see :func:`make_loader`."""
    source, config = shard.source, shard.config
    if source.loader:
        return _made(source.loader, "the source's loader", shard, {})
    if "." in config.loader:
        return _made(config.loader, "dataset.loader", shard, config.loader_args)
    return _made(LOADERS[config.loader].path, "dataset.loader", shard, {})


def _made(path: str, key: str, shard: Shard, args: Mapping[str, Any]) -> Loader:
    made = locate(path, key=key)(shard, **args)
    if not isinstance(made, Loader):
        raise ConfigError(
            f"{key}={path} returned a {type(made).__name__}; it must have images_read, next(), "
            "put() and close(), see dpeval.data.loading.loaders.Loader"
        )
    return made


class HostBatches:
    """Sends batches that a reader makes on the host to the device ahead of their step."""

    def __init__(self, shard: Shard, reader: Reader, workers: int) -> None:
        """Start reading.

        Args:
            shard: what the rank reads.
            reader: makes the batches.
            workers: number of processes that read; 0: the rank itself reads.
        """
        self._host = Batches(
            reader,
            shard.sampler(),
            workers=workers,
            cpus=shard.spare_cpus,
            pinned=shard.device.is_cuda,
        )
        self._sender = shard.device.transfer()
        self._batches: Iterator[Any] = self._sender.ahead(self._host)
        self.images_read = 0

    def next(self) -> Any:
        return next(self._batches)

    def close(self) -> None:
        self._host.close()


class HostLoader(HostBatches):
    """Crops on the host: ``jpeg``, and ``cached`` on CPU."""

    def __init__(self, shard: Shard, reader: Reader) -> None:
        self._normalised = shard.normaliser()
        super().__init__(shard, reader, shard.workers())

    def put(self, batch: Any) -> tuple[Tensor, Tensor]:
        pixels, labels, *where = self._sender.receive(batch)
        self.images_read += len(labels)
        return self._normalised(self._cropped(pixels, *where)), labels

    def _cropped(self, pixels: Tensor) -> Tensor:
        return pixels


class DeviceCroppedLoader(HostLoader):
    """Sends whole records to the device and crops there: ``cached`` on CUDA."""

    def __init__(self, shard: Shard) -> None:
        table = CacheTable(shard.source, shard.config)
        self._side_px, self._px = table.side_px, shard.config.image_px
        super().__init__(shard, WholeReader(shard.source, table))

    def _cropped(self, pixels: Tensor, *where: Tensor) -> Tensor:
        squares = split_rows(pixels, self._side_px)
        return crop_batch(squares, where[0], self._px)


class ResidentLoader:
    """Keeps all pixels on a CUDA device and crops there; input costs almost nothing."""

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
    """Repeats one batch: not real training, but an upper bound on speed."""

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
    """Decodes files in every step, as real training does."""
    config = shard.config
    return HostLoader(shard, JpegReader(shard.source, config.image_px, config.augment))


def cached(shard: Shard) -> Loader:
    """Crops pixels that were decoded once: on the host for CPU, on the device for CUDA."""
    if shard.device.is_cuda:
        return DeviceCroppedLoader(shard)
    return _from_table(shard, CacheTable(shard.source, shard.config))


def resident(shard: Shard) -> Loader:
    """Keeps the cache in device memory; on CPU this is the mapped file, faulted in."""
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
