"""The schedulers that dpeval supports, one line each."""

from __future__ import annotations

from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.schedulers.base import Scheduler
from dpeval.launchers.schedulers.oar.scheduler import Oar
from dpeval.launchers.schedulers.slurm import Slurm
from dpeval.util.importing import locate

SCHEDULERS: dict[str, type[Scheduler]] = {
    "slurm": Slurm,
    "oar": Oar,
}


def scheduler(name: str) -> Scheduler:
    """The scheduler called `name`: one of the registry, or ``package.module.Class``.

    Raises:
        LaunchError: there is no scheduler of this name.
        ConfigError: the class cannot be imported, or is not a :class:`Scheduler`.
    """
    if "." in name:
        return _from_elsewhere(name)
    if name not in SCHEDULERS:
        raise LaunchError(
            f"there is no scheduler '{name}'; valid: {', '.join(sorted(SCHEDULERS))}, or "
            "package.module.Class"
        )
    return SCHEDULERS[name]()


def _from_elsewhere(path: str) -> Scheduler:
    found = locate(path, key="hydra.launcher.scheduler")
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise ConfigError(
            f"hydra.launcher.scheduler={path} is not a subclass of "
            f"{Scheduler.__module__}.{Scheduler.__name__}"
        )
    if missing := sorted(found.__abstractmethods__):
        raise ConfigError(
            f"hydra.launcher.scheduler={path} does not implement {', '.join(missing)} of "
            f"{Scheduler.__module__}.{Scheduler.__name__}"
        )
    return found()
