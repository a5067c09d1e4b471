"""From a configuration and a machine to what every rank will do; starts nothing."""

from __future__ import annotations

from typing import Any

from dpeval.config import Config, per_device_batches_of
from dpeval.planning.cpu_affinity import assign_cpus, cpus_near_gpus
from dpeval.record.machine import Machine
from dpeval.record.plan import Plan, RankPlan
from dpeval.util.plural import counted


def make_plan(config: Config, machine: Machine) -> Plan:
    """Decide what every rank does on `machine`, or why the run cannot start there.

    With several nodes, `machine` stands for every node: ranks are dealt to nodes in blocks.
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
            f"global batch {global_batch_size} does not divide by {world_size}: shares are "
            f"{'+'.join(map(str, shares))}, gradients are weighted accordingly"
        )
    return Plan(
        world_size=world_size,
        global_batch_size=global_batch_size,
        backend="nccl" if config.hardware.kind == "gpu" else "gloo",
        ranks=ranks,
        notes=notes,
        skip=lacking,
    )


def _place(
    config: Config, machine: Machine, ranks: int
) -> tuple[list[dict[str, Any]], list[str], str | None]:
    """Device, CPUs and threads of each local rank; notes; what is lacking, if anything."""
    if config.hardware.kind == "gpu":
        return _place_on_gpus(machine, ranks)
    cores = config.hardware.cores_per_device
    assignment = assign_cpus(machine, ranks, cores, oversubscribe=config.hardware.oversubscribe)
    if not assignment.cpus:
        wanted = f"{ranks} x {cores} cores" if cores > 1 else f"{ranks} cores"
        return (
            [],
            [],
            f"{config.num_devices} CPU devices were asked for ({wanted} a node) and {machine.host} "
            f"lets this process use {len(machine.cpus)}; use fewer or hardware.oversubscribe=true",
        )
    taken = {cpu for cpus in assignment.cpus for cpu in cpus}
    spare = [cpu.cpu for cpu in machine.cpus if cpu.cpu not in taken]
    places = [
        {
            "device": "cpu",
            "cpus": cpus,
            "spare_cpus": spare[local::ranks],
            "threads": cores,
        }
        for local, cpus in enumerate(assignment.cpus)
    ]
    return places, list(assignment.notes), None


def _place_on_gpus(
    machine: Machine, ranks: int
) -> tuple[list[dict[str, Any]], list[str], str | None]:
    if len(machine.gpus) < ranks:
        there = f"{len(machine.gpus)} CUDA GPUs" if machine.gpus else "no CUDA GPU"
        return (
            [],
            [],
            f"hardware=gpu num_devices={ranks} asks for {counted(ranks, 'CUDA GPU')} and "
            f"{machine.host} has {there} that this process can use; "
            + ("use fewer" if machine.gpus else "use hardware=cpu"),
        )
    gpus = machine.gpus[:ranks]
    near = cpus_near_gpus(machine, [gpu.index for gpu in gpus])
    places = [
        # One core launches kernels; the rest of the rank's cores decode images.
        {
            "device": f"cuda:{gpu.index}",
            "gpu_uuid": gpu.uuid,
            "cpus": cpus,
            "spare_cpus": cpus[1:],
            "threads": max(1, len(cpus)),
        }
        for gpu, cpus in zip(gpus, near, strict=True)
    ]
    return places, [], None
