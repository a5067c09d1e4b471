"""What this host is: its processors as this process may use them, its memory, its software."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from dpeval.schema import Frozen

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "hydra-core",
    "omegaconf",
    "submitit",
    "dpeval",
)
SPEED_VARIABLES = re.compile(
    r"^(OMP|MKL|KMP|GLOO|NCCL|CUDA|CUBLAS|TORCH|PYTORCH|DNNL|ONEDNN|OPENBLAS|LD_PRELOAD|MALLOC)"
)


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


class Assignment(Frozen):
    """The CPUs of each rank, or why there are not enough."""

    cpus: list[list[int]]
    """One list per rank; empty where the machine has too few."""
    notes: list[str] = []


def detect(gpus: Sequence[Gpu] = (), sysfs: Path = Path("/sys")) -> Machine:
    """Find what this process may use: its cpuset (affinity), its memory limits, `gpus`."""
    allowed = allowed_cpus()
    return Machine(
        host=socket.gethostname(),
        cpus=[_cpu(number, sysfs) for number in allowed],
        gpus=list(gpus),
        memory_bytes=memory_limit(sysfs),
    )


def allowed_cpus() -> list[int]:
    """The logical CPUs that the scheduler, container or user left to this process."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu(number: int, sysfs: Path) -> Cpu:
    folder = sysfs / f"devices/system/cpu/cpu{number}"
    socket_id = _read_int(folder / "topology/physical_package_id", 0)
    core_id = _read_int(folder / "topology/core_id", number)
    nodes = [item.name for item in folder.glob("node[0-9]*")]
    return Cpu(
        cpu=number,
        # Core numbers start anew on every socket.
        core=socket_id * 100_000 + core_id,
        socket=socket_id,
        numa=int(nodes[0].removeprefix("node")) if nodes else socket_id,
    )


def _read_int(path: Path, default: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return default


def memory_limit(sysfs: Path = Path("/sys")) -> int:
    """The least of the host's memory and the cgroup limits (v1, v2) above this process, bytes."""
    limits = [psutil.virtual_memory().total]
    for folder in cgroup_folders(sysfs):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read_int(folder / name, 0)
            if limit > 0:
                limits.append(limit)
    return min(limits)


class Resident(Frozen):
    """Memory that a process holds and the kernel cannot take back."""

    now_bytes: int
    peak_bytes: int


def resident(pid: int | str = "self", proc: Path = Path("/proc")) -> Resident | None:
    """What a process holds without pages of files (proc(5), status); None where it cannot be read.

    Pages of libraries and of a mapped cache of pixels are the host's file cache: processes
    share them and the kernel drops them before it refuses memory to anyone. They may have come
    after the peak, which is then told too low by what came.
    """
    try:
        text = (proc / str(pid) / "status").read_text()
    except OSError:
        return None
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    if "VmHWM" not in sizes or "RssFile" not in sizes:
        return None
    now = sizes["VmRSS"] - sizes["RssFile"]
    return Resident(now_bytes=now, peak_bytes=max(now, sizes["VmHWM"] - sizes["RssFile"]))


def cgroup_folders(sysfs: Path = Path("/sys")) -> list[Path]:
    """The memory cgroup of this process and all above it, v1 and v2, innermost first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = sysfs / "fs/cgroup"
        elif "memory" in controllers.split(","):
            base = sysfs / "fs/cgroup/memory"
        else:
            continue
        inner = base / path.strip("/")
        folders += [inner, *(above for above in inner.parents if above.is_relative_to(base))]
    return folders


def order_cpus(cpus: Sequence[Cpu]) -> list[Cpu]:
    """The order in which ranks take CPUs: one per physical core, NUMA node by node; SMT last."""
    seen: dict[int, int] = {}
    sibling: dict[int, int] = {}
    for item in sorted(cpus, key=lambda item: item.cpu):
        sibling[item.cpu] = seen.get(item.core, 0)
        seen[item.core] = sibling[item.cpu] + 1
    return sorted(cpus, key=lambda item: (sibling[item.cpu], item.numa, item.core, item.cpu))


def assign_cpus(
    machine: Machine, ranks: int, cores_per_device: int, *, oversubscribe: bool = False
) -> Assignment:
    """Give every rank its own `cores_per_device` CPUs, physical cores first.

    A rank's cores lie on one NUMA node where the nodes are large enough. With `oversubscribe`,
    CPUs are dealt out again from the first when they are used up.
    """
    ordered = order_cpus(machine.cpus)
    wanted = ranks * cores_per_device
    if wanted > len(ordered):
        if not oversubscribe or not ordered:
            return Assignment(cpus=[])
        numbers = [ordered[index % len(ordered)].cpu for index in range(wanted)]
        shares = [
            sorted(set(numbers[rank * cores_per_device : (rank + 1) * cores_per_device]))
            for rank in range(ranks)
        ]
        note = f"oversubscribed: {wanted} compute threads share {len(ordered)} logical CPUs"
        return Assignment(cpus=shares, notes=[note])
    physical = len({item.core for item in ordered})
    notes = []
    if wanted > physical:
        notes.append(
            f"{wanted} compute threads on {physical} physical cores: some ranks share a core with "
            "another (SMT siblings)"
        )
    shares = _by_numa(ordered[: max(wanted, physical)], ranks, cores_per_device)
    return Assignment(cpus=shares, notes=notes)


def _by_numa(ordered: Sequence[Cpu], ranks: int, cores: int) -> list[list[int]]:
    """Whole ranks from one NUMA node each while that works, the rest from what is left over."""
    nodes: dict[int, list[int]] = {}
    for item in ordered:
        nodes.setdefault(item.numa, []).append(item.cpu)
    shares: list[list[int]] = []
    for free in nodes.values():
        while len(free) >= cores and len(shares) < ranks:
            shares.append([free.pop(0) for _ in range(cores)])
    left = [cpu for free in nodes.values() for cpu in free]
    while len(shares) < ranks:
        shares.append([left.pop(0) for _ in range(cores)])
    return shares


def cpus_near_gpus(machine: Machine, indices: Sequence[int]) -> list[list[int]]:
    """Share the CPUs out among GPU ranks: evenly, and near each GPU where that is known."""
    ordered = order_cpus(machine.cpus)
    if not ordered:
        return [[] for _ in indices]
    numa = {gpu.index: gpu.numa for gpu in machine.gpus}
    near: dict[int, list[int]] = {index: [] for index in indices}
    for node in sorted({cpu.numa for cpu in ordered}):
        here = [index for index in indices if numa.get(index) == node]
        cpus = [cpu.cpu for cpu in ordered if cpu.numa == node]
        # GPUs whose place is unknown, and CPUs that no GPU is near to, are dealt out evenly.
        takers = here or [index for index in indices if numa.get(index) is None] or list(indices)
        for position, cpu in enumerate(cpus):
            near[takers[position % len(takers)]].append(cpu)
    spare = [cpu.cpu for cpu in ordered]
    return [sorted(near[index]) or [spare[rank % len(spare)]] for rank, index in enumerate(indices)]


def environment(
    machine: Machine, extra_versions: Mapping[str, str] | None = None, proc: Path = Path("/proc")
) -> Environment:
    """Where and with what a run is made."""
    versions = dict(extra_versions or {})
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit, dirty = git_state(Path(__file__).resolve().parent)
    return Environment(
        host=machine.host,
        cpu_model=_cpu_model(proc),
        logical_cpus=os.cpu_count() or len(machine.cpus),
        physical_cores=len({cpu.core for cpu in machine.cpus}),
        sockets=len({cpu.socket for cpu in machine.cpus}),
        numa_nodes=len({cpu.numa for cpu in machine.cpus}),
        allowed_cpus=[cpu.cpu for cpu in machine.cpus],
        gpus=machine.gpus,
        memory_bytes=machine.memory_bytes,
        kernel=platform.release(),
        os=platform.platform(),
        python=platform.python_version(),
        versions=versions,
        git_commit=commit,
        git_dirty=dirty,
        variables={
            name: value for name, value in sorted(os.environ.items()) if SPEED_VARIABLES.match(name)
        },
    )


def _cpu_model(proc: Path) -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", (proc / "cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that holds `folder` and whether it differs from it.

    (None, None) where there is no git or no checkout, as for an installed package.
    """
    try:
        if not _git(folder, "ls-files", "machine.py").strip():
            # An environment inside somebody else's checkout: that commit says nothing of dpeval.
            return None, None
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=5,
        check=True,
    )
    return done.stdout
