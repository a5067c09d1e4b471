"""What each job requests of a scheduler, and which jobs can share a submission: pure functions.

Resources are derived from each run's own composed configuration: Hydra resolves a launcher's
parameters once per sweep, so a request written there would be the same for every job. Jobs with
equal requests are submitted as one array.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dpeval.config import Config, LauncherOptions, SiteConfig
from dpeval.errors import ConfigError, LaunchError
from dpeval.record.memory import Forecast
from dpeval.util.display.units import GIB

_CPU_OVERHEAD_BYTES = 2 * GIB
"""The parent process, the fork server and the page cache charged to the job's cgroup."""
_SIGNAL_EARLY_S = 60
"""SLURM may send the warning this much earlier than requested (sbatch(1), ``--signal``)."""
_FURTHER_START_S = 30.0
"""Until a further run of a job steps: data is prepared, and the fork server has torch loaded."""
_FURTHER_END_S = 2.0
"""To stop a further run of a job and to write its record."""
_GPU_HOST_BYTES = 4 * GIB
"""Host memory of one GPU rank: CUDA libraries, pinned batches, decoders."""


@dataclass(frozen=True)
class Resources:
    """What one job requests; cores, GPUs and memory are per node, and a node runs one task."""

    nodes: int
    cores: int
    gpus: int
    memory_mib: int | None
    """None: the site's default."""
    time_min: int
    exclusive: bool
    warning_s: int
    """How long before its time limit the job receives the signal to stop."""
    all_memory: bool = False
    """Whole nodes with all of their memory, of which `memory_mib` is the least."""

    @property
    def devices(self) -> int:
        """GPUs per node, or cores if it needs no GPUs."""
        return self.gpus or self.cores


@dataclass(frozen=True)
class NodeSize:
    """What a whole node has; None: not known."""

    cores: int | None = None
    gpus: int | None = None


def derive(config: Config, forecast: Forecast | None, options: LauncherOptions) -> Resources:
    """What the run of `config` needs.

    Args:
        config: the run.
        forecast: memory of the rank that needs most; None if unknown.
        options: the keys of ``hydra/launcher``, of which only ``signal_delay_s`` matters here.

    Returns:
        The request of a job that runs nothing else.
    """
    devices = config.num_devices // config.num_nodes
    gpu = config.hardware.kind == "gpu"
    cores_per_device = config.hardware.compute_threads + (config.dataset.workers or 0)
    if gpu:
        # There cores_per_device includes the cores of the workers.
        given = config.hardware.cores_per_device
        cores_per_device = max(given or cores_per_device, config.site.cores_per_gpu)
    return Resources(
        nodes=config.num_nodes,
        cores=devices * cores_per_device,
        gpus=devices if gpu else 0,
        memory_mib=_memory_mib(config, devices, forecast),
        time_min=_time_min([config], options.signal_delay_s),
        exclusive=config.site.exclusive,
        warning_s=options.signal_delay_s,
    )


def together(
    configs: Sequence[Config], needs: Sequence[Resources], options: LauncherOptions
) -> Resources:
    """What a job needs in which runs take turns: most devices of any run, and the time of all.

    The runs are alive at once, as far as memory holds them: a whole node gives all that it has, a
    part of a node what they need in sum.

    Args:
        configs: the runs, all at one site and on one node.
        needs: what each of them needs by itself.
        options: the keys of ``hydra/launcher``, of which only ``signal_delay_s`` matters here.
    """
    if len(needs) == 1:
        return needs[0]
    known = [need.memory_mib for need in needs if need.memory_mib is not None]
    is_known = len(known) == len(needs)
    exclusive = configs[0].site.exclusive
    warning_s = options.signal_delay_s + math.ceil(_FURTHER_END_S * (len(needs) - 1))
    return Resources(
        nodes=needs[0].nodes,
        cores=max(need.cores for need in needs),
        gpus=max(need.gpus for need in needs),
        memory_mib=(max(known) if exclusive else sum(known)) if is_known else None,
        time_min=_time_min(configs, warning_s),
        exclusive=exclusive,
        warning_s=warning_s,
        all_memory=exclusive,
    )


def override(resources: Resources, options: LauncherOptions) -> Resources:
    """`resources`, overridden by the keys of ``hydra/launcher`` that are set."""
    given: dict[str, Any] = {
        "nodes": options.nodes,
        "cores": options.cpus_per_task,
        "gpus": options.gpus_asked,
        "memory_mib": None if options.mem_gb is None else options.mem_gb * 1024,
        "time_min": options.timeout_min,
    }
    set_ = {key: value for key, value in given.items() if value is not None}
    return replace(resources, **set_, all_memory=resources.all_memory and "memory_mib" not in set_)


def shortfalls(config: Config, needed: Resources, options: LauncherOptions) -> list[str]:
    """One line for each resource of which ``hydra/launcher`` requests less than a run needs.

    This is a warning and no error: an explicit key is the user's decision.

    Args:
        config: the run.
        needed: what dpeval derived for it.
        options: the keys of ``hydra/launcher``.

    Raises:
        ConfigError: ``nodes`` or ``tasks_per_node`` contradicts the run.
    """
    if options.nodes not in (None, needed.nodes):
        raise ConfigError(
            f"hydra.launcher.nodes={options.nodes} contradicts num_nodes={needed.nodes}; "
            "set num_nodes alone"
        )
    if options.tasks_per_node not in (None, 1):
        raise ConfigError(
            f"hydra.launcher.tasks_per_node={options.tasks_per_node} is not possible: a run has "
            "one task per node, which starts the ranks; set num_devices instead"
        )
    given = override(needed, options)
    return [
        f"warning: {what}: hydra.launcher requests {asked}, but num_devices={config.num_devices} "
        f"batch={config.batch} needs {wanted}"
        for what, asked, wanted in (
            ("GPUs per node", given.gpus, needed.gpus),
            ("cores per node", given.cores, needed.cores),
            ("time limit in minutes", given.time_min, needed.time_min),
            ("memory per node in MiB", given.memory_mib, needed.memory_mib),
        )
        if asked is not None and wanted is not None and asked < wanted
    ]


def _memory_mib(config: Config, devices: int, forecast: Forecast | None) -> int | None:
    if config.hardware.kind == "gpu":
        return round_up_mib(devices * _GPU_HOST_BYTES)
    if config.hardware.memory_gib is not None:
        return round_up_mib(devices * int(config.hardware.memory_gib * GIB) + _CPU_OVERHEAD_BYTES)
    if forecast is None:
        # A site's default is often 100 MB per core, too little for any run.
        return (
            None if config.site.exclusive else round_up_mib(devices * 2 * GIB + _CPU_OVERHEAD_BYTES)
        )
    return round_up_mib(devices * forecast.total_bytes + _CPU_OVERHEAD_BYTES)


def round_up_mib(size_bytes: int) -> int:
    """The next of 1, 1.5, 2, 3, 4, 6, 8, … GiB, in MiB.

    Coarse on purpose: otherwise forecasts that differ by a few MiB would give every run a request
    of its own, and no two runs could share an array.
    """
    gib = max(size_bytes, 1) / GIB
    power = 2.0 ** max(0, math.floor(math.log2(gib))) if gib > 1 else 1.0
    for step in (power, 1.5 * power, 2 * power):
        if gib <= step:
            return int(step * 1024)
    return int(4 * power * 1024)


def _time_min(configs: Sequence[Config], warning_s: int) -> int:
    """Minutes until runs that share a job have been measured, in turns or one after another."""
    windows_s = sum(config.measure.longest_s for config in configs)
    first, *further = configs
    starts_s = first.site.startup_s + sum(
        config.site.startup_s if config.compile else _FURTHER_START_S for config in further
    )
    return math.ceil((windows_s + starts_s + warning_s + _SIGNAL_EARLY_S) / 60)


@dataclass(frozen=True)
class JobRequest:
    """A job to submit, and the runs that take turns in it: often only one."""

    members: tuple[int, ...]
    """Positions of the runs in the sweep."""
    resources: Resources
    site: SiteConfig


@dataclass(frozen=True)
class Group:
    """Jobs with equal requests, which are submitted together."""

    resources: Resources
    parameters: dict[str, Any]
    """Keyword arguments of the submitit executor."""
    jobs: tuple[tuple[int, ...], ...] = ()
    """Positions in the sweep of each job's runs."""
    site: SiteConfig = field(default_factory=SiteConfig)

    @property
    def members(self) -> tuple[int, ...]:
        """Positions of all its runs, job by job."""
        return tuple(position for job in self.jobs for position in job)


def group(
    requests: Sequence[JobRequest],
    translate: Callable[[Resources, SiteConfig], dict[str, Any]],
    most: int | None = None,
) -> list[Group]:
    """Group jobs with equal requests, in order of first appearance.

    Args:
        requests: the jobs.
        translate: makes the executor's keyword arguments of resources and a site.
        most: the largest group; None: no limit.
    """
    found: dict[Hashable, tuple[JobRequest, dict[str, Any], list[tuple[int, ...]]]] = {}
    for job in requests:
        parameters = translate(job.resources, job.site)
        key = (json.dumps(parameters, sort_keys=True), str(job.site.container))
        found.setdefault(key, (job, parameters, []))[2].append(job.members)
    return [
        Group(one.resources, parameters, tuple(jobs[first : first + (most or len(jobs))]), one.site)
        for one, parameters, jobs in found.values()
        for first in range(0, len(jobs), most or len(jobs))
    ]


def job_name(study: str, token: str) -> str:
    """A job name of `study` and `token` without characters special to a shell or a scheduler."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", study).strip("_-.")[:40]
    return f"dpeval-{plain or 'sweep'}-{token}"


def check_folder(key: str, folder: str) -> None:
    """Check that schedulers can write logs to `folder`, given in the user's `key`.

    Raises:
        LaunchError: it contains a control character, or one that SLURM or submitit replaces.
    """
    bad = next((char for char in folder if ord(char) < 32 or char in "%\\"), None)
    if bad is not None:
        raise LaunchError(
            f"{key}={folder!r} contains {bad!r}, which schedulers replace in the paths of logs; "
            "choose another folder"
        )
