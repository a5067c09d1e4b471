"""The parts of a training: models, strategies and optimizers.

Each ``_target_`` in ``conf/`` is one of the names below. Such a path is part of a run's identity,
so it names this package and never a file in it: files may move, and a sweep that started before
the move can still be resumed.
"""

from __future__ import annotations

from dpeval.components.calibrated import (
    TimedSGD,
    calibrated_loader,
    calibrated_model,
    calibrated_source,
)
from dpeval.components.models import torchvision_classifier
from dpeval.components.strategies import WrappedModel, ddp, single_device

__all__ = [
    "TimedSGD",
    "WrappedModel",
    "calibrated_loader",
    "calibrated_model",
    "calibrated_source",
    "ddp",
    "single_device",
    "torchvision_classifier",
]
