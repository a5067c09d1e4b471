"""What this host is: its processors as this process may use them, its memory, its software."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from dpeval import cgroups
from dpeval.kernel_files import ROOT, read_text
from dpeval.record.machine import Cpu, Environment, Gpu, Machine
from dpeval.util.frozen import Frozen

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
    r"^(OMP|GOMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS|NUMEXPR|TBB|GLOO|NCCL|UCX|FI|CUDA|CUBLAS|CUDNN|"
    r"NVIDIA|TORCH|PYTORCH|MALLOC|TCMALLOC|JEMALLOC)_|^(LD_PRELOAD|GLIBC_TUNABLES|PYTHONMALLOC)$"
)
_GIT_TIMEOUT_S = 5.0
_EFFICIENCY_CAPACITY = 0.75
"""A core with less than this share of the fastest core's capacity is of a slower kind; what
favoured cores of one kind have above the others is a few per cent."""


def detect(gpus: Sequence[Gpu] = (), root: Path = ROOT) -> Machine:
    """Find what this process may use: its CPUs, its memory, `gpus` and the nodes they are near.

    `root` is the file system that ``/proc`` and ``/sys`` are read from.
    """
    return Machine(
        host=socket.gethostname(),
        cpus=read_cpus(allowed_cpus(), root),
        gpus=_near(gpus, root),
        memory_bytes=memory_limit(root),
        cpu_quota=cgroups.cpu_quota(root),
    )


def allowed_cpus() -> list[int]:
    """The logical CPUs that the scheduler, container or user left to this process."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def memory_limit(root: Path = ROOT) -> int:
    """The least of the host's memory and the cgroup limits above this process, bytes."""
    return min([int(psutil.virtual_memory().total), *cgroups.memory_limits(root)])


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


def read_cpus(numbers: Iterable[int], root: Path = ROOT) -> list[Cpu]:
    """Where these CPUs sit; each is a core of its own where ``/sys`` does not tell."""
    system = root / "sys/devices/system"
    node_of = {
        cpu: int(folder.name.removeprefix("node"))
        for folder in (system / "node").glob("node[0-9]*")
        for cpu in parse_cpu_list(read_text(folder / "cpulist"))
    }
    numbers = sorted(numbers)
    slow = _efficiency_cores(numbers, root)
    core_of: dict[int, int] = {}
    socket_of: dict[int, int] = {}
    for number in numbers:
        if number in core_of:
            continue
        folder = system / f"cpu/cpu{number}/topology"
        # Core numbers are those of the hardware: they start anew on every socket, and on some
        # machines on every die. The list of siblings is unique.
        siblings = read_text(folder / "core_cpus_list") or read_text(
            folder / "thread_siblings_list"
        )
        package = read_text(folder / "physical_package_id").strip()
        for sibling in {number, *parse_cpu_list(siblings)}:
            core_of[sibling] = number
            socket_of[sibling] = int(package) if package.isdigit() else 0
    return [
        Cpu(
            cpu=number,
            core=core_of[number],
            socket=socket_of[number],
            numa=node_of.get(number, socket_of[number]),
            efficiency=number in slow,
        )
        for number in numbers
    ]


def _efficiency_cores(numbers: Sequence[int], root: Path) -> set[int]:
    atoms = parse_cpu_list(read_text(root / "sys/devices/cpu_atom/cpus"))
    if atoms:
        return set(atoms)
    folder = root / "sys/devices/system/cpu"
    words = {cpu: read_text(folder / f"cpu{cpu}/cpu_capacity").strip() for cpu in numbers}
    capacity = {cpu: int(word) for cpu, word in words.items() if word.isdigit()}
    least = _EFFICIENCY_CAPACITY * max(capacity.values(), default=0)
    return {cpu for cpu, value in capacity.items() if value < least}


def parse_cpu_list(text: str) -> list[int]:
    """The numbers in the kernel's list format.

    >>> parse_cpu_list("0-2,8")
    [0, 1, 2, 8]
    """
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _near(gpus: Sequence[Gpu], root: Path) -> list[Gpu]:
    """`gpus` with the NUMA node of each, as far as NVIDIA's driver and the PCI bus tell."""
    node_of: dict[str, int] = {}
    for entry in (root / "proc/driver/nvidia/gpus").glob("*/information"):
        uuid = re.search(r"GPU UUID:\s*(?:GPU-)?(\S+)", read_text(entry))
        node = read_text(root / f"sys/bus/pci/devices/{entry.parent.name}/numa_node").strip()
        if uuid is not None and node.isdigit():  # -1: the firmware does not tell
            node_of[uuid[1].lower()] = int(node)
    return [
        gpu
        if gpu.numa is not None
        else gpu.model_copy(update={"numa": node_of.get(gpu.uuid.lower().removeprefix("gpu-"))})
        for gpu in gpus
    ]


def environment(
    machine: Machine, extra_versions: Mapping[str, str] | None = None, root: Path = ROOT
) -> Environment:
    """Where and with what a run is made; `extra_versions` are those that only a library tells."""
    online = parse_cpu_list(read_text(root / "sys/devices/system/cpu/online"))
    host = read_cpus(online, root) or machine.cpus
    commit, dirty = git_state(Path(__file__).resolve().parent)
    return Environment(
        host=machine.host,
        cpu_model=_cpu_model(root),
        logical_cpus=len(host),
        physical_cores=len({cpu.core for cpu in host}),
        sockets=len({cpu.socket for cpu in host}),
        numa_nodes=len({cpu.numa for cpu in host}),
        allowed_cpus=[cpu.cpu for cpu in machine.cpus],
        gpus=machine.gpus,
        memory_bytes=machine.memory_bytes,
        kernel=platform.release(),
        os=platform.platform(),
        python=platform.python_version(),
        versions={**_versions(), **(extra_versions or {})},
        git_commit=commit,
        git_dirty=dirty,
        variables={
            name: value for name, value in sorted(os.environ.items()) if SPEED_VARIABLES.match(name)
        },
        cpu_quota=machine.cpu_quota,
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model(root: Path) -> str:
    text = read_text(root / "proc/cpuinfo")
    found = re.search(r"^(?:model name|cpu model|cpu)\s*:\s*(.*\S)", text, re.M)
    if found is not None:
        return found[1]
    arm = re.search(r"^CPU implementer\s*:\s*(\w+)[\s\S]*?^CPU part\s*:\s*(\w+)", text, re.M)
    if arm is not None:
        return f"{platform.machine()} (implementer {arm[1]}, part {arm[2]})"
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks `folder` and whether tracked files differ from it.

    (None, None) where there is no git, no commit, or a checkout around `folder` that does not
    track it, as around an installed package: such a commit says nothing of it.
    """
    status_of = ("status", "--porcelain=v2", "--branch", "--untracked-files=no")
    try:
        with _git(folder, "ls-files", "--", ".") as tracked, _git(folder, *status_of) as status:
            try:
                files, _ = tracked.communicate(timeout=_GIT_TIMEOUT_S)
                lines, _ = status.communicate(timeout=_GIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                tracked.kill()
                status.kill()
                return None, None
    except OSError:
        return None, None
    commit = re.search(r"^# branch.oid ([0-9a-f]+)$", lines, re.M)
    if not files or commit is None:
        return None, None
    return commit[1], any(not line.startswith("#") for line in lines.splitlines())


def _git(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # A hook's variables would point to another checkout, and a status that takes a lock could
    # make a commit fail that somebody makes at the same time.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.Popen(
        ["git", "-C", str(folder), *arguments],
        env={**clean, "GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
