"""The interface of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpeval.components import models
from dpeval.components.loss import GlobalMeanLoss, auxiliary_weight
from dpeval.config import Config
from dpeval.data import Source
from dpeval.data.loading.device_memory import InputMemory
from dpeval.data.loading.loaders import Loader, Shard, loader_of

Loss = Callable[[Callable[..., Any], Any], Tensor]
"""Takes the wrapped model and a micro-batch on the device; returns the contribution of that
micro-batch to the loss. Summed over micro-batches and ranks, it is the mean over the global
batch."""


@dataclass(frozen=True)
class Rank:
    """The rank for which a model and its batches are made.

    >>> import dpeval, torch
    >>> rank = dpeval.Rank(0, 2, 64, 32, torch.device("cpu"), seed=0)
    >>> rank.weight
    0.5
    """

    rank: int
    world_size: int
    global_batch_size: int
    """Batch of all ranks together."""
    per_device_batch_size: int
    """This rank's part of the global batch."""
    device: torch.device
    seed: int
    """The same on all ranks."""

    @property
    def weight(self) -> float:
        """This rank's share of the global batch."""
        return self.per_device_batch_size / self.global_batch_size


class Task(Protocol):
    """One kind of training."""

    unit: str
    """What a sample is: img, tokens, …; a user's function reports it when it is called."""
    samples_per_item: float | None
    """Samples in each item that ``batch`` counts; None: the loader counts them."""

    def model(self, rank: Rank) -> nn.Module:
        """The model of this rank, newly initialised; called once, before anything else.

        Raises:
            ConfigError: it cannot be built as configured.
        """

    def loader(self, shard: Shard) -> Loader:
        """The loader of this rank."""

    def loss(self, model: nn.Module, rank: Rank) -> Loss:
        """The loss of a micro-batch of this rank."""


class ForecastTask(Task, Protocol):
    """A task whose model and batches can be made without data, so that its memory is forecast."""

    def on_meta(self) -> nn.Module:
        """The model on the ``meta`` device."""

    def example(self, items: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a batch of `items`, on ``meta``."""

    def criterion(self, model: nn.Module, global_batch_size: int) -> GlobalMeanLoss:
        """The loss of the model's output and the labels."""

    def input_memory(self, items: int, *, gpu: bool, train_items: int | None) -> InputMemory:
        """Device memory that batches of `items` take.

        Args:
            items: per-device batch.
            gpu: whether the device is a GPU.
            train_items: size of the dataset; None: as configured.
        """

    def check_source(self, source: Source) -> None:
        """Check that the prepared data suits the task.

        Raises:
            ConfigError: it does not.
        """


class Supervised:
    """Tasks whose batches are inputs and labels, and whose model ``model._target_`` builds."""

    image_px: int | None = None
    """Side of the images that the model takes, in pixels; None: it takes no images."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def model(self, rank: Rank) -> nn.Module:
        return models.build(self._config.model, self.image_px)

    def on_meta(self) -> nn.Module:
        return models.build_on_meta(self._config.model, self.image_px)

    def loader(self, shard: Shard) -> Loader:
        return loader_of(shard)

    def loss(self, model: nn.Module, rank: Rank) -> Loss:
        criterion = self.criterion(model, rank.global_batch_size)

        def loss(module: Callable[..., Any], batch: tuple[Tensor, Tensor]) -> Tensor:
            inputs, labels = batch
            found: Tensor = criterion(module(inputs), labels)
            return found

        return loss

    def criterion(self, model: nn.Module, global_batch_size: int) -> GlobalMeanLoss:
        return GlobalMeanLoss(
            global_batch_size * self.labels_per_item,
            self._config.dataset.num_classes,
            auxiliary_weight(model),
        )

    @property
    def labels_per_item(self) -> int:
        """Number of labels of each item that ``batch`` counts."""
        return 1
