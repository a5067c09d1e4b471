"""Image classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpeval.components import models
from dpeval.components.loss import GlobalMeanLoss, auxiliary_weight
from dpeval.components.tasks.base import Loss, Rank, supervised
from dpeval.config import Config
from dpeval.data import Source
from dpeval.data.loading import device_memory
from dpeval.data.loading.device_memory import InputMemory
from dpeval.data.loading.loaders import Loader, Shard, loader_of
from dpeval.errors import ConfigError


class Classification:
    """Images with one label each; a sample is an image."""

    unit = "img"
    samples_per_item: float | None = 1.0

    def __init__(self, config: Config) -> None:
        self._config = config

    def model(self, rank: Rank) -> nn.Module:
        return models.build(self._config.model, self._config.dataset.image_px)

    def loader(self, shard: Shard) -> Loader:
        return loader_of(shard)

    def loss(self, model: nn.Module, rank: Rank) -> Loss:
        return supervised(self, model, rank)

    def on_meta(self) -> nn.Module:
        return models.build_on_meta(self._config.model, self._config.dataset.image_px)

    def example(self, items: int) -> tuple[Tensor, Tensor]:
        px = self._config.dataset.image_px
        channels_last = self._config.memory_format == "channels_last"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = torch.empty(items, 3, px, px, device="meta").to(memory_format=layout)
        return images, torch.empty(items, dtype=torch.int64, device="meta")

    def criterion(self, model: nn.Module, global_batch_size: int) -> GlobalMeanLoss:
        classes = self._config.dataset.num_classes
        return GlobalMeanLoss(global_batch_size, classes, auxiliary_weight(model))

    def input_memory(self, items: int, *, gpu: bool, train_items: int | None) -> InputMemory:
        """What batches take of the device.

        Args:
            items: images per batch of the rank.
            gpu: the device is a GPU.
            train_items: images of the dataset; None: as configured.
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
