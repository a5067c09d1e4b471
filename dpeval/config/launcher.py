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
    """Always true here: this process runs them."""


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
    """A name in the registry of schedulers, or ``package.module.Class`` of another one."""

    # Of hydra-submitit-launcher
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    """Where submission files, pickles and logs go."""
    timeout_min: PositiveInt | None = None
    """Time limit of a job in minutes; null: from the measured windows of its runs and
    ``site.startup_s``."""
    cpus_per_task: PositiveInt | None = None
    """Cores per node: a node runs one task, which starts its ranks itself."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs per node; null: the ranks on a node."""
    tasks_per_node: PositiveInt | None = None
    """Only 1 is valid: a node runs one task."""
    mem_gb: PositiveInt | None = None
    """Memory per node in GiB; null: from the forecast."""
    nodes: PositiveInt | None = None
    """Number of nodes; null: ``num_nodes``."""
    name: str | None = None
    """Job name; null: from the study."""
    account: str | None = None
    """Account or project to charge; null: ``site.account``."""
    setup: list[str] | None = None
    """Shell lines to run before Python, instead of ``site.setup``."""
    additional_parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    """More options, by the scheduler's own names."""
    array_parallelism: PositiveInt = 64
    """How many runs of one array may run at the same time."""
    signal_delay_s: PositiveInt = 60
    """How many seconds before its time limit a run receives the signal to stop and record."""
    max_num_timeout: NonNegativeInt | None = None
    """How often an interrupted run may be requeued; null: `requeue`."""

    # dpeval's own
    wait: bool = True
    """False: return after submission; see ``python -m dpeval.status``."""
    dry_run: bool = False
    """Show what would be submitted, without submitting it."""
    pack: bool | None = None
    """Let runs that fit on one node share a job, instead of one job for each run; null: true for
    ``sweep.order=interleaved``, and with ``auto`` where ``site.exclusive`` asks for whole nodes."""
    requeue: NonNegativeInt = 0
    """How often an interrupted run may be requeued."""
    prepare: Annotated[str, OneOf("parent", "job", "none")] = "parent"
    """Who prepares the data: ``parent`` (this process), ``job`` or ``none``."""
    poll_s: PositiveFloat = 2.0
    """Seconds between two looks at the scheduler while waiting, at least: more while nothing
    changes."""

    def __post_init__(self) -> None:
        if self.max_num_timeout is not None:
            self.requeue = self.max_num_timeout

    @property
    def gpus_asked(self) -> int | None:
        """GPUs per node that these keys request; None if they leave it to the run."""
        return self.gpus_per_node
