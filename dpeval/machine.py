"""What this host is and in which condition it was while a run measured."""

from __future__ import annotations

from dpeval.schema import Frozen


class Cpu(Frozen):
    """One logical CPU that this process may use."""

    cpu: int
    core: int
    """Physical core; equal for SMT siblings, unique over sockets."""
    socket: int
    numa: int


class Gpu(Frozen):
    """One CUDA GPU."""

    index: int
    name: str
    total_bytes: int
    uuid: str = ""
    numa: int | None = None


class Machine(Frozen):
    """What this process may use of this host."""

    host: str
    cpus: list[Cpu]
    gpus: list[Gpu]
    memory_bytes: int
    """The least of host memory and the limits that cgroups set on this process."""


class Environment(Frozen):
    """Where and with what a run was made."""

    host: str
    cpu_model: str
    logical_cpus: int
    physical_cores: int
    sockets: int
    numa_nodes: int
    allowed_cpus: list[int]
    gpus: list[Gpu]
    memory_bytes: int
    kernel: str
    os: str
    python: str
    versions: dict[str, str]
    """torch, torchvision, numpy, hydra-core, … and cuda, cudnn, nccl where present."""
    git_commit: str | None
    git_dirty: bool | None
    variables: dict[str, str] = {}
    """Environment variables that change speed: OMP_*, MKL_*, GLOO_*, NCCL_*, CUDA_*, …"""


class Conditions(Frozen):
    """Sampled from outside the ranks while they measured."""

    samples: int
    interval_s: float
    cpu_mhz: dict[str, float] = {}
    """Median, min and max over samples of the ranks' cores."""
    steal_share: float | None = None
    foreign_share: dict[str, float] = {}
    """Per CPU of the ranks: share of its time taken by other processes."""
    context_switches_per_s: float | None = None
    major_faults: int | None = None
    load_average: float | None = None
    gpus: dict[str, dict[str, float]] = {}
    """Per GPU: sm_mhz, temperature_c, power_w, throttled_share, foreign_processes."""
    energy_j: float | None = None
    energy_source: str = ""
    unreadable: list[str] = []
    """What this machine does not let be read."""
    bad: list[str] = []
    """Conditions that make the figures suspect, in words."""
