"""How a sweep is submitted: the keys of ``hydra/launcher``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from dpeval.errors import ConfigError


@dataclass
class LocalOptions:
    """Keys of ``hydra/launcher=local``."""

    _target_: str = "hydra_plugins.dpeval.LocalLauncher"
    dry_run: bool = False
    """Show the runs and start nothing."""
    wait: bool = True
    """True: runs follow one another in this process, which waits for them."""


@dataclass
class LauncherOptions(BaseQueueConf):  # type: ignore[misc]  # untyped base
    """Keys of every launcher that submits to a scheduler.

    Those of hydra-submitit-launcher keep their meaning and default to null: dpeval derives them
    from each run's own configuration, and a value given here overrides that for all runs.
    """

    _target_: str = "hydra_plugins.dpeval.SchedulerLauncher"
    scheduler: str = ""
    """A name in the registry of schedulers, or ``package.module.Class`` of another one."""

    # Of hydra-submitit-launcher
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    """Where submission files, pickles and logs go."""
    timeout_min: int | None = None
    """Time limit in minutes; null: from the measured windows and ``site.startup_s``."""
    cpus_per_task: int | None = None
    """Cores per node: a node runs one task, which starts its ranks itself."""
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    mem_gb: int | None = None
    """Memory per node in GiB; null: from the forecast."""
    nodes: int | None = None
    name: str | None = None
    """Job name; null: from the study."""
    account: str | None = None
    setup: list[str] | None = None
    """Shell lines to run before Python, instead of ``site.setup``."""
    additional_parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further options by the scheduler's own names."""
    array_parallelism: int = 64
    """How many runs of one array may run at the same time."""
    signal_delay_s: int = 60
    """How many seconds before the time limit a run is told to end and to record."""
    max_num_timeout: int | None = None
    """How often an interrupted run may go back to the queue; null: `requeue`."""

    # dpeval's own
    wait: bool = True
    """False: return after submission; see ``python -m dpeval.status``."""
    dry_run: bool = False
    """Show what would be submitted and submit nothing."""
    requeue: int = 0
    """How often an interrupted run may go back to the queue."""
    prepare: str = "parent"
    """Who makes the data ready: ``parent`` (this process), ``job`` or ``none``."""
    poll_s: float = 2.0
    """How often to look while waiting, in seconds."""

    def __post_init__(self) -> None:
        smallest = {"requeue": 0, "max_num_timeout": 0, "gpus_per_node": 0}
        for key in (
            "array_parallelism", "signal_delay_s", "timeout_min", "cpus_per_task", "mem_gb",
            "nodes", "tasks_per_node", *smallest,
        ):  # fmt: skip
            value, low = getattr(self, key), smallest.get(key, 1)
            if value is not None and value < low:
                raise ConfigError(
                    f"hydra.launcher.{key}={value} is too small; the smallest valid value is {low}"
                )
        if self.prepare not in ("parent", "job", "none"):
            raise ConfigError(
                f"hydra.launcher.prepare={self.prepare} is not one of parent, job, none"
            )
        if self.poll_s <= 0:
            raise ConfigError(f"hydra.launcher.poll_s={self.poll_s} must be above 0")
        if self.max_num_timeout is not None:
            self.requeue = self.max_num_timeout

    @property
    def gpus_asked(self) -> int | None:
        """GPUs per node that these keys ask for; None where they leave it to the run."""
        return self.gpus_per_node
