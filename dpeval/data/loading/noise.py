"""Random pixels: memory and speed of a step do not depend on what the images show."""

from __future__ import annotations

import torch
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data.loading.loaders import Share
from dpeval.data.sources.source import Source


def source(config: DatasetConfig) -> Source:
    """A source without files, whose feed is :func:`feed`; batches of any size can be had."""
    return Source(
        requested="random pixels",
        used="random pixels",
        root="",
        num_classes=config.num_classes,
        train_files=[],
        train_labels=[],
        feed="dpeval.data.loading.noise.feed",
    )


def feed(share: Share) -> NoiseFeed:
    """The feed of one rank; see :class:`NoiseFeed`."""
    return NoiseFeed(share)


class NoiseFeed:
    """Hands out uint8 pixels as the loaders do, so that its batches take the same memory."""

    def __init__(self, share: Share) -> None:
        self._share, self._normalised = share, share.normaliser()
        self.images_read = 0

    def next(self) -> tuple[Tensor, Tensor]:
        share = self._share
        batch, px = share.shares[share.rank], share.config.image_px
        pixels = torch.randint(0, 255, (batch, px, px, 3), dtype=torch.uint8)
        return pixels, torch.arange(batch) % share.config.num_classes

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, labels = (tensor.to(self._share.device.torch_device) for tensor in batch)
        self.images_read += len(labels)
        return self._normalised(pixels), labels

    def close(self) -> None:
        pass
