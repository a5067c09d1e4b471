"""What each run requests of a scheduler, and which runs can share a submission: pure functions.

Resources are derived from each run's own composed configuration: Hydra resolves a launcher's
parameters once per sweep, so a request written there would be the same for every job. Runs with
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
from dpeval.util.units import GIB

_CPU_OVERHEAD_BYTES = 2 * GIB
"""The parent process, the fork server and the page cache charged to the job's cgroup."""
_SIGNAL_EARLY_S = 60
"""SLURM may send the warning this much earlier than requested (sbatch(1), ``--signal``)."""
_GPU_HOST_BYTES = 4 * GIB
"""Host memory of one rank that drives a GPU: CUDA libraries, pinned batches, decoders."""


@dataclass(frozen=True)
class Resources:
    """What one run requests; cores, GPUs and memory are per node, and a node runs one task."""

    nodes: int
    cores: int
    gpus: int
    memory_mib: int | None
    """None: the site's default."""
    time_min: int
    exclusive: bool

    @property
    def device_hours(self) -> float:
        """Requested hours times devices (GPUs, or cores if there are none): an upper bound."""
        return self.nodes * (self.gpus or self.cores) * self.time_min / 60


def derive(config: Config, forecast: Forecast | None, options: LauncherOptions) -> Resources:
    """What the run of `config` needs.

    Args:
        config: the run.
        forecast: memory of the rank that needs most; None if unknown.
        options: the keys of ``hydra/launcher``, of which only ``signal_delay_s`` matters here.
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
        time_min=_time_min(config, options),
        exclusive=config.site.exclusive,
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
    return replace(resources, **{key: value for key, value in given.items() if value is not None})


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


def _time_min(config: Config, options: LauncherOptions) -> int:
    measure = config.measure
    windows_s = measure.time_limit_s * (1 + (measure.ablation_share if measure.ablation else 0))
    return math.ceil(
        (windows_s + config.site.startup_s + options.signal_delay_s + _SIGNAL_EARLY_S) / 60
    )


@dataclass(frozen=True)
class Group:
    """Runs with equal requests, which are submitted together."""

    resources: Resources
    parameters: dict[str, Any]
    """Keyword arguments of the submitit executor."""
    members: tuple[int, ...] = field(default=())
    """Positions of the runs in the sweep."""


def group(
    needs: Sequence[tuple[int, Resources, SiteConfig]],
    translate: Callable[[Resources, SiteConfig], dict[str, Any]],
) -> list[Group]:
    """Group runs with equal requests, in order of first appearance.

    Args:
        needs: position in the sweep, resources and site of every run.
        translate: makes the executor's keyword arguments of resources and a site.
    """
    found: dict[Hashable, tuple[Resources, dict[str, Any], list[int]]] = {}
    for position, resources, site in needs:
        parameters = translate(resources, site)
        key = json.dumps(parameters, sort_keys=True)
        found.setdefault(key, (resources, parameters, []))[2].append(position)
    return [
        Group(resources, parameters, tuple(members))
        for resources, parameters, members in found.values()
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
