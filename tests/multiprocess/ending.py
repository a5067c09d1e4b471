"""A calibrated model whose ranks end in different ways, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dpeval.components import calibrated

STEP = 5


def build(ends: Mapping[int, str], **args: Any) -> nn.Module:
    """The calibrated model.

    Args:
        ends: per rank that ends by itself in step :data:`STEP`: ``<how>`` or ``<how> after <s>``,
            where `how` is a method of :class:`_Ends`.
        args: arguments of the calibrated model.
    """
    model = calibrated.calibrated_model(**args)
    steps = 0

    def end(*_inputs: object) -> None:
        nonlocal steps
        steps += 1
        if steps == STEP and dist.get_rank() in ends:
            how, _, after_s = ends[dist.get_rank()].partition(" after ")
            time.sleep(float(after_s or 0))
            getattr(_Ends, how)()

    if dist.is_initialized():  # else it is only being looked at, before the ranks start
        model.register_forward_pre_hook(end)
    return model


class _Ends:
    @staticmethod
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    @staticmethod
    def error() -> None:
        raise ValueError("an error of its own")

    @staticmethod
    def abort() -> None:
        """As the watchdog of NCCL does when a peer has ended."""
        os.abort()

    @staticmethod
    def leave() -> None:
        os._exit(3)
