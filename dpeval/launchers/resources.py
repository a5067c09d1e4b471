"""What each run needs of a scheduler, and how SLURM and OAR are asked for it: pure functions.

Every resource comes from the run's own composed configuration, never from the sweep's: Hydra
resolves a launcher's parameters once per sweep, so a request written there is the same for
every job. Runs whose requests are equal can go out as one array.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
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


def resolve(config: Config, forecast: Forecast | None, options: LauncherOptions) -> Resources:
    """What the run of `config` needs, `forecast` being its fullest rank's memory."""
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
        time_min=options.time_min or _time_min(config, options),
        exclusive=config.site.exclusive,
    )


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
    return math.ceil((windows_s + config.site.startup_s + options.signal_s + _SIGNAL_EARLY_S) / 60)


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


def one_line(key: str, value: object) -> str:
    """`value` as text that stays on the line of a submission file on which it is written.

    Raises:
        ConfigError: it has a line break or another control character, behind which a
            scheduler's file could go on with a command.
    """
    text = str(value)
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ConfigError(f"{key}={text!r} has a control character; a scheduler cannot be told it")
    return text


def check_folder(folder: str) -> None:
    """Check that schedulers can write their logs to `folder`.

    Raises:
        LaunchError: it holds a control character, or what SLURM and submitit replace in paths.
    """
    bad = next((char for char in folder if ord(char) < 32 or char in "%\\"), None)
    if bad is not None:
        raise LaunchError(
            f"the sweep's folder {folder!r} contains {bad!r}, which schedulers replace in "
            "the paths of logs; choose another with hydra.sweep.dir or study"
        )


def slurm_parameters(
    resources: Resources, site: SiteConfig, options: LauncherOptions, name: str
) -> dict[str, Any]:
    """Keyword arguments of ``submitit.SlurmExecutor.update_parameters``.

    One task per node starts its ranks itself. ``srun`` of SLURM 22.05 and later does not take
    ``--cpus-per-task`` over from the job, so it is told again; ``--cpu-bind=none`` leaves the
    pinning inside the job's cpuset to dpeval.
    """
    shared = [f"--cpus-per-task={resources.cores}"]
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cores,
        "time": resources.time_min,
        "signal_delay_s": options.signal_s,
        "array_parallelism": options.array_parallelism,
        "srun_args": [
            *([] if resources.exclusive else shared),
            "--cpu-bind=none",
            "--kill-on-bad-exit=1",
        ],
        "additional_parameters": {
            **({"requeue": True} if site.requeue and options.requeue else {"no-requeue": True}),
            **{
                one_line("site.options", key): _option(value) for key, value in site.options.items()
            },
        },
    }
    if resources.gpus:
        parameters |= _slurm_gpus(resources.gpus, site)
    if site.ask_memory:
        memory_mib = resources.memory_mib
        if memory_mib is not None:
            parameters["mem"] = f"{memory_mib}M"
        elif resources.exclusive:
            parameters["mem"] = "0"
    if resources.exclusive:
        parameters["exclusive"] = True
    constraint = (site.gpu_constraint if resources.gpus else None) or site.constraint
    for key, value in (
        ("partition", site.partition),
        ("account", site.account),
        ("qos", site.qos),
        ("constraint", constraint),
    ):
        if value is not None:
            parameters[key] = one_line(f"site.{key}", value)
    if site.setup:
        parameters["setup"] = list(site.setup)
    return parameters


def _slurm_gpus(gpus: int, site: SiteConfig) -> dict[str, Any]:
    kind = "" if site.gpu_type is None else one_line("site.gpu_type", site.gpu_type) + ":"
    if site.gpu_option == "gres":
        return {"gres": f"gpu:{kind}{gpus}"}
    return {"gpus_per_node": f"{kind}{gpus}" if kind else gpus}


def _option(value: object) -> Any:
    return value if value is True else one_line("site.options", value)


def oar_parameters(
    resources: Resources, site: SiteConfig, options: LauncherOptions, name: str
) -> dict[str, Any]:
    """Keyword arguments of :class:`dpeval.launchers.oar.OarExecutor`.

    The whole ``-l`` request is written here: submitit-oar 1.1.2 knows neither other names of
    the GPU level nor ``gpus_per_node=0`` (it sends ``/gpu=0``, which oarsub refuses), and
    raises ValueError on memory, cores per task and tasks per node. ``/gpu=N`` alone promises
    no single node, so ``/nodes=`` always comes first.
    """
    hours, minutes = divmod(resources.time_min, 60)
    request = f"/nodes={resources.nodes}"
    if not resources.exclusive:
        level = f"/{one_line('site.gpu_level', site.gpu_level)}={resources.gpus}"
        request += level if resources.gpus else f"/core={resources.cores}"
    kinds = ["besteffort"] if site.besteffort else []
    if site.requeue and options.requeue:
        kinds.append("idempotent")
    additional: dict[str, Any] = {
        "l": f"{request},walltime={hours:02}:{minutes:02}:00",
        "checkpoint": str(options.signal_s),
        **{one_line("site.options", key): _option(value) for key, value in site.options.items()},
    }
    if kinds:
        additional["t"] = kinds
    if site.account is not None:
        additional["project"] = one_line("site.account", site.account)
    properties = _oar_properties(resources, site)
    if properties:
        additional["p"] = properties
    parameters: dict[str, Any] = {
        "n": name,
        "timeout_min": resources.time_min,
        "additional_parameters": additional,
    }
    if site.partition is not None:
        parameters["queue"] = one_line("site.partition", site.partition)
    if site.setup:
        parameters["setup"] = list(site.setup)
    return parameters


def _oar_properties(resources: Resources, site: SiteConfig) -> str:
    parts = [site.properties]
    if resources.gpus and site.gpu_properties:
        parts.append(site.gpu_properties.replace("{gpus}", str(resources.gpus)))
    if resources.memory_mib is not None and site.memory_properties:
        parts.append(site.memory_properties.replace("{mib}", str(resources.memory_mib)))
    return _joined(one_line("site.properties", part) for part in parts if part)


def _joined(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else " AND ".join(f"({part})" for part in found)
