"""The keys of ``site``: what a cluster requires of job submissions; not part of a run."""

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
    """A file or an address that the launcher knows; null: no container."""
    launcher: Annotated[str, OneOf("apptainer", "singularity", "pyxis")] = "apptainer"
    """Program that starts it; ``pyxis`` is SLURM's plugin for Enroot."""
    binds: list[str] = field(default_factory=list[str])
    """Folders to show in it, ``outside:inside``, beside the sweep's folder, the working directory
    and ``$DPEVAL_DATA``."""
    arguments: list[str] = field(default_factory=list[str])
    """More arguments of ``apptainer exec``, or of srun for Pyxis."""
    python: str = "python3"
    """Its Python, which can import dpeval."""


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
    """Type in SLURM's GPU request (``a100``); OAR: see `gpu_properties`."""
    properties: str | None = None
    """OAR ``-p`` expression of every job."""
    gpu_properties: str | None = None
    """OAR ``-p`` expression added for jobs with GPUs; ``{gpus}`` is their number per node."""
    memory_properties: str | None = None
    """OAR ``-p`` expression added if memory was forecast; ``{mib}`` is MiB per node."""
    gpu_level: str = "gpu"
    """Name of the GPU in OAR's resource hierarchy."""
    exclusive: bool = True
    """Request whole nodes, so that no other job disturbs the measurement."""
    node_gpus: PositiveInt | None = None
    """GPUs of a node, all of which an exclusive job is charged; null: what SLURM says."""
    node_cores: PositiveInt | None = None
    """Cores of a node, likewise."""
    longest_min: PositiveInt | None = None
    """Longest time limit of a job, in minutes: a sweep whose runs share a job is divided to fit.
    null: what SLURM says of the partition; OAR does not say."""
    ask_memory: bool = True
    """Request memory from SLURM; false if the site derives it from the cores."""
    cores_per_gpu: PositiveInt = 1
    """Minimum number of CPU cores to request with each GPU."""
    setup: list[str] = field(default_factory=list[str])
    """Shell lines to run in the job before Python (modules, environment). The job's Python is the
    one that submitted it, or the container's."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """The container in which Python runs; without an image, none."""
    environment: list[str] = field(
        default_factory=lambda: [
            "PATH",
            "LD_LIBRARY_PATH",
            "PYTHONPATH",
            "VIRTUAL_ENV",
            "DPEVAL_DATA",
        ]
    )
    """Variables to pass to the job if the scheduler passes none (OAR)."""
    scratch: str | None = None
    """Folder for the data of sweeps submitted here, unless ``$DPEVAL_DATA`` is set; ``$VARIABLES``
    are expanded by the submitting process, or else by the job."""
    interface: str | None = None
    """Network interface between nodes, unless ``hardware.interface`` is set."""
    remote_shell: list[str] = field(default_factory=lambda: ["oarsh"])
    """Command that runs another one on a node of an OAR job: ``oarsh <node> <command>``."""
    requeue: bool = True
    """Whether the site allows jobs to be requeued."""
    besteffort: bool = False
    """OAR: use idle nodes, and release them as soon as another job needs them."""
    startup_s: PositiveFloat = 300.0
    """Time to request beyond the measured windows, in seconds: start, data, first step."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """More options of sbatch or oarsub, by their long names."""


def scratch_folder(site: SiteConfig, environment: Mapping[str, str]) -> str | None:
    """The folder in which sweeps at `site` keep data; None: that of every other run.

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
                f"site.scratch={site.scratch} names ${name}, which is not set here; set it, or "
                "name the folder for data with DPEVAL_DATA or dataset.root"
            )
        return environment[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, site.scratch)


_SELECT = (
    "name", "partition", "constraint", "gpu_constraint", "gpu_type", "properties", "gpu_properties",
)  # fmt: skip
"""Keys that decide which kind of node a job gets."""


def nodes_asked(site: Mapping[str, object]) -> str:
    """The kind of nodes that `site` asks for, as text; empty if any will do.

    Args:
        site: the keys of ``site``, also of an earlier version.
    """
    default = {"name": SiteConfig.name}
    asked = {key: site[key] for key in _SELECT if site.get(key) not in (None, default.get(key))}
    return json.dumps(asked, sort_keys=True) if asked else ""
