"""Decoder-only language models."""

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


class CausalLM:
    """Sequences of tokens, each labelled with the token that follows it; a sample is a token."""

    unit = "tokens"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._length = config.dataset.seq_len
        self.samples_per_item: float | None = float(self._length)

    def model(self, rank: Rank) -> nn.Module:
        return models.build(self._config.model, image_px=None)

    def loader(self, shard: Shard) -> Loader:
        return loader_of(shard)

    def loss(self, model: nn.Module, rank: Rank) -> Loss:
        return supervised(self, model, rank)

    def on_meta(self) -> nn.Module:
        return models.build_on_meta(self._config.model, image_px=None)

    def example(self, items: int) -> tuple[Tensor, Tensor]:
        # As the loader makes them: two views of one tensor.
        tokens = torch.empty(items, self._length + 1, dtype=torch.int64, device="meta")
        return tokens[:, :-1], tokens[:, 1:]

    def criterion(self, model: nn.Module, global_batch_size: int) -> GlobalMeanLoss:
        labels, vocabulary = global_batch_size * self._length, self._config.dataset.num_classes
        return GlobalMeanLoss(labels, vocabulary, auxiliary_weight(model))

    def input_memory(self, items: int, *, gpu: bool, train_items: int | None) -> InputMemory:
        """What batches take of the device.

        Args:
            items: sequences per batch of the rank.
            gpu: the device is a GPU.
            train_items: unused: the file of tokens stays where it is.
        """
        return device_memory.of_tokens(items * (self._length + 1), gpu=gpu)

    def check_source(self, source: Source) -> None:
        if source.train_files:
            raise ConfigError(
                f"dataset={self._config.dataset.name} holds images, but task=causal_lm trains on "
                "tokens; use dataset=generated_tokens or dataset=token_files"
            )
