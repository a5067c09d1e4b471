"""A task: a function that returns a model, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

import dpeval


def reconstruct(model: Callable[..., Any], batch: Iterable[Tensor]) -> Tensor:
    """How far the model's output is from its input: the mean over the rank's batch."""
    (images,) = batch
    return nn.functional.mse_loss(model(images), images)


def make(rank: dpeval.Rank, width: int) -> dpeval.Training:
    """An autoencoder of random images; called by every rank with ``task.kwargs``."""
    images = TensorDataset(torch.rand(64, 3, 16, 16))
    sampler: Sampler[int] = DistributedSampler(images, rank.world_size, rank.rank)
    loader = DataLoader(images, rank.per_device_batch_size, sampler=sampler, drop_last=True)
    model = nn.Sequential(
        nn.Conv2d(3, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
    )
    return dpeval.Training(model, loader, reconstruct, unit="img")
