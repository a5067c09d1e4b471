"""The processors and memory of a host, and the hardware and software of a run."""

from __future__ import annotations

from dpeval.util.frozen import Frozen


class Cpu(Frozen):
    """One logical CPU that this process may use."""

    cpu: int
    core: int
    """Physical core; equal for SMT siblings, unique over sockets."""
    socket: int
    numa: int
    efficiency: bool = False
    """Whether this is an efficiency core of a processor with two kinds of cores."""


class Gpu(Frozen):
    """One CUDA GPU."""

    index: int
    name: str
    total_bytes: int
    uuid: str = ""
    numa: int | None = None
    """The NUMA node of its PCI slot; None if unknown."""


class Machine(Frozen):
    """What this process may use of this host."""

    host: str
    cpus: list[Cpu]
    gpus: list[Gpu]
    memory_bytes: int
    """Host memory, or the lowest limit that cgroups set on this process."""
    cpu_quota: float | None = None
    """CPUs' worth of time that cgroups allow this process; None without a limit."""
    gpu_shares: int = 0
    """The number of GPUs that these CPUs can serve if the host's CPUs are divided equally among its
    GPUs. A job with a node to itself may use all CPUs but only the GPUs that it requested."""


class Environment(Frozen):
    """The hardware and software that a run used."""

    host: str
    cpu_model: str
    logical_cpus: int
    """Of the whole host, like cores, sockets and NUMA nodes; `allowed_cpus` counts those of this
    process."""
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
    cpu_quota: float | None = None
    """CPUs' worth of time that cgroups allow; None without a limit."""
    cpu_features: list[str] = []
    """Instruction sets that speed up arithmetic (avx2, avx512_bf16, amx_bf16, sve, …). Virtual
    machines of the same type and CPU model may differ in them, which changes the speed of bf16
    severalfold."""


UNKNOWN_ENVIRONMENT = Environment(
    host="",
    cpu_model="",
    logical_cpus=0,
    physical_cores=0,
    sockets=0,
    numa_nodes=0,
    allowed_cpus=[],
    gpus=[],
    memory_bytes=0,
    kernel="",
    os="",
    python="",
    versions={},
    git_commit=None,
    git_dirty=None,
)
"""Placeholder in a record that lists its environment as missing."""
