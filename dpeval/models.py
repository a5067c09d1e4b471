"""What is trained: a torchvision classifier by name, or any importable callable."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from dpeval.config import ModelConfig, OptimizerConfig
from dpeval.errors import ConfigError, nearest


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


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Any class of ``torch.optim`` by name, or an importable one by its dotted path.

    Raises:
        ConfigError: there is no such optimizer, or it refuses its arguments.
    """
    path = config.name if "." in config.name else f"torch.optim.{config.name}"
    target = locate(path, key="optimizer.name")
    arguments = dict(config.args)
    try:
        return cast(torch.optim.Optimizer, target(model.parameters(), **arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer.name={config.name} refuses optimizer.args={arguments}: {error}"
        ) from error


def locate(path: str, *, key: str) -> Callable[..., Any]:
    """Import ``package.module.name``.

    Raises:
        ConfigError: naming `key` and the part that cannot be found.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigError(f"{key}={path} is not of the form package.module.name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise
        raise ConfigError(
            f"{key}={path}: there is no module '{error.name}' on the import path; "
            "install it or start dpeval from the folder that holds it"
        ) from error
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ConfigError(
            f"{key}={path}: module '{module_name}' has no '{name}'{nearest(name, dir(module))}"
        ) from None
    return cast("Callable[..., Any]", found)
