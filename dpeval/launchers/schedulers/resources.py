"""What each run needs of a scheduler, and which runs can share a submission: pure functions.

Every resource comes from the run's own composed configuration, never from the sweep's: Hydra
resolves a launcher's parameters once per sweep, so a request written there is the same for
every job. Runs whose requests are equal can go out as one array.
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
"""The parent process, the fork server and the page cache that a cgroup charges to the job."""
_SIGNAL_EARLY_S = 60
"""SLURM may send the warning this much earlier than asked (sbatch(1), ``--signal``)."""
_GPU_HOST_BYTES = 4 * GIB
"""Host memory of one rank that drives a GPU: CUDA libraries, pinned batches, decoders."""


@dataclass(frozen=True)
class Resources:
    """What one run asks for; cores, GPUs and memory are per node, and a node runs one task."""

    nodes: int
    cores: int
    gpus: int
    memory_mib: int | None
    """None: whatever the site gives."""
    time_min: int
    exclusive: bool

    @property
    def device_hours(self) -> float:
        """Upper bound of devices (GPUs, or cores where there are none) times hours asked for."""
        return self.nodes * (self.gpus or self.cores) * self.time_min / 60


def derive(config: Config, forecast: Forecast | None, options: LauncherOptions) -> Resources:
    """What the run of `config` needs.

    Args:
        config: the run.
        forecast: memory of its fullest rank; None where it is not known.
        options: the keys of ``hydra/launcher``; only the warning's lead time counts here.
    """
    devices = config.num_devices // config.num_nodes
    gpu = config.hardware.kind == "gpu"
    cores_per_device = config.hardware.cores_per_device + (config.dataset.workers or 0)
    if gpu:
        cores_per_device = max(cores_per_device, config.site.cores_per_gpu)
    return Resources(
        nodes=config.num_nodes,
        cores=devices * cores_per_device,
        gpus=devices if gpu else 0,
        memory_mib=_memory_mib(config, devices, forecast),
        time_min=_time_min(config, options),
        exclusive=config.site.exclusive,
    )


def override(resources: Resources, options: LauncherOptions) -> Resources:
    """`resources` with whatever the keys of ``hydra/launcher`` say instead."""
    given: dict[str, Any] = {
        "nodes": options.nodes,
        "cores": options.cpus_per_task,
        "gpus": options.gpus_asked,
        "memory_mib": None if options.mem_gb is None else options.mem_gb * 1024,
        "time_min": options.timeout_min,
    }
    return replace(resources, **{key: value for key, value in given.items() if value is not None})


def contradictions(config: Config, needed: Resources, options: LauncherOptions) -> list[str]:
    """One line for every resource of which ``hydra/launcher`` gives a run less than it needs.

    They are told and not refused: a key given there is what the user wants.

    Args:
        config: the run.
        needed: what dpeval derived for it.
        options: the keys of ``hydra/launcher``.

    Raises:
        ConfigError: nodes or tasks that no run could work with.
    """
    if options.nodes not in (None, needed.nodes):
        raise ConfigError(
            f"hydra.launcher.nodes={options.nodes} and num_nodes={needed.nodes} contradict each "
            "other; set num_nodes alone"
        )
    if options.tasks_per_node not in (None, 1):
        raise ConfigError(
            f"hydra.launcher.tasks_per_node={options.tasks_per_node} is not possible: a run is one "
            "task per node, which starts its ranks itself; set num_devices"
        )
    given = override(needed, options)
    return [
        f"{what}: hydra.launcher asks for {asked}, and num_devices={config.num_devices} "
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
        # Unknown is no reason to leave it to the site: its default is often 100 MB a core.
        return (
            None if config.site.exclusive else round_up_mib(devices * 2 * GIB + _CPU_OVERHEAD_BYTES)
        )
    return round_up_mib(devices * forecast.total_bytes + _CPU_OVERHEAD_BYTES)


def round_up_mib(size_bytes: int) -> int:
    """The next of 1, 1.5, 2, 3, 4, 6, 8, … GiB, in MiB.

    Coarse on purpose: forecasts that differ by a few MiB would otherwise make every run of a
    sweep a request of its own, and no two of them could share an array.
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
    """Runs with one request: what the scheduler is told, and which runs it is for."""

    resources: Resources
    parameters: dict[str, Any]
    """Keyword arguments of the submitit executor."""
    members: tuple[int, ...] = field(default=())
    """Positions of the runs in the sweep."""


def group(
    needs: Sequence[tuple[int, Resources, SiteConfig]],
    translate: Callable[[Resources, SiteConfig], dict[str, Any]],
) -> list[Group]:
    """Put runs with equal translated parameters together, in order of first appearance."""
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
    """A name without anything that a shell or a scheduler could read as more than a name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", study).strip("_-.")[:40]
    return f"dpeval-{plain or 'sweep'}-{token}"


def check_folder(key: str, folder: str) -> None:
    """Check that schedulers can write their logs to the `folder` of a user's `key`.

    Raises:
        LaunchError: it holds a control character, or what SLURM and submitit replace in paths.
    """
    bad = next((char for char in folder if ord(char) < 32 or char in "%\\"), None)
    if bad is not None:
        raise LaunchError(
            f"{key}={folder!r} contains {bad!r}, which schedulers replace in the paths of logs; "
            "choose another folder"
        )
