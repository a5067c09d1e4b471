"""The keys of ``site``: what a cluster requires of job submissions; not part of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import PositiveFloat, PositiveInt

from dpeval.config.bounds import OneOf


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
    longest_min: PositiveInt | None = None
    """Longest time limit of a job, in minutes: a sweep whose runs share a job is divided to fit.
    null: what SLURM says of the partition; OAR does not say."""
    ask_memory: bool = True
    """Request memory from SLURM; false if the site derives it from the cores."""
    cores_per_gpu: PositiveInt = 1
    """Minimum number of CPU cores to request with each GPU."""
    setup: list[str] = field(default_factory=list[str])
    """Shell lines to run in the job before Python (modules, environment)."""
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
    """Folder for data on the compute nodes; ``$VARIABLES`` are expanded in the job."""
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
