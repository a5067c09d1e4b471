"""Image classification."""

from __future__ import annotations

import torch
from torch import Tensor

from dpeval.components.tasks.base import Supervised
from dpeval.config import Config
from dpeval.data import Source
from dpeval.data.loading import device_memory
from dpeval.data.loading.device_memory import InputMemory
from dpeval.errors import ConfigError


class Classification(Supervised):
    """Images with one label each; a sample is an image."""

    unit = "img"
    samples_per_item: float | None = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.image_px = config.dataset.image_px

    def example(self, items: int) -> tuple[Tensor, Tensor]:
        px = self._config.dataset.image_px
        channels_last = self._config.memory_format == "channels_last"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = torch.empty(items, 3, px, px, device="meta").to(memory_format=layout)
        return images, torch.empty(items, dtype=torch.int64, device="meta")

    def input_memory(self, items: int, *, gpu: bool, train_items: int | None) -> InputMemory:
        """Device memory that batches take.

        Args:
            items: images per batch of the rank.
            gpu: whether the device is a GPU.
            train_items: number of images in the dataset; None: as configured.
        """
        dataset = self._config.dataset
        if not gpu:
            return device_memory.on_cpu(items, dataset)
        channels_last = self._config.memory_format == "channels_last"
        return device_memory.on_gpu(
            items, dataset, channels_last=channels_last, train_images=train_items
        )

    def check_source(self, source: Source) -> None:
        if source.sequences:
            raise ConfigError(
                f"dataset={self._config.dataset.name} holds tokens, but task=classification trains "
                "on images; use task=causal_lm, or a dataset of images"
            )
