"""Rejects a configuration that cannot train, before any rank starts."""

from __future__ import annotations

import torch

from dpeval.components import strategies
from dpeval.components.optimizers import build_optimizer
from dpeval.components.tasks import forecast_task
from dpeval.components.tasks.user_function import check_function
from dpeval.config import CALLABLE, Config
from dpeval.errors import ConfigError, DpevalError


def check(config: Config) -> None:
    """Build the model and its optimizer, and compute the loss of two samples on ``meta``.

    If the model's forward pass needs values, only the ranks can find out whether its output can
    be trained on. A function of the user is not called.

    Raises:
        ConfigError: the model, the optimizer or the strategy cannot be built as configured, or
            the model's output contains no logits.
    """
    strategies.check(config.strategy)
    if config.task.kind == CALLABLE:
        check_function(config)
        return
    task = forecast_task(config)
    model = task.on_meta()
    optimizer = build_optimizer(config.optimizer, model)
    on_cpu = config.hardware.kind == "cpu"
    if on_cpu and any(group.get("capturable") for group in optimizer.param_groups):
        raise ConfigError(
            "optimizer.args.capturable=true is for CUDA graphs and needs hardware=gpu; remove it"
        )
    try:
        with torch.device("meta"):
            inputs, labels = task.example(2)
            output = model.train()(inputs)
    except DpevalError:
        raise
    except Exception:
        return  # the model may have needed values, which meta tensors lack
    task.criterion(model, 2)(output, labels)
