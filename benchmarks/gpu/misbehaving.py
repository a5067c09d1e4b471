"""A small classifier that ends badly on one rank, in a step of its own choice."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

GIB = 2**30


class Misbehaving(nn.Module):
    """Runs out of memory, is killed or stops on rank `rank` in step `at_step`."""

    def __init__(self, num_classes: int, ending: str, rank: int, at_step: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self._ending, self._rank, self._at, self._steps = ending, rank, at_step, 0

    def forward(self, images: Tensor) -> Tensor:
        self._steps += 1
        if self._steps == self._at and dist.is_initialized() and dist.get_rank() == self._rank:
            self._end(images)
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits

    def _end(self, images: Tensor) -> None:
        if self._ending == "oom":
            torch.empty(1 << 50, dtype=torch.uint8, device=images.device)
        elif self._ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._ending == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)


def build(
    num_classes: int, ending: str, rank: int = 1, at_step: int = 8, **others: Any
) -> nn.Module:
    """The model for ``model._target_``.

    Args:
        num_classes: columns of the logits.
        ending: ``oom``, ``kill`` or ``stop``.
        rank: the rank that ends.
        at_step: its step, counted from 1.
        others: arguments of the model that this one replaces.
    """
    return Misbehaving(num_classes, ending, rank, at_step)
