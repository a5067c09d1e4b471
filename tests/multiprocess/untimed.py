"""A strategy as a user may write one: correct, and without marks for the phase clock."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpeval.components.strategies import WrappedModel
from dpeval.config import StrategyConfig
from dpeval.devices.base import Device
from dpeval.instruments.phase_clock import PhaseClock


def plain_ddp(
    model: nn.Module, config: StrategyConfig, device: Device, clock: PhaseClock
) -> WrappedModel:
    """DDP with its own all-reduce, and no way to keep gradients on a rank."""
    return WrappedModel(DistributedDataParallel(model))
