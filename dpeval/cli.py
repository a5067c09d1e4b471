"""What every command shares: Hydra with dpeval's configuration, and errors told in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.errors import OmegaConfBaseException

from dpeval.config import Config, from_hydra, register_schema, wording
from dpeval.errors import ConfigError, DpevalError, nearest


def conf_dir() -> Path:
    """Where the packaged YAML files lie: inside an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class UserConf(SearchPathPlugin):
    """Adds ``./conf`` of the working directory, so that a new option is one new file there."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = Path.cwd() / "conf"
        if own.is_dir() and own.resolve() != conf_dir().resolve():
            search_path.append(provider="user", path=f"file://{own}")


def register() -> None:
    """Make dpeval's schema, search path and launchers known to Hydra, once per process.

    Hydra instantiates plugins of its ``hydra_plugins`` namespace alone. A package of that name
    would be imported by every Hydra application of the environment, so the classes are entered
    there while dpeval runs, and only then.
    """
    import hydra_plugins

    from dpeval.launchers.compose import CartesianSweeper
    from dpeval.launchers.local import LocalLauncher
    from dpeval.launchers.oar import OarLauncher
    from dpeval.launchers.slurm import SlurmLauncher

    register_schema()
    entry = ModuleType("hydra_plugins.dpeval")
    for plugin in (UserConf, LocalLauncher, SlurmLauncher, OarLauncher, CartesianSweeper):
        plugin.__module__ = entry.__name__
        setattr(entry, plugin.__name__, plugin)
        Plugins.instance().register(plugin)
    sys.modules[entry.__name__] = hydra_plugins.dpeval = entry


def compose(overrides: list[str]) -> Config:
    """Compose and check one configuration from command-line overrides.

    Raises:
        ConfigError: see :func:`dpeval.config.from_hydra`.
    """
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return from_hydra(hydra_compose("config", overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise translate(error) from error


def run_main(function: Callable[[], None]) -> int:
    """Run a command; return its exit status. A user's mistake is one line, a bug a traceback."""
    # Hydra would print its own errors and leave with status 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        function()
    except DpevalError as error:
        print(f"dpeval: {error}", file=sys.stderr)
        return error.exit_status
    except (HydraException, OmegaConfBaseException) as error:
        translated = translate(error)
        print(f"dpeval: {translated}", file=sys.stderr)
        return translated.exit_status
    except ValueError as error:
        # Hydra's own word for a value that cannot name an option of a group (hardware=3).
        if not str(error).startswith("Config group override"):
            raise
        print(f"dpeval: {error}; name one of the group's files", file=sys.stderr)
        return ConfigError.exit_status
    except KeyboardInterrupt:
        print("dpeval: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left (a pager, head): nothing more can be said to it.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # lives until exit
        return 141
    return 0


def translate(error: Exception) -> ConfigError:
    """Say what Hydra or OmegaConf found wrong in one line, with the nearest valid choice."""
    chained = error.__cause__ or error.__context__
    cause = error if isinstance(error, OmegaConfBaseException) else chained
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_option(error))
    if isinstance(error, OverrideParseException):
        return ConfigError(f"'{error.override}' is not of the form key=value")
    if first.startswith("Ambiguous value for argument"):
        asked = first.split("'")[1]
        return ConfigError(f"{asked} lists several values; add -m to sweep over them")
    if isinstance(cause, OmegaConfBaseException):
        place = re.search(r"In '([^']+)'", text)
        asked = first.removeprefix("Error merging override ")
        if place:
            return ConfigError(f"{wording(cause)} (in {place[1]}.yaml)")
        return ConfigError(wording(cause) + (f" (asked: {asked})" if asked != first else ""))
    return ConfigError(first)


def _missing_option(error: MissingConfigException) -> str:
    wanted = str(error.missing_cfg_file or "?").removesuffix(".yaml")
    group, _, option = wanted.rpartition("/")
    options = list(error.options or [])
    if not group:
        return str(error).strip().splitlines()[0]
    message = f"{group}={option} is not one of {', '.join(options)}{nearest(option, options)}"
    if group == "model":
        message += f" (any torchvision classifier: model=torchvision model.name={option})"
    return message
