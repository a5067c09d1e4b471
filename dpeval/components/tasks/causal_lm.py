"""Decoder-only language models."""

from __future__ import annotations

import torch
from torch import Tensor

from dpeval.components.tasks.base import Supervised
from dpeval.config import Config
from dpeval.data import Source
from dpeval.data.loading import device_memory
from dpeval.data.loading.device_memory import InputMemory
from dpeval.errors import ConfigError


class CausalLM(Supervised):
    """Sequences of tokens, each labelled with the token that follows it; a sample is a token."""

    unit = "tokens"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._length = config.dataset.seq_len
        self.samples_per_item: float | None = float(self._length)

    @property
    def labels_per_item(self) -> int:
        return self._length

    def example(self, items: int) -> tuple[Tensor, Tensor]:
        # Two views of one tensor, as the loader makes them.
        tokens = torch.empty(items, self._length + 1, dtype=torch.int64, device="meta")
        return tokens[:, :-1], tokens[:, 1:]

    def input_memory(self, items: int, *, gpu: bool, train_items: int | None) -> InputMemory:
        """Device memory that batches take.

        Args:
            items: sequences per batch of the rank.
            gpu: whether the device is a GPU.
            train_items: unused, because the token file stays on the host.
        """
        return device_memory.of_tokens(items * (self._length + 1), gpu=gpu)

    def check_source(self, source: Source) -> None:
        if source.train_files:
            raise ConfigError(
                f"dataset={self._config.dataset.name} holds images, but task=causal_lm trains on "
                "tokens; use dataset=generated_tokens or dataset=token_files"
            )
