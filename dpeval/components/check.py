"""Rejects a configuration that cannot train, before any rank starts."""

from __future__ import annotations

import torch

from dpeval.components import strategies
from dpeval.components.loss import GlobalMeanLoss
from dpeval.components.models import build_on_meta
from dpeval.components.optimizers import build_optimizer
from dpeval.config import Config
from dpeval.errors import ConfigError, DpevalError


def check(config: Config) -> None:
    """Build the model and its optimizer, and compute the loss of two images on ``meta``.

    If the model's forward pass needs values, only the ranks can find out whether its output can
    be trained on.

    Raises:
        ConfigError: the model, the optimizer or the strategy cannot be built as configured, or
            the model's output contains no logits.
    """
    strategies.check(config.strategy)
    px, classes = config.dataset.image_px, config.dataset.num_classes
    model = build_on_meta(config.model, px)
    optimizer = build_optimizer(config.optimizer, model)
    on_cpu = config.hardware.kind == "cpu"
    if on_cpu and any(group.get("capturable") for group in optimizer.param_groups):
        raise ConfigError(
            "optimizer.args.capturable=true is for CUDA graphs and needs hardware=gpu; remove it"
        )
    try:
        with torch.device("meta"):
            output = model.train()(torch.empty(2, 3, px, px))
    except DpevalError:
        raise
    except Exception:
        return  # the model may have needed values, which meta tensors lack
    labels = torch.empty(2, dtype=torch.int64, device="meta")
    GlobalMeanLoss(2, classes)(output, labels)
