"""What is trained: a torchvision classifier by name, or any importable callable."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from dpeval.config import ModelConfig
from dpeval.errors import ConfigError, nearest
from dpeval.util.importing import locate


def build(config: ModelConfig) -> nn.Module:
    """Build the model that `config` names, with freshly initialised weights.

    Raises:
        ConfigError: the target cannot be imported or refuses its arguments.
    """
    target = locate(config._target_, key="model._target_")
    try:
        model = target(**config.args)
    except TypeError as error:
        raise ConfigError(
            f"{config._target_} refuses model.args={dict(config.args)}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model={config.name}: {config._target_} returned a {type(model).__name__}; "
            "it must return a torch.nn.Module"
        )
    return model


def check(config: ModelConfig) -> nn.Module:
    """Build the model on the ``meta`` device, which takes no memory; see :func:`build`.

    Raises:
        ConfigError: as :func:`build`, but in the process that plans, before anything starts.
    """
    with torch.device("meta"):
        return build(config)


def torchvision_classifier(name: str, num_classes: int, **args: Any) -> nn.Module:
    """An untrained classifier of torchvision.

    Raises:
        ConfigError: torchvision has no classifier of that name.
    """
    # Late, because torchvision takes a second to import and only a rank builds models.
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, known) or "; torchvision.models.list_models() names them"
        raise ConfigError(f"model.name={name} is not a torchvision classifier{hint}")
    return cast(
        nn.Module, torchvision.models.get_model(name, weights=None, num_classes=num_classes, **args)
    )
