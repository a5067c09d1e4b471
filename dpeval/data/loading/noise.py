"""Random samples: the memory and speed of a step do not depend on the content of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from dpeval.config import DatasetConfig
from dpeval.data.loading import device_memory
from dpeval.data.loading.loaders import Shard
from dpeval.data.sources.source import Source


def source(config: DatasetConfig, *, of_tokens: bool = False) -> Source:
    """A source without files.

    Args:
        config: the keys of ``dataset``.
        of_tokens: sequences of tokens instead of images.
    """
    name = "random tokens" if of_tokens else "random pixels"
    loaders = "dpeval.data.loading"
    return Source(
        requested=name,
        used=name,
        root="",
        num_classes=config.num_classes,
        loader=f"{loaders}.token_loader.NoiseTokenLoader"
        if of_tokens
        else f"{loaders}.noise.NoiseLoader",
    )


class NoiseLoader:
    """Returns uint8 pixels like the other loaders, so that its batches take the same memory."""

    def __init__(self, shard: Shard) -> None:
        self._shard, self._normalised = shard, shard.normaliser()
        if shard.device.is_cuda:
            real = device_memory.on_gpu(
                shard.batch, shard.config, channels_last=shard.channels_last
            )
            kept = real.resident + sum(real.in_flight)
            self._kept = torch.empty(kept, dtype=torch.uint8, device=shard.device.torch_device)
        self.images_read = 0

    def next(self) -> tuple[Tensor, Tensor]:
        batch, px = self._shard.batch, self._shard.config.image_px
        pixels = torch.randint(0, 255, (batch, px, px, 3), dtype=torch.uint8)
        return pixels, torch.arange(batch) % self._shard.config.num_classes

    def put(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, labels = (tensor.to(self._shard.device.torch_device) for tensor in batch)
        self.images_read += len(labels)
        return self._normalised(pixels), labels

    def close(self) -> None:
        pass
