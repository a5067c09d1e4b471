"""Hydra with dpeval's configuration, launchers and sweeper."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hydra
import hydra_plugins
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dpeval.commands.callbacks import LeaveHydra
from dpeval.commands.main import is_users_mistake, translate
from dpeval.config import Config, LauncherOptions, LocalOptions, from_hydra, register_schema
from dpeval.errors import ConfigError, first_line
from dpeval.launchers.compose import Composer
from dpeval.launchers.local import LocalLauncher
from dpeval.launchers.scheduler_launcher import SchedulerLauncher
from dpeval.launchers.schedulers.registry import SCHEDULERS
from dpeval.launchers.sweeper import CartesianSweeper, accept_dry_run
from dpeval.util.paths import conf_dir

_PLUGINS = "hydra_plugins"
"""The package in which Hydra looks for plug-ins."""


def _own_conf() -> Path | None:
    """The user's ``./conf``, if there is one."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and own.resolve() != conf_dir().resolve() else None


class UserConf(SearchPathPlugin):
    """Adds ``./conf`` of the working directory, so that a new option is one new file there."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = _own_conf()
        if own is not None:
            search_path.append(provider="user", path=f"file://{own}")


@functools.cache
def register() -> None:
    """Make dpeval's schema, search path and launchers known to Hydra, once per process.

    Hydra only instantiates plugins from its ``hydra_plugins`` namespace. A package of that name
    would be imported by every Hydra application in the environment, so the classes are put there
    only while dpeval runs.

    Raises:
        ConfigError: a plug-in of Hydra that is installed here cannot be imported.
    """
    plugins = _plugins()
    register_schema()
    _register_launcher("local", LocalOptions)
    _register_launcher("scheduler", LauncherOptions)
    for name, kind in SCHEDULERS.items():
        _register_launcher(name, kind.options)
    entry = ModuleType("hydra_plugins.dpeval")
    for plugin in (UserConf, LocalLauncher, SchedulerLauncher, CartesianSweeper):
        plugin.__module__ = entry.__name__
        setattr(entry, plugin.__name__, plugin)
        plugins.register(plugin)
    sys.modules[entry.__name__] = hydra_plugins.dpeval = entry
    accept_dry_run()


def _plugins() -> Plugins:
    """Hydra's plug-ins. Hydra itself passes over those that raise an ImportError only.

    Raises:
        ConfigError: one cannot be imported.
    """
    try:
        return Plugins.instance()
    except Exception as error:
        files = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
        owners = [parts[parts.index(_PLUGINS) + 1] for parts in files if _PLUGINS in parts[:-1]]
        if not owners:
            raise
        version = ".".join(map(str, sys.version_info[:2]))
        raise ConfigError(
            f"the plug-in '{owners[0].removesuffix('.py')}' of Hydra cannot be imported with "
            f"Python {version} ({type(error).__name__}: {first_line(error)}); upgrade or "
            "uninstall it"
        ) from error


def _register_launcher(name: str, options: type) -> None:
    """Make `options` the keys of ``hydra/launcher=<name>``, with those of a mapping open."""
    node = OmegaConf.structured(options)
    if "additional_parameters" in node:
        OmegaConf.set_struct(node.additional_parameters, False)
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="dpeval")


def compose(overrides: list[str]) -> Config:
    """Compose and check one configuration from command-line overrides.

    Raises:
        ConfigError: see :func:`dpeval.config.from_hydra`.
    """
    register()
    try:
        # The user's YAML files may change, or the working directory.
        own = _own_conf()
        composed = (_composer() if own is None else _new_composer()).compose(overrides)
        with open_dict(composed):
            del composed["hydra"]
        return from_hydra(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise translate(error) from error
    except ValueError as error:
        if not is_users_mistake(error):
            raise
        raise translate(error) from error


def _new_composer() -> Composer:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return Composer(loader, loader.load_configuration("config", [], RunMode.RUN))


_composer = functools.cache(_new_composer)
"""Cached, because the packaged YAML files never change and take 0.1 s to read and merge."""


def run(task: Callable[[DictConfig], None]) -> None:
    """Run Hydra's command line: `task` for one configuration, or a sweep through a launcher.

    Raises:
        DpevalError: a sweep could not be started, or some of its runs failed.
    """
    register()
    # Hydra's parser rejects overrides on both sides of -m.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        start(task)()
    except LeaveHydra as left:
        raise left.error from None
