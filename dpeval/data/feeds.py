"""Feeds hand one rank its share of every global batch, as far out of the way as asked.

``jpeg`` decodes files in every step; ``cached`` copies crops from pixels that were decoded
once; ``resident`` keeps those pixels on the device and crops there; ``constant`` gives one
batch again and again (no training, but the upper bound). Images stay uint8 until they are on
the device.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data.cache import open_cache, side_px
from dpeval.data.decode import read_image
from dpeval.data.sampler import Indices, ShardedSampler
from dpeval.data.source import Source
from dpeval.devices import Device
from dpeval.models import locate

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Per channel, of ImageNet, for pixels in [0, 1] (torchvision's reference training)."""
PREFETCH = 3
"""Batches that are made ahead where cores are spare."""


class Feed(Protocol):
    """What a rank's loop needs of its data."""

    images_read: int

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch as the host has it: timed as `data`."""

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch on the device, images float32 [b, 3, px, px], labels int64: timed as `h2d`."""

    def close(self) -> None:
        """Let go of threads and files."""


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

    def generator(self) -> np.random.Generator | None:
        """Random numbers of this rank's augmentation; None where there is none."""
        if self.config.augment == "none":
            return None
        return np.random.default_rng([self.seed, self.rank, 1])


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
        spare_cpus: logical CPUs on which this rank may decode ahead; with none it decodes
            between its steps, and the time shows as waiting for data.

    Raises:
        DataError: fewer images than one global batch.
    """
    share = Share(source, config, shares, rank, seed, device, channels_last, spare_cpus)
    if source.feed:
        feed: Feed = locate(source.feed, key="the data set's feed")(share)
        return feed
    return LOADERS[config.loader](share)


class _Images:
    """What all feeds of images share: labels, and the way to the device."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._labels = np.asarray(share.source.train_labels, dtype=np.int64)
        device = share.device.torch_device
        scale = 1 / (255 * torch.tensor(STD))
        self._scale = scale.view(1, 3, 1, 1).to(device)
        self._shift = (-torch.tensor(MEAN) / torch.tensor(STD)).view(1, 3, 1, 1).to(device)
        self.images_read = 0

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, labels = batch
        device = self._share.device.torch_device
        self.images_read += len(labels)
        moved = pixels.to(device, non_blocking=True)
        return self._normalised(moved), labels.to(device, non_blocking=True)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [b, px, px, 3] to float32 [b, 3, px, px]; its bytes are channels-last already."""
        images = torch.addcmul(self._shift, pixels.permute(0, 3, 1, 2).float(), self._scale)
        layout = torch.channels_last if self._share.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def _batch(self, pixels: NDArray[np.uint8], indices: Indices) -> tuple[Tensor, Tensor]:
        images, labels = torch.from_numpy(pixels), torch.from_numpy(self._labels[indices])
        if self._share.device.is_cuda:
            # Pinned memory alone is copied while the host goes on.
            return images.pin_memory(), labels.pin_memory()
        return images, labels


class _Ahead(_Images):
    """Makes batches ahead on spare cores, or on the spot where there are none."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._indices: Iterator[Indices] = iter(share.sampler())
        self._generator = share.generator()
        workers = share.config.workers
        count = len(share.spare_cpus) if workers is None else workers
        self._pool: ThreadPoolExecutor | None = None
        self._queue: deque[Future[tuple[Tensor, Tensor]]] = deque()
        if count:
            # Threads, because decoding and copying let go of the interpreter's lock.
            self._pool = ThreadPoolExecutor(count, initializer=self._pin)
            for _ in range(PREFETCH + count):
                self._submit()

    def _pin(self) -> None:
        """On Linux this binds the calling thread alone."""
        if self._share.spare_cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._share.spare_cpus)

    def _submit(self) -> None:
        assert self._pool is not None
        generator = self._generator.spawn(1)[0] if self._generator is not None else None
        self._queue.append(self._pool.submit(self._make, next(self._indices), generator))

    def next(self) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            return self._make(next(self._indices), self._generator)
        self._submit()
        return self._queue.popleft().result()

    def _make(
        self, indices: Indices, generator: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class JpegFeed(_Ahead):
    """Decodes files in every step: what training really costs."""

    def _make(
        self, indices: Indices, generator: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        source, px = self._share.source, self._share.config.image_px
        root = Path(source.root)
        pixels = np.empty((len(indices), px, px, 3), dtype=np.uint8)
        for place, index in enumerate(indices):
            pixels[place] = read_image(root / source.train_files[index], px, generator)
        return self._batch(pixels, indices)


class CachedFeed(_Ahead):
    """Copies random crops out of the mapped cache."""

    def __init__(self, share: Share) -> None:
        self._side = side_px(share.config.image_px)
        assert share.source.cache is not None  # prepare() has built it for this loader
        self._pixels = open_cache(share.source.cache, len(share.source.train_files), self._side)
        super().__init__(share)

    def _make(
        self, indices: Indices, generator: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        px = self._share.config.image_px
        pixels = np.empty((len(indices), px, px, 3), dtype=np.uint8)
        tops, lefts, flips = crops(len(indices), self._side - px, generator)
        for place, index in enumerate(indices):
            top, left = tops[place], lefts[place]
            crop = self._pixels[index, top : top + px, left : left + px]
            pixels[place] = crop[:, ::-1] if flips[place] else crop
        return self._batch(pixels, indices)


class ResidentFeed(_Images):
    """Keeps all pixels on the device and crops there: the input costs next to nothing.

    On CPU the mapped cache is that memory, so ranks share one copy.
    """

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._side = side_px(share.config.image_px)
        assert share.source.cache is not None  # prepare() has built it for this loader
        mapped = open_cache(share.source.cache, len(share.source.train_files), self._side)
        device = share.device.torch_device
        if share.device.is_cuda:
            self._pixels = torch.from_numpy(np.array(mapped)).to(device)
        else:
            self._pixels = torch.from_numpy(mapped)
        self._all_labels = torch.from_numpy(self._labels).to(device)
        self._indices = iter(share.sampler())
        self._generator = share.generator()

    def next(self) -> tuple[Tensor, Tensor]:
        indices = next(self._indices)
        px = self._share.config.image_px
        tops, lefts, flips = crops(len(indices), self._side - px, self._generator)
        device = self._share.device.torch_device
        span = np.arange(px)
        across = np.where(flips[:, None], px - 1 - span, span) + lefts[:, None]
        place = torch.from_numpy(indices).to(device)
        rows = torch.from_numpy(tops[:, None] + span).to(device)
        columns = torch.from_numpy(across).to(device)
        pixels = self._pixels[place[:, None, None], rows[:, :, None], columns[:, None, :]]
        return pixels, self._all_labels[place]

    def close(self) -> None:
        pass


class ConstantFeed(_Images):
    """One batch, made once and given again and again: no training, only an upper bound."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        inner = JpegFeed(share)
        self._ready = inner.put(inner.next())
        inner.close()

    def next(self) -> tuple[Tensor, Tensor]:
        return self._ready

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.images_read += len(batch[1])
        return batch

    def close(self) -> None:
        pass


def crops(
    count: int, room: int, generator: np.random.Generator | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Top and left corners and mirrorings of `count` crops that may move by `room` pixels."""
    if generator is None:
        middle = np.full(count, room // 2)
        return middle, middle, np.zeros(count, dtype=bool)
    return (
        generator.integers(0, room + 1, count),
        generator.integers(0, room + 1, count),
        generator.random(count) < 0.5,
    )


LOADERS: dict[str, Callable[[Share], Feed]] = {
    "jpeg": JpegFeed,
    "cached": CachedFeed,
    "resident": ResidentFeed,
    "constant": ConstantFeed,
}
