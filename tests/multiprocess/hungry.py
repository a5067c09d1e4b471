"""A model that is refused memory on one rank, when it trains and not while it is only looked at."""

from __future__ import annotations

import resource
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

MIB = 2**20


class Hungry(nn.Module):
    """Asks for `step_mib` more in step `at_step`; outputs logits of shape [batch, classes]."""

    def __init__(self, num_classes: int, step_mib: int, at_step: int, keep: bool) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self._mib, self._at, self._keep, self._step = step_mib, at_step, keep, 0
        self._held: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self._step += 1
        real = type(self.head.weight.data) is Tensor and not self.head.weight.is_meta
        if real and self._step >= self._at and _is_last_rank():
            taken = torch.ones(self._mib * MIB // 4)
            if self._keep:
                self._held.append(taken)
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def _is_last_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1


def refused(num_classes: int, at_step: int) -> nn.Module:
    """Asks for more address space than RLIMIT_AS leaves its rank."""
    model = Hungry(num_classes, step_mib=2000, at_step=at_step, keep=False)
    if not model.head.weight.is_meta and dist.is_initialized():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 1000 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return model


def growing(num_classes: int, at_step: int) -> nn.Module:
    """Keeps 100 MiB more in every step until a limit from outside ends its rank."""
    return Hungry(num_classes, step_mib=100, at_step=at_step, keep=True)
