"""Random pixels: memory and speed of a step do not depend on what the images show."""

from __future__ import annotations

import torch
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data.feeds import Images, Share
from dpeval.data.source import Source


def source(config: DatasetConfig) -> Source:
    """A source without files, whose feed is :func:`feed`; batches of any size can be had."""
    return Source(
        requested="random pixels",
        used="random pixels",
        root="",
        num_classes=config.num_classes,
        train_files=[],
        train_labels=[],
        feed="dpeval.data.noise.feed",
    )


def feed(share: Share) -> NoiseFeed:
    """The feed of one rank; see :class:`NoiseFeed`."""
    return NoiseFeed(share)


class NoiseFeed(Images):
    """Hands out uint8 pixels as the loaders do, so that its batches take the same memory."""

    def next(self) -> tuple[Tensor, Tensor]:
        share = self._share
        batch, px = share.shares[share.rank], share.config.image_px
        pixels = torch.randint(0, 255, (batch, px, px, 3), dtype=torch.uint8)
        labels = torch.arange(batch) % share.config.num_classes
        return (
            (pixels.pin_memory(), labels.pin_memory()) if share.device.is_cuda else (pixels, labels)
        )

    def close(self) -> None:
        pass
