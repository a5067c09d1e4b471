"""Import the object that a ``_target_`` names."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from dpeval.errors import ConfigError, nearest, raised_at


def locate(path: str, *, key: str) -> Callable[..., Any]:
    """Import ``package.module.name`` or ``package.module.Class.method``, which must be callable.

    Raises:
        ConfigError: `path` does not exist or is not callable; the message names `key`.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigError(f"{key}={path} is not of the form package.module.name")
    try:
        owner: ModuleType | type = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        found_class = _imported_class(module_name) if error.name == module_name else None
        if found_class is not None:
            owner = found_class
        elif error.name and not (module_name + ".").startswith(error.name + "."):
            raise _broken(path, module_name, error, key) from error
        else:
            raise ConfigError(
                f"{key}={path}: there is no module '{error.name}' on the import path"
                + (
                    _hidden(module_name)
                    or "; install it, or start dpeval from the folder that contains it"
                )
            ) from error
    except SystemExit as error:
        raise ConfigError(
            f"{key}={path}: {module_name} ends the program when it is imported; move the code "
            "that runs it as a script below if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise _broken(path, module_name, error, key) from error
    try:
        found = getattr(owner, name)
    except AttributeError:
        kind = "module" if isinstance(owner, ModuleType) else "class"
        raise ConfigError(
            f"{key}={path}: {kind} '{module_name}' has no '{name}'"
            f"{_hidden(module_name) or _nearest(name, owner)}"
        ) from None
    if not callable(found):
        raise ConfigError(
            f"{key}={path} is a {type(found).__name__} and cannot be called{_nearest(name, owner)}"
        )
    return cast("Callable[..., Any]", found)


def _imported_class(path: str) -> type | None:
    """The class ``package.module.Class``, if the import of its name as a module has found it."""
    module_name, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module_name), name, None)
    return found if isinstance(found, type) else None


def _broken(path: str, module_name: str, error: Exception, key: str) -> ConfigError:
    """The error for a module that exists but cannot be imported."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)  # str adds file and line
    words = said.strip().splitlines() or [""]
    return ConfigError(
        f"{key}={path}: importing {module_name} fails with {type(error).__name__}: {words[0]}"
        f"{raised_at(error)}"
    )


def _hidden(module_name: str) -> str:
    """A hint if the working directory has a module of that name and another one was imported."""
    top = module_name.partition(".")[0]
    imported = sys.modules.get(top)
    own = [path for path in (Path.cwd() / f"{top}.py", Path.cwd() / top) if path.exists()]
    if imported is None or not own:
        return ""
    file = getattr(imported, "__file__", None)
    if file is not None and Path(file).resolve() in (own[0].resolve(), own[-1] / "__init__.py"):
        return ""
    return f": '{top}' is {file or 'built into Python'}, not {own[0]}; rename the latter"


def _nearest(name: str, owner: ModuleType | type) -> str:
    return nearest(name, [item for item in dir(owner) if callable(getattr(owner, item, None))])


def check_arguments(
    target: Callable[..., Any], given: tuple[str, ...], args: Mapping[str, Any], *, key: str
) -> None:
    """Check, without calling it, that `target` accepts the arguments that dpeval passes.

    Args:
        target: the object that a key of the configuration names.
        given: names of the positional arguments that dpeval passes.
        args: the keyword arguments that the configuration adds.
        key: the key of `args`, for the message.

    Raises:
        ConfigError: `target` has other parameters.
    """
    try:
        signature = inspect.signature(target)
    except ValueError:
        return  # written in C: only a call can show its parameters
    try:
        signature.bind(*given, **args)
    except TypeError as error:
        name = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
        raise ConfigError(
            f"{name} does not accept {key}={dict(args)}: {error}; it is called as "
            f"{name.rpartition('.')[2]}({', '.join([*given, f'**{key}'])})"
        ) from None
