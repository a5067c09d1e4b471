"""Finds what a ``_target_`` names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from dpeval.errors import ConfigError, nearest


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
