"""What a cluster wants to be told; no part of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import PositiveFloat, PositiveInt

from dpeval.config.bounds import OneOf


@dataclass(frozen=True)
class SiteConfig:
    """What a cluster wants to be told beyond what each run needs; says nothing about a run."""

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
    """How SLURM is asked for GPUs here."""
    gpu_type: str | None = None
    """Type in SLURM's GPU request (``a100``); OAR: see `gpu_properties`."""
    properties: str | None = None
    """OAR ``-p`` expression of every job."""
    gpu_properties: str | None = None
    """OAR ``-p`` expression added for jobs with GPUs; ``{gpus}`` is their number per node."""
    memory_properties: str | None = None
    """OAR ``-p`` expression added where memory is forecast; ``{mib}`` is MiB per node."""
    gpu_level: str = "gpu"
    """Name of the GPU in OAR's resource hierarchy."""
    exclusive: bool = True
    """Ask for whole nodes: nobody else's work disturbs what is measured."""
    ask_memory: bool = True
    """Ask SLURM for memory; false where the site derives it from the cores."""
    cores_per_gpu: PositiveInt = 1
    """Least number of CPU cores to ask for with every GPU."""
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
    """Variables carried into the job where the scheduler carries none (OAR)."""
    scratch: str | None = None
    """Folder for data on the compute nodes; ``$VARIABLES`` are those of the job."""
    interface: str | None = None
    """Network interface between nodes, where ``hardware.interface`` does not say."""
    remote_shell: list[str] = field(default_factory=lambda: ["oarsh"])
    """Command that runs another on a further node of an OAR job: ``oarsh <node> <command>``."""
    requeue: bool = True
    """The site lets a job go back to the queue."""
    besteffort: bool = False
    """OAR: take nodes that nobody else wants, and give them back when somebody does."""
    startup_s: PositiveFloat = 300.0
    """Time asked for beyond the measured windows: start, data, first step."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further options of sbatch or oarsub by their long names."""
