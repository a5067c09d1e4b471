"""The parts of a training: models, strategies and optimizers.

The names below are what a ``_target_`` of ``conf/`` points to. Such a path is part of a run's
identity, so it names this package and never a file in it: files may move, and a sweep that was
begun before can still be resumed.
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
