"""How a sweep is submitted: the keys of ``hydra/launcher``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from dpeval.config.bounds import BOUNDS_CONFIG, OneOf


@dataclass
class LocalOptions:
    """Keys of ``hydra/launcher=local``."""

    _target_: str = "hydra_plugins.dpeval.LocalLauncher"
    dry_run: bool = False
    """List the runs without starting any."""
    wait: bool = True
    """Always true: this process runs the sweep itself."""


@dataclass
class LauncherOptions(BaseQueueConf):  # type: ignore[misc]  # untyped base
    """Keys of every launcher that submits to a scheduler.

    The keys of hydra-submitit-launcher keep their meaning and default to null: dpeval derives
    them from each run's configuration. A value given here overrides that for all runs.

    The launcher checks the bounds (:func:`dpeval.config.bounds.check_bounds`).
    """

    __pydantic_config__ = BOUNDS_CONFIG

    _target_: str = "hydra_plugins.dpeval.SchedulerLauncher"
    scheduler: str = ""
    """Name of a registered scheduler, or the import path of a class (``package.module.Class``)."""

    # Keys of hydra-submitit-launcher
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    """Where submission files, pickles and logs go."""
    timeout_min: PositiveInt | None = None
    """Time limit of a job in minutes; null: computed from its runs' windows and
    ``site.startup_s``."""
    cpus_per_task: PositiveInt | None = None
    """Cores per node: a node runs one task, which starts its ranks itself."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs per node; null: one per rank on the node."""
    tasks_per_node: PositiveInt | None = None
    """Only 1 is valid: a node runs one task."""
    mem_gb: PositiveInt | None = None
    """Memory per node in GiB; null: taken from the forecast."""
    nodes: PositiveInt | None = None
    """Number of nodes; null: ``num_nodes``."""
    name: str | None = None
    """Job name; null: derived from ``study``."""
    account: str | None = None
    """Account or project to charge; null: ``site.account``."""
    setup: list[str] | None = None
    """Shell commands to run before Python, instead of ``site.setup``."""
    additional_parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further options, by the names that the scheduler uses."""
    array_parallelism: PositiveInt = 64
    """Maximum number of array tasks that run at the same time."""
    signal_delay_s: PositiveInt = 60
    """Seconds before its time limit at which a run is signalled to stop and write its record."""
    max_num_timeout: NonNegativeInt | None = None
    """Maximum number of times an interrupted run is requeued; null: `requeue`."""

    # Keys of dpeval
    wait: bool = True
    """False: return after submission; see ``python -m dpeval.status``."""
    dry_run: bool = False
    """Show what would be submitted, and submit nothing."""
    pack: bool | None = None
    """Put runs that fit on one node into one job, instead of one job per run; null: true for
    ``sweep.order=interleaved``, and for ``auto`` where ``site.exclusive`` requests whole nodes."""
    requeue: NonNegativeInt = 0
    """Maximum number of times an interrupted run is requeued."""
    prepare: Annotated[str, OneOf("parent", "job", "none")] = "parent"
    """Who prepares the data: ``parent`` (this process), ``job`` or ``none``."""
    poll_s: PositiveFloat = 2.0
    """Minimum number of seconds between queries to the scheduler while waiting; the interval grows
    while nothing changes."""

    def __post_init__(self) -> None:
        if self.max_num_timeout is not None:
            self.requeue = self.max_num_timeout

    @property
    def gpus_asked(self) -> int | None:
        """GPUs per node that these keys request; None if they request none explicitly."""
        return self.gpus_per_node
