"""A model on a machine whose speed wanders: all its times swing with the wall clock."""

from __future__ import annotations

import math
import time

import torch.distributed as dist
from torch import nn

from dpeval.components import calibrated

SWING, PERIOD_S = 0.4, 12.0


def build(step_s: float, num_classes: int = 10, **_: object) -> nn.Module:
    """A step takes `step_s` over the world size, times 1 ± :data:`SWING`.

    Args:
        step_s: mean time of a step on one rank, s.
        num_classes: columns of the logits.
    """
    model = calibrated.calibrated_model(1e-4, 1e-4, gradient_mib=0, num_classes=num_classes)
    ranks = dist.get_world_size() if dist.is_initialized() else 1

    def wait(*_: object) -> None:
        phase = 2 * math.pi * time.monotonic() / PERIOD_S
        time.sleep(step_s / ranks * (1 + SWING * math.sin(phase)))

    if dist.is_initialized():  # else it is only being looked at, before the ranks start
        model.register_forward_pre_hook(wait)
    return model
