"""Loads one rank's sequences of tokens from a memory-mapped file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpeval.data.loading.loaders import HostBatches, Shard
from dpeval.data.loading.readers import Host
from dpeval.data.loading.sampler import Step
from dpeval.data.sources.source import Source


class TokenReader:
    """Reads sequences of `length` tokens, each with the token that follows it."""

    def __init__(self, source: Source, length: int) -> None:
        self._tokens = np.memmap(
            Path(source.root) / source.tokens, np.dtype(source.token_type), "r"
        )
        self._offsets = np.arange(length + 1)
        self._length = length

    def __call__(self, step: Step) -> Host:
        begins = step.indices * self._length
        return (torch.from_numpy(self._tokens[begins[:, None] + self._offsets].astype(np.int64)),)


class TokenLoader(HostBatches):
    """A loader of tokens: inputs, and as targets the same tokens shifted by one."""

    def __init__(self, shard: Shard) -> None:
        reader = TokenReader(shard.source, shard.config.seq_len)
        # A rank reads a batch of tokens faster than a worker process could pass it on.
        super().__init__(shard, reader, shard.config.workers or 0)

    def put(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [b, seq_len]."""
        (tokens,) = self._sender.receive(batch)
        self.images_read += len(tokens)
        return tokens[:, :-1], tokens[:, 1:]


class NoiseTokenLoader:
    """Random tokens in batches like those of :class:`TokenLoader`."""

    def __init__(self, shard: Shard) -> None:
        self._shape = (shard.batch, shard.config.seq_len + 1)
        self._vocabulary, self._device = shard.config.num_classes, shard.device.torch_device
        self.images_read = 0

    def next(self) -> Tensor:
        return torch.randint(self._vocabulary, self._shape)

    def put(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        tokens = batch.to(self._device)
        self.images_read += len(tokens)
        return tokens[:, :-1], tokens[:, 1:]

    def close(self) -> None:
        pass
