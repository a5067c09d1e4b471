"""A strategy: a function that makes the ranks sum their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from dpeval.components import WrappedModel
from dpeval.config import StrategyConfig
from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock


def build(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """All-reduce each gradient as soon as it is ready; called with ``strategy.args``, too.

    The all-reduces are not timed here: see ``dpeval.components.strategies.ddp`` for how
    `clock` is told of them.
    """
    synchronises = True

    def reduce(parameter: nn.Parameter) -> None:
        if synchronises and parameter.grad is not None:
            dist.all_reduce(parameter.grad)

    @contextmanager
    def no_sync() -> Iterator[None]:
        nonlocal synchronises
        synchronises = False
        try:
            yield
        finally:
            synchronises = True

    with torch.no_grad():
        for parameter in model.parameters():
            dist.broadcast(parameter, 0)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(reduce)
    return WrappedModel(model, no_sync)
