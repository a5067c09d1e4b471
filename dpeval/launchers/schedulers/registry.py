"""The schedulers that dpeval knows: one line each."""

from __future__ import annotations

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import Scheduler
from dpeval.launchers.schedulers.oar import Oar
from dpeval.launchers.schedulers.slurm import Slurm

SCHEDULERS: dict[str, type[Scheduler]] = {
    "slurm": Slurm,
    "oar": Oar,
}


def scheduler(name: str) -> Scheduler:
    """The scheduler called `name`.

    Raises:
        LaunchError: there is none.
    """
    if name not in SCHEDULERS:
        raise LaunchError(
            f"'{name}' is not a scheduler; dpeval knows {', '.join(sorted(SCHEDULERS))}"
        )
    return SCHEDULERS[name]()
