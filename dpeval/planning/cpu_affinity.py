"""Which CPUs each rank gets: physical cores first, NUMA node by node, SMT siblings last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from dpeval.record.machine import Cpu, Machine
from dpeval.record.plan import OVERSUBSCRIBED
from dpeval.util.display.plural import counted
from dpeval.util.frozen import Frozen

LAUNCH_CPUS = 2
"""CPUs of a GPU rank without loader workers: the main thread and autograd's thread, which launch
kernels in turn, share one; the threads of NCCL or gloo and the one that pins batches need
another."""

_UNSEEN = -1
"""Placeholder for the CUDA index of a GPU that this process does not see."""


class Assignment(Frozen):
    """The CPUs of each rank."""

    cpus: list[list[int]]
    """One list per rank; empty if the machine has too few."""
    notes: list[str] = []
    """What makes these ranks slower than ranks that share no cores."""


class GpuRankCpus(Frozen):
    """The CPUs of one GPU rank."""

    launch: list[int]
    """CPUs on which its process launches kernels."""
    loading: list[int]
    """CPUs on which its loader workers run."""


def order_cpus(cpus: Sequence[Cpu]) -> list[Cpu]:
    """The order in which ranks take CPUs.

    First one CPU of every physical core, NUMA node by node, efficiency cores last; then, in the
    same order, the second CPU of every core, and so on.
    """
    seen: Counter[int] = Counter()
    turn: dict[int, int] = {}
    for item in sorted(cpus, key=lambda item: item.cpu):
        turn[item.cpu] = seen[item.core]
        seen[item.core] += 1
    return sorted(
        cpus, key=lambda item: (turn[item.cpu], item.efficiency, item.numa, item.core, item.cpu)
    )


def assign_cpus(
    machine: Machine, ranks: int, cores_per_device: int, *, oversubscribe: bool = False
) -> Assignment:
    """Give every rank `cores_per_device` CPUs that no other rank uses.

    If there are enough cores, no two CPUs are on the same physical core. A rank's CPUs are on one
    NUMA node if a node has enough of them. If SMT siblings must be used, both belong to the same
    rank where possible.

    Args:
        machine: the CPUs that may be used.
        ranks: number of ranks on this machine.
        cores_per_device: CPUs of each rank.
        oversubscribe: once all CPUs are assigned, start again with the first.
    """
    ordered = order_cpus(machine.cpus)
    if ranks * cores_per_device > len(ordered):
        if not oversubscribe or not ordered:
            return Assignment(cpus=[])
        return _oversubscribed(ordered, ranks, cores_per_device)
    shares = _share(ordered, ranks, cores_per_device)
    return Assignment(
        cpus=[[item.cpu for item in share] for share in shares], notes=_notes(machine, shares)
    )


def _oversubscribed(ordered: Sequence[Cpu], ranks: int, cores: int) -> Assignment:
    wanted = ranks * cores
    numbers = [ordered[index % len(ordered)].cpu for index in range(wanted)]
    shares = [sorted(set(numbers[at : at + cores])) for at in range(0, wanted, cores)]
    note = f"{OVERSUBSCRIBED}: {wanted} compute threads share {len(ordered)} logical CPUs"
    return Assignment(cpus=shares, notes=[note])


def _share(ordered: Sequence[Cpu], ranks: int, cores: int) -> list[list[Cpu]]:
    """Assign ranks to NUMA nodes; ranks that fit on no node get the remaining CPUs."""
    firsts = _first_of_cores(ordered)
    pool = firsts if ranks * cores <= len(firsts) else list(ordered)
    nodes: dict[int, list[Cpu]] = {}
    for item in pool:
        nodes.setdefault(item.numa, []).append(item)
    counts = _ranks_per_node(nodes, ranks, cores)
    shares: list[list[Cpu]] = []
    for numa, count in counts.items():
        shares += _share_node(nodes[numa], count, cores)
    taken = set(chain.from_iterable(shares))
    left = [item for item in pool if item not in taken]
    straddling = [left[at : at + cores] for at in range(0, len(left), cores)]
    return shares + straddling[: ranks - len(shares)]


def _ranks_per_node(nodes: dict[int, list[Cpu]], ranks: int, cores: int) -> dict[int, int]:
    """Number of whole ranks on each NUMA node: each rank goes to the first node with enough idle
    cores, or else to the node with the most."""
    counts = dict.fromkeys(nodes, 0)
    physical = {numa: len(_first_of_cores(cpus)) for numa, cpus in nodes.items()}
    for _ in range(ranks):
        idle = {numa: max(0, physical[numa] - counts[numa] * cores) for numa in nodes}
        free = {numa: len(nodes[numa]) - counts[numa] * cores for numa in nodes}
        fitting = [numa for numa in nodes if free[numa] >= cores]
        if not fitting:
            break
        best = max(
            fitting, key=lambda numa: (min(idle[numa], cores), free[numa] * (idle[numa] < cores))
        )
        counts[best] += 1
    return counts


def _share_node(cpus: Sequence[Cpu], ranks: int, cores: int) -> list[list[Cpu]]:
    """Deal whole physical cores to the ranks of one node, then CPUs from each rank's cores."""
    firsts = _first_of_cores(cpus)[: ranks * cores]
    shares: list[list[Cpu]] = []
    for rank in range(ranks):
        begin, end = (len(firsts) * (rank + step) // ranks for step in (0, 1))
        mine = {item.core for item in firsts[begin:end]}
        shares.append([item for item in cpus if item.core in mine][:cores])
    taken = set(chain.from_iterable(shares))
    left = iter([item for item in cpus if item not in taken])
    return [share + [next(left) for _ in range(cores - len(share))] for share in shares]


def _first_of_cores(ordered: Sequence[Cpu]) -> list[Cpu]:
    """The first CPU of every physical core, in order."""
    firsts: dict[int, Cpu] = {}
    for item in ordered:
        firsts.setdefault(item.core, item)
    return list(firsts.values())


def _notes(machine: Machine, shares: Sequence[Sequence[Cpu]]) -> list[str]:
    given = list(chain.from_iterable(shares))
    notes = []
    threads = Counter(item.core for item in given)
    shared = sum(count > 1 for count in threads.values())
    if shared:
        notes.append(
            f"{len(given)} compute threads on {counted(len(threads), 'physical core')}: "
            f"{shared} of them run more than one thread (SMT siblings)"
        )
    for rank, share in enumerate(shares):
        numa = sorted({item.numa for item in share})
        if len(numa) > 1:
            notes.append(f"rank {rank} has cores on NUMA nodes {', '.join(map(str, numa))}")
    slow = sum(item.efficiency for item in given)
    if 0 < slow < len(given):
        notes.append(
            f"{slow} of {len(given)} compute threads run on efficiency cores, which are slower"
        )
    if machine.cpu_quota is not None and machine.cpu_quota < len(given):
        notes.append(
            f"a cgroup quota limits {len(given)} compute threads to the CPU time of "
            f"{machine.cpu_quota:g} CPUs: they will be throttled"
        )
    return notes


def assign_gpu_cpus(
    machine: Machine, indices: Sequence[int], cores_per_device: int | None = None
) -> list[GpuRankCpus]:
    """Divide the CPUs among GPU ranks, and those of each rank between launching and loading.

    Without `cores_per_device`, a rank gets the CPUs that it would get with a rank on every GPU of
    the machine (including GPUs that the job did not request), and all ranks get equally many: a
    baseline on one GPU must not launch and load with the cores of all GPUs.

    The supervisor keeps one CPU if that leaves every rank `cores_per_device` CPUs (by default two).

    Args:
        machine: the CPUs that may be used, and the GPUs.
        indices: CUDA index of each rank's GPU.
        cores_per_device: CPUs of each rank; None: an equal share for each GPU of the machine.

    Returns:
        One entry per rank; empty if some rank would get fewer than `cores_per_device`.
    """
    sharing = list(indices)
    if cores_per_device is None:
        sharing += [gpu.index for gpu in machine.gpus if gpu.index not in indices]
        # The NUMA nodes of CPUs that this process cannot see are unknown.
        sharing += [_UNSEEN] * (machine.gpu_shares - len(sharing))
    kept = len(sharing) * (cores_per_device or 2)
    cpus = machine.cpus
    if len(cpus) > kept:
        supervisor = _supervisor_cpu(machine, sharing)
        cpus = [item for item in cpus if item != supervisor]
    numbered = {item.cpu: item for item in cpus}
    near = cpus_near_gpus(machine.model_copy(update={"cpus": cpus}), sharing)
    shares = [[numbered[cpu] for cpu in share] for share in near]
    if cores_per_device is None:
        shares = _equal(shares)
    elif any(len(share) < cores_per_device for share in shares):
        return []
    return [_split_launch(share[:cores_per_device]) for share in shares[: len(indices)]]


def _equal(shares: Sequence[Sequence[Cpu]]) -> list[list[Cpu]]:
    """`shares` cut down to equal numbers of physical cores and of CPUs."""
    cores = min((len(_first_of_cores(share)) for share in shares), default=0)
    whole = []
    for share in shares:
        kept = {item.core for item in _first_of_cores(share)[:cores]}
        whole.append([item for item in share if item.core in kept])
    least = min((len(share) for share in whole), default=0)
    return [share[:least] for share in whole]


def _supervisor_cpu(machine: Machine, indices: Sequence[int]) -> Cpu:
    """The last CPU, in order, of the NUMA node with the most CPUs per local rank."""
    numa = {gpu.index: gpu.numa for gpu in machine.gpus}
    at_home = Counter(numa.get(index) for index in indices)
    sizes = Counter(item.numa for item in machine.cpus)
    node = max(sizes, key=lambda at: sizes[at] / (at_home[at] + 1))
    return [item for item in order_cpus(machine.cpus) if item.numa == node][-1]


def _split_launch(cpus: Sequence[Cpu]) -> GpuRankCpus:
    """Whole physical cores for launches, but at most half of the rank's CPUs."""
    launch: list[Cpu] = []
    for first in _first_of_cores(cpus):
        if len(launch) < LAUNCH_CPUS:
            launch += [item for item in cpus if item.core == first.core]
    launch = launch[: max(1, len(cpus) // 2)]
    return GpuRankCpus(
        launch=[item.cpu for item in launch],
        loading=[item.cpu for item in cpus if item not in launch],
    )


def cpus_near_gpus(machine: Machine, indices: Sequence[int]) -> list[list[int]]:
    """Divide all CPUs among GPU ranks; each rank's list starts with the CPUs near its GPU.

    Whole physical cores are dealt as evenly as possible: near ones while there are any, then those
    of other NUMA nodes. With fewer cores than ranks, some ranks share a core near their GPU.
    """
    ordered = order_cpus(machine.cpus)
    if not ordered:
        return [[] for _ in indices]
    numa = {gpu.index: gpu.numa for gpu in machine.gpus}
    homes = [numa.get(index) for index in indices]
    claims = Counter(homes)
    free = _first_of_cores(ordered)
    shares: list[list[Cpu]] = [[] for _ in indices]
    while free and shares:
        left = Counter(item.numa for item in free)
        # In every round, ranks whose NUMA node has cores left choose first; the others choose the
        # node with the most cores left per local rank.
        rank = min(range(len(homes)), key=lambda at: (len(shares[at]), homes[at] not in left))
        home = homes[rank] if homes[rank] in left else None
        node = home if home is not None else max(left, key=lambda at: left[at] / (claims[at] + 1))
        core = next(item for item in free if item.numa == node)
        free.remove(core)
        shares[rank].append(core)
    return [
        [item.cpu for item in _whole_cores(ordered, share)]
        or [_nearest(ordered, numa.get(index), rank).cpu]
        for rank, (index, share) in enumerate(zip(indices, shares, strict=True))
    ]


def _whole_cores(ordered: Sequence[Cpu], firsts: Sequence[Cpu]) -> list[Cpu]:
    """All CPUs of the cores of `firsts`, in the same order, siblings last."""
    place = {item.core: at for at, item in enumerate(firsts)}
    own = [item for item in ordered if item.core in place and item not in firsts]
    return [*firsts, *sorted(own, key=lambda item: place[item.core])]


def _nearest(ordered: Sequence[Cpu], numa: int | None, turn: int) -> Cpu:
    near = [item for item in ordered if item.numa == numa] or ordered
    return near[turn % len(near)]
