"""A calibrated model whose ranks announce, each in a file, that they are well into training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from dpeval.components import calibrated

STEPS = 30
"""More than the warm-up and the least window of runs of these tests together."""
PREFIX = "training-"
"""A rank's file in the working directory: this and its process id."""


def build(**args: Any) -> nn.Module:
    """The calibrated model; each of its ranks announces its step :data:`STEPS`."""
    model = calibrated.calibrated_model(**args)
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == STEPS:
            Path(f"{PREFIX}{os.getpid()}").touch()

    if dist.is_initialized():  # else it is only being looked at, before the ranks start
        model.register_forward_pre_hook(count)
    return model
