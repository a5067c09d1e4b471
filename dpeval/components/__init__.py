"""The parts of a training: tasks, models, strategies and optimizers.

Each ``_target_`` in ``conf/`` is one of the names below. Such a path is part of a run's identity,
so it names this package and never a file in it: files may move, and a sweep started before the move
can still be resumed.
"""

from __future__ import annotations

from dpeval.components.calibrated import (
    TimedSGD,
    calibrated_loader,
    calibrated_model,
    calibrated_source,
)
from dpeval.components.gpt import gpt, transformers_causal_lm
from dpeval.components.models import torchvision_classifier
from dpeval.components.strategies import WrappedModel, ddp, single_device
from dpeval.components.tasks import Rank, Training

__all__ = [
    "Rank",
    "TimedSGD",
    "Training",
    "WrappedModel",
    "calibrated_loader",
    "calibrated_model",
    "calibrated_source",
    "ddp",
    "gpt",
    "single_device",
    "torchvision_classifier",
    "transformers_causal_lm",
]
