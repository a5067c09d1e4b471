"""The command with which a job starts Python: the submitting one, or that of a container."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dpeval.config import ContainerConfig
from dpeval.errors import ConfigError
from dpeval.launchers.schedulers.base import one_line

PYXIS = "pyxis"


def python_words(container: ContainerConfig, folder: Path) -> list[str]:
    """The words before Python's own arguments.

    With Pyxis it is srun that starts the container, see :func:`srun_words`.

    Args:
        container: the site's.
        folder: where submission files and pickles lie.

    Raises:
        ConfigError: a text contains a control character.
    """
    if container.image is None:
        return [sys.executable]
    if container.launcher == PYXIS:
        return [one_line("site.container.python", container.python)]
    given = [one_line("site.container.arguments", word) for word in container.arguments]
    # Harmless where there is no GPU.
    vendor = [] if {"--nv", "--rocm"} & set(given) else ["--nv"]
    binds = [word for bind in _binds(container, folder) for word in ("--bind", bind)]
    return [
        container.launcher,
        "exec",
        *vendor,
        *binds,
        *given,
        one_line("site.container.image", container.image),
        one_line("site.container.python", container.python),
    ]


def srun_words(container: ContainerConfig, folder: Path) -> list[str]:
    """The arguments of srun that start the container, with Pyxis.

    Args:
        container: the site's.
        folder: where submission files and pickles lie.

    Raises:
        ConfigError: a text contains a control character, or a bind a comma.
    """
    if container.image is None or container.launcher != PYXIS:
        return []
    mounts = [bind if ":" in bind else f"{bind}:{bind}" for bind in _binds(container, folder)]
    return [
        f"--container-image={one_line('site.container.image', container.image)}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={Path.cwd()}",
        *(one_line("site.container.arguments", word) for word in container.arguments),
    ]


def check_on_oar(container: ContainerConfig, nodes: int) -> None:
    """Check that OAR can start `container`.

    Raises:
        ConfigError: it is SLURM's plugin, or the run has several nodes, whose remote shell is
            outside.
    """
    if container.image is None:
        return
    if container.launcher == PYXIS:
        raise ConfigError(
            "site.container.launcher=pyxis is a plugin of SLURM; use apptainer with OAR"
        )
    if nodes > 1:
        raise ConfigError(
            "site.container with num_nodes > 1 is not possible on OAR, whose jobs reach their "
            "other nodes by a program outside the container"
        )


def _binds(container: ContainerConfig, folder: Path) -> list[str]:
    """The folders that the container sees: the sweep's, the working directory, data, the user's.

    Raises:
        ConfigError: one contains a comma, which separates them.
    """
    # The folder of submissions lies in the sweep's, unless the user names another.
    own = [str(folder.parent), str(Path.cwd()), os.environ.get("DPEVAL_DATA") or ""]
    binds = [*dict.fromkeys(filter(None, own)), *container.binds]
    for bind in binds:
        one_line("site.container.binds", bind)
        if "," in bind:
            raise ConfigError(
                f"{bind!r} contains a comma, which separates the folders of a container; rename it"
            )
    return binds
