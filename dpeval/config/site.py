"""The keys of ``site``: what a cluster requires of job submissions. They are not part of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import PositiveFloat, PositiveInt

from dpeval.config.bounds import OneOf
from dpeval.errors import ConfigError


@dataclass(frozen=True)
class ContainerConfig:
    """The container in which a job runs Python."""

    image: str | None = None
    """Image file, or an address that `launcher` understands; null: no container."""
    launcher: Annotated[str, OneOf("apptainer", "singularity", "pyxis")] = "apptainer"
    """Program that starts the container; ``pyxis`` is the SLURM plugin for Enroot."""
    binds: list[str] = field(default_factory=list[str])
    """Folders to mount, as ``outside:inside``, besides the sweep's folder, the working directory
    and ``$DPEVAL_DATA``."""
    arguments: list[str] = field(default_factory=list[str])
    """Further arguments of ``apptainer exec``, or of srun with Pyxis."""
    python: str = "python3"
    """Python interpreter in the container; it must be able to import dpeval."""


@dataclass(frozen=True)
class SiteConfig:
    """What a cluster requires of job submissions; it does not change what is measured."""

    name: str = "generic"
    """Name of the site."""
    partition: str | None = None
    """SLURM partition or OAR queue; null: the site's default."""
    account: str | None = None
    """SLURM account or OAR project."""
    qos: str | None = None
    """SLURM quality of service."""
    constraint: str | None = None
    """SLURM ``--constraint`` of every job."""
    gpu_constraint: str | None = None
    """SLURM ``--constraint`` of jobs with GPUs, instead of `constraint`."""
    gpu_option: Annotated[str, OneOf("gpus_per_node", "gres")] = "gpus_per_node"
    """SLURM option that requests GPUs at this site."""
    gpu_type: str | None = None
    """GPU type in SLURM requests (``a100``); for OAR, see `gpu_properties`."""
    properties: str | None = None
    """OAR ``-p`` expression of every job."""
    gpu_properties: str | None = None
    """OAR ``-p`` expression added for jobs with GPUs; ``{gpus}`` is their number per node."""
    memory_properties: str | None = None
    """OAR ``-p`` expression added if memory was forecast; ``{mib}`` is MiB per node."""
    gpu_level: str = "gpu"
    """Name of the GPU in OAR's resource hierarchy."""
    exclusive: bool = True
    """Request whole nodes, so that no other job disturbs the measurements."""
    node_gpus: PositiveInt | None = None
    """GPUs per node, all of which are charged to an exclusive job; null: as SLURM reports."""
    node_cores: PositiveInt | None = None
    """Cores per node, likewise."""
    longest_min: PositiveInt | None = None
    """Longest time limit of a job, in minutes. Runs that share a job are divided among several jobs
    to fit; null: the limit that SLURM reports for the partition (OAR reports none)."""
    ask_memory: bool = True
    """Request memory from SLURM; false if the site allocates memory with the cores."""
    cores_per_gpu: PositiveInt = 1
    """Minimum number of CPU cores to request with each GPU."""
    setup: list[str] = field(default_factory=list[str])
    """Shell commands to run in the job before Python (modules, environment). The job uses the
    Python that submitted it, or the container's."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """The container in which Python runs; none without an image."""
    environment: list[str] = field(
        default_factory=lambda: [
            "PATH",
            "LD_LIBRARY_PATH",
            "PYTHONPATH",
            "VIRTUAL_ENV",
            "DPEVAL_DATA",
        ]
    )
    """Environment variables to pass to the job if the scheduler passes none (OAR)."""
    scratch: str | None = None
    """Folder for the data of sweeps at this site, unless ``$DPEVAL_DATA`` is set. ``$VARIABLES``
    are expanded by the submitting process, or else by the job."""
    interface: str | None = None
    """Network interface between nodes, unless ``hardware.interface`` is set."""
    remote_shell: list[str] = field(default_factory=lambda: ["oarsh"])
    """Command that connects to a node of an OAR job: ``oarsh <node> <command>``."""
    requeue: bool = True
    """Whether the site allows jobs to be requeued."""
    besteffort: bool = False
    """OAR: use idle nodes and release them as soon as another job needs them."""
    startup_s: PositiveFloat = 300.0
    """Time to request in addition to the measured windows, in seconds: start, data, first step."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further options of sbatch or oarsub, by their long names."""


def scratch_folder(site: SiteConfig, environment: Mapping[str, str]) -> str | None:
    """The folder in which sweeps at `site` keep data; None: the same as for local runs.

    Args:
        site: the cluster's settings.
        environment: of this process. A user's ``DPEVAL_DATA`` takes precedence over the site.

    Raises:
        ConfigError: ``site.scratch`` names a variable that is not set.
    """
    if site.scratch is None or environment.get("DPEVAL_DATA"):
        return None

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not environment.get(name):
            raise ConfigError(
                f"site.scratch={site.scratch}: ${name} is not set on this machine; set it, or "
                "set the data folder with DPEVAL_DATA or dataset.root"
            )
        return environment[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, site.scratch)


_SELECT = (
    "name", "partition", "constraint", "gpu_constraint", "gpu_type", "properties", "gpu_properties",
)  # fmt: skip
"""Keys that determine which kind of node a job gets."""
_SELECT_OPTIONS = (
    "partition", "constraint", "gres", "gpus", "gpus_per_node", "gpus_per_task", "nodelist",
    "exclude", "queue", "reservation", "prefer", "p", "w", "C", "x", "G", "l", "q",
)  # fmt: skip
"""The same among the keys of ``hydra/launcher`` and the options of sbatch and oarsub."""


def nodes_asked(site: Mapping[str, object], launcher: Mapping[str, object] | None = None) -> str:
    """The kind of node that a job requests, as text; empty if any node will do.

    Args:
        site: the keys of ``site``, possibly written by an earlier version.
        launcher: the keys of ``hydra/launcher`` that are not among those of `site` already.
    """
    default = {"name": SiteConfig.name}
    asked = {key: site[key] for key in _SELECT if site.get(key) not in (None, default.get(key))}
    given = launcher or {}
    for options in (site.get("options"), given, given.get("additional_parameters")):
        asked |= _selecting(options if isinstance(options, Mapping) else {})
    return json.dumps(asked, sort_keys=True, default=str) if asked else ""


def _selecting(options: Mapping[str, object]) -> dict[str, object]:
    named = {key.replace("-", "_"): value for key, value in options.items()}
    return {key: named[key] for key in _SELECT_OPTIONS if named.get(key) is not None}
