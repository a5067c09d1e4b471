"""Detect the CPUs, GPUs and memory of this host that this process may use."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from dpeval.record.machine import Cpu, Gpu, Machine
from dpeval.system import cgroups
from dpeval.system.gpu.amd_smi import serial_of
from dpeval.system.procfs import ROOT, read_text
from dpeval.util.cpus import allowed_cpus

_EFFICIENCY_CAPACITY = 0.75
"""A core below this share of the fastest core's capacity is an efficiency core; favoured cores of
one kind exceed the others by only a few percent."""


def detect(gpus: Sequence[Gpu] = (), root: Path = ROOT) -> Machine:
    """Detect what this process may use: CPUs, memory, and `gpus` with their NUMA nodes.

    ``/proc`` and ``/sys`` are read below `root`.
    """
    allowed = allowed_cpus()
    return Machine(
        host=socket.gethostname(),
        cpus=read_cpus(allowed, root),
        gpus=_near(gpus, root),
        memory_bytes=memory_limit(root),
        cpu_quota=cgroups.cpu_quota(root),
        gpu_shares=gpu_shares(len(allowed), root),
    )


def gpu_shares(cpus: int, root: Path = ROOT) -> int:
    """The number of GPUs that `cpus` can serve if the host's CPUs are divided equally among its
    GPUs."""
    online = len(parse_cpu_list(read_text(root / "sys/devices/system/cpu/online")))
    nvidia = len(list((root / "proc/driver/nvidia/gpus").glob("*/information")))
    amd = sum(values.get("simd_count", 0) > 0 for values in _compute_nodes(root))
    return round((nvidia + amd) * cpus / online) if online else 0


def memory_limit(root: Path = ROOT) -> int:
    """The host's memory or the lowest cgroup limit above this process, bytes."""
    return min([int(psutil.virtual_memory().total), *cgroups.memory_limits(root)])


def read_cpus(numbers: Iterable[int], root: Path = ROOT) -> list[Cpu]:
    """Core, socket and NUMA node of these CPUs; without ``/sys``, each counts as a separate
    core."""
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
        # Hardware core numbers restart on every socket, and on some machines on every die. The
        # list of siblings is unique.
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
    """`gpus` with the NUMA node of each, as far as its driver and the PCI bus report it."""
    node_of = _near_amd(gpus, root)
    for entry in (root / "proc/driver/nvidia/gpus").glob("*/information"):
        uuid = re.search(r"GPU UUID:\s*(?:GPU-)?(\S+)", read_text(entry))
        node = _pci_node(entry.parent.name, root)
        if uuid is not None and node is not None:
            node_of[uuid[1].lower()] = node
    return [
        gpu
        if gpu.numa is not None
        else gpu.model_copy(update={"numa": node_of.get(gpu.uuid.lower().removeprefix("gpu-"))})
        for gpu in gpus
    ]


def _near_amd(gpus: Sequence[Gpu], root: Path) -> dict[str, int]:
    """The NUMA nodes of AMD GPUs by UUID, from their compute driver (kfd_topology.c)."""
    node_of_serial: dict[int, int] = {}
    for values in _compute_nodes(root):
        place = values.get("location_id", 0)
        address = f"{values.get('domain', 0):04x}:{place >> 8:02x}:{place >> 3 & 31:02x}"
        node = _pci_node(f"{address}.{place & 7}", root)
        if values.get("unique_id") and node is not None:  # 0: a CPU, or a GPU without a number
            node_of_serial[values["unique_id"]] = node
    serials = {gpu.uuid: serial_of(gpu.uuid) for gpu in gpus}
    return {
        uuid.lower().removeprefix("gpu-"): node_of_serial[int(serial, 16)]
        for uuid, serial in serials.items()
        if serial is not None and int(serial, 16) in node_of_serial
    }


def _compute_nodes(root: Path) -> Iterator[dict[str, int]]:
    """The CPUs and GPUs that AMD's compute driver knows (kfd_topology.c)."""
    for entry in (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
        pairs = (line.split() for line in read_text(entry).splitlines())
        yield {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _pci_node(address: str, root: Path) -> int | None:
    """The NUMA node of the PCI device at `address`; None if the firmware does not report it."""
    node = read_text(root / f"sys/bus/pci/devices/{address}/numa_node").strip()
    return int(node) if node.isdigit() else None  # -1: not reported
