"""A loader: a class that hands one rank its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpeval.data.loading.loaders import Shard

Batch = tuple[Tensor, Tensor]


class Preloaded:
    """Reads all images into memory at the start."""

    needs_cache = False

    def __init__(self, shard: Shard, scale: float = 1.0) -> None:
        """Called with ``dataset.loader_args``."""
        self.images_read = 0
        source, self._device = shard.source, shard.device.torch_device
        paths = [Path(source.root) / name for name in source.train_files]
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        self._images = torch.from_numpy(pixels).permute(0, 3, 1, 2) * (scale / 255)
        self._labels = torch.tensor(source.train_labels)
        self._steps = iter(shard.sampler())

    def next(self) -> Batch:
        """The next batch on the host: this time is the phase ``data``."""
        chosen = torch.from_numpy(next(self._steps).indices)
        return self._images[chosen], self._labels[chosen]

    def put(self, batch: Batch) -> Batch:
        """The batch on the device: this time is the phase ``h2d``."""
        images, labels = batch
        self.images_read += len(labels)
        return images.to(self._device), labels.to(self._device)

    def close(self) -> None:
        """Nothing to release."""
