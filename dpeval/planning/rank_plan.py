"""Plans what every rank does, from a configuration and a machine; starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpeval.config import Config, per_device_batches_of
from dpeval.planning.cpu_affinity import assign_cpus, assign_gpu_cpus
from dpeval.record.machine import Machine
from dpeval.record.plan import OVERSUBSCRIBED, Plan, RankPlan
from dpeval.util.display.plural import counted


def make_plan(config: Config, machine: Machine) -> Plan:
    """Decide what every rank does on `machine`, or why the run cannot start there.

    With several nodes, `machine` describes each of them, and each runs an equal block of ranks.
    """
    world_size = config.num_devices
    shares = per_device_batches_of(config)
    global_batch_size = sum(shares)
    local_ranks = world_size // config.num_nodes
    places, notes, lacking = _place(config, machine, local_ranks)
    ranks = [
        RankPlan(
            rank=rank,
            node=rank // local_ranks,
            local_rank=rank % local_ranks,
            per_device_batch_size=shares[rank],
            weight=shares[rank] / global_batch_size,
            **places[rank % local_ranks],
        )
        for rank in range(world_size if places else 0)
    ]
    if len(set(shares)) > 1:
        notes.append(
            f"global batch {global_batch_size} does not divide evenly by {world_size}: per-device "
            f"batches are {'+'.join(map(str, shares))}, and gradients are weighted accordingly"
        )
    return Plan(
        world_size=world_size,
        global_batch_size=global_batch_size,
        backend=backend(config, machine),
        ranks=ranks,
        notes=notes,
        skip=lacking,
    )


def backend(config: Config, machine: Machine) -> str:
    """The backend of ``torch.distributed`` that the ranks of `config` would use on `machine`.

    NCCL before 2.30 refuses two ranks on one GPU, so gloo replaces it there.
    """
    if config.hardware.kind != "gpu" or _ranks_share_gpus(config, machine):
        return "gloo"
    return "nccl"


def _ranks_share_gpus(config: Config, machine: Machine) -> bool:
    local_ranks = config.num_devices // config.num_nodes
    return config.hardware.oversubscribe and 0 < len(machine.gpus) < local_ranks


def _place(
    config: Config, machine: Machine, ranks: int
) -> tuple[list[dict[str, Any]], list[str], str | None]:
    """Device, CPUs and threads of each local rank; notes; and what the machine lacks, if
    anything."""
    if config.hardware.kind == "gpu":
        return _place_on_gpus(config, machine, ranks)
    cores = config.hardware.compute_threads
    assignment = assign_cpus(machine, ranks, cores, oversubscribe=config.hardware.oversubscribe)
    if not assignment.cpus:
        wanted = f"{ranks} x {cores} cores" if cores > 1 else counted(ranks, "core")
        return (
            [],
            [],
            f"num_devices={config.num_devices} needs {wanted} per node, but this process may use "
            f"{len(machine.cpus)} on {machine.host}; use fewer or hardware.oversubscribe=true",
        )
    workers = config.dataset.workers or 0
    loading = _loading_cpus(machine, assignment.cpus, workers)
    places = [
        {"device": "cpu", "cpus": cpus, "spare_cpus": own, "threads": cores}
        for cpus, own in zip(assignment.cpus, loading, strict=True)
    ]
    notes = list(assignment.notes)
    fewest = min(map(len, loading))
    if fewest < workers:
        there = counted(fewest, "core") if fewest else "no core"
        notes.append(
            f"dataset.workers={workers}, but each rank has {there} for them; runs with fewer ranks "
            "may load with more, which makes their speedup base too fast"
        )
    return places, notes, None


def _loading_cpus(
    machine: Machine, computing: Sequence[list[int]], workers: int
) -> list[list[int]]:
    """CPUs for the loader workers of each rank, none of which computes.

    As many as ``dataset.workers`` asks for, however many ranks there are. A rank that took whatever
    is idle would load with all other cores where it is alone, and with none where a rank runs on
    every core: a speedup would then compare machines of different size.
    """
    taken = {cpu for cpus in computing for cpu in cpus}
    idle = [cpu.cpu for cpu in machine.cpus if cpu.cpu not in taken]
    return [idle[rank :: len(computing)][:workers] for rank in range(len(computing))]


def _place_on_gpus(
    config: Config, machine: Machine, ranks: int
) -> tuple[list[dict[str, Any]], list[str], str | None]:
    is_shared = _ranks_share_gpus(config, machine)
    if len(machine.gpus) < ranks and not is_shared:
        there = counted(len(machine.gpus), "CUDA GPU") if machine.gpus else "no CUDA GPU"
        return (
            [],
            [],
            f"hardware=gpu num_devices={ranks} needs {counted(ranks, 'CUDA GPU')}, but "
            f"{machine.host} has {there} that this process can use; "
            + ("use fewer or hardware.oversubscribe=true" if machine.gpus else "use hardware=cpu"),
        )
    gpus = [machine.gpus[local % len(machine.gpus)] for local in range(ranks)]
    cores = config.hardware.cores_per_device
    assignment = assign_gpu_cpus(machine, [gpu.index for gpu in gpus], cores)
    if not assignment:
        return (
            [],
            [],
            f"hardware.cores_per_device={cores} num_devices={config.num_devices} needs {ranks} x "
            f"{cores} cores per node, but this process may use {len(machine.cpus)} on "
            f"{machine.host}; use fewer or hardware.cores_per_device=null",
        )
    places = [
        {
            "device": f"cuda:{gpu.index}",
            "gpu_uuid": gpu.uuid,
            "cpus": own.launch,
            "spare_cpus": own.loading,
            "threads": max(1, len(own.launch)),
        }
        for gpu, own in zip(gpus, assignment, strict=True)
    ]
    note = (
        f"{OVERSUBSCRIBED}: {ranks} ranks share {counted(len(machine.gpus), 'GPU')}; they "
        "communicate through gloo and host memory instead of NCCL"
    )
    return places, [note] if is_shared else [], None
