"""Builds the optimizer: any class of ``torch.optim``, or any importable one."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from dpeval.config import OptimizerConfig
from dpeval.errors import ConfigError
from dpeval.util.importing import locate


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that `config` names: a class of ``torch.optim``, or an import path.

    Raises:
        ConfigError: there is no such optimizer, or it rejects its arguments.
    """
    path = config.name if "." in config.name else f"torch.optim.{config.name}"
    target = locate(path, key="optimizer.name")
    arguments = dict(config.args)
    try:
        return cast(torch.optim.Optimizer, target(model.parameters(), **arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer.name={config.name} rejects optimizer.args={arguments}: {error}"
        ) from error
