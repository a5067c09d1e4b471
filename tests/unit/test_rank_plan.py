"""Shares, weights, places: what the plan assigns to every rank."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.commands.hydra_app import compose
from dpeval.config import split_evenly
from dpeval.planning.cpu_affinity import assign_cpus, cpus_near_gpus, order_cpus
from dpeval.planning.rank_plan import make_plan
from dpeval.record.machine import Cpu, Gpu, Machine
from dpeval.run.execute import used_gpus
from dpeval.system.gpu.reader import UsedGpu


def machine(cores: int = 4, *, smt: int = 1, numa: int = 1, gpus: int = 0) -> Machine:
    """Numbered as Linux does: first one thread of every core, then their siblings."""
    cpus = [
        Cpu(
            cpu=sibling * cores + core,
            core=core,
            socket=core * numa // cores,
            numa=core * numa // cores,
        )
        for sibling in range(smt)
        for core in range(cores)
    ]
    found = [Gpu(index=i, name="GPU", total_bytes=2**34, numa=i % numa) for i in range(gpus)]
    return Machine(host="host", cpus=cpus, gpus=found, memory_bytes=2**34)


def test_a_batch_that_does_not_divide_is_dealt_out_evenly() -> None:
    assert split_evenly(16, 3) == [6, 5, 5]


@given(images=st.integers(1, 10_000), devices=st.integers(1, 64))
def test_deal_loses_no_image_and_differs_by_at_most_one(images: int, devices: int) -> None:
    shares = split_evenly(images, devices)
    assert sum(shares) == images
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_strong_scaling_keeps_the_work_and_weak_scaling_the_share() -> None:
    strong = make_plan(compose(["num_devices=3", "batch=16"]), machine())
    assert [rank.per_device_batch_size for rank in strong.ranks] == [6, 5, 5]
    assert sum(rank.weight for rank in strong.ranks) == pytest.approx(1)
    weak = make_plan(compose(["num_devices=3", "batch=16", "scaling=weak"]), machine())
    assert (weak.global_batch_size, [rank.per_device_batch_size for rank in weak.ranks]) == (
        48,
        [16, 16, 16],
    )


def test_too_few_cores_is_a_skip_with_the_reason() -> None:
    plan = make_plan(compose(["num_devices=5"]), machine(4))
    assert plan.skip is not None
    assert "num_devices=5 needs 5 cores per node" in plan.skip
    assert "hardware.oversubscribe=true" in plan.skip
    assert plan.ranks == []


def test_oversubscribing_is_said() -> None:
    plan = make_plan(compose(["num_devices=5", "hardware.oversubscribe=true"]), machine(4))
    assert plan.skip is None
    assert plan.is_oversubscribed


def test_no_gpu_names_the_way_on() -> None:
    plan = make_plan(compose(["hardware=gpu"]), machine())
    assert plan.skip is not None
    assert "use hardware=cpu" in plan.skip


def test_gpus_share_the_cores_near_them() -> None:
    plan = make_plan(compose(["hardware=gpu", "num_devices=2"]), machine(8, numa=2, gpus=2))
    assert plan.backend == "nccl"
    assert [rank.device for rank in plan.ranks] == ["cuda:0", "cuda:1"]
    # CPU 3 is left to the supervisor, so three are for each rank: one launches, the others load.
    assert [rank.cpus for rank in plan.ranks] == [[0], [4]]
    assert [rank.spare_cpus for rank in plan.ranks] == [[1, 2], [5, 6]]
    assert [rank.threads for rank in plan.ranks] == [1, 1]


def test_cores_per_device_limits_a_gpu_rank() -> None:
    asked = ["hardware=gpu", "num_devices=2", "hardware.cores_per_device=4"]
    plan = make_plan(compose(asked), machine(16, gpus=2))
    assert [len(rank.cpus) for rank in plan.ranks] == [2, 2]
    assert [len(rank.spare_cpus) for rank in plan.ranks] == [2, 2]
    lacking = make_plan(compose(asked), machine(6, gpus=2))
    assert lacking.skip is not None
    assert "needs 2 x 4 cores per node, but this process may use 6" in lacking.skip
    # Eight are enough, if only the supervisor goes without.
    assert make_plan(compose(asked), machine(8, gpus=2)).skip is None


def test_too_few_gpus_name_the_way_on() -> None:
    plan = make_plan(compose(["hardware=gpu", "num_devices=2"]), machine(gpus=1))
    assert plan.skip is not None
    assert plan.skip.endswith("use fewer or hardware.oversubscribe=true")


def test_ranks_share_gpus_in_turn_and_communicate_through_gloo() -> None:
    asked = ["hardware=gpu", "num_devices=5", "batch=16", "hardware.oversubscribe=true"]
    plan = make_plan(compose(asked), machine(16, gpus=2))
    assert plan.skip is None
    assert plan.backend == "gloo"
    assert [rank.device for rank in plan.ranks] == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]
    assert plan.is_oversubscribed
    assert "5 ranks share 2 GPUs" in plan.notes[0]
    assert "gloo" in plan.notes[0]
    cpus = [cpu for rank in plan.ranks for cpu in rank.cpus]
    assert len(cpus) == len(set(cpus))


def test_oversubscribing_changes_nothing_where_gpus_suffice() -> None:
    here = machine(8, numa=2, gpus=2)
    asked = ["hardware=gpu", "num_devices=2"]
    shared = make_plan(compose([*asked, "hardware.oversubscribe=true"]), here)
    assert shared == make_plan(compose(asked), here)


def test_gpus_are_counted_per_node() -> None:
    asked = ["hardware=gpu", "num_devices=4", "num_nodes=2", "hardware.oversubscribe=true"]
    assert make_plan(compose(asked), machine(8, gpus=2)).backend == "nccl"
    assert make_plan(compose(asked), machine(8, gpus=1)).backend == "gloo"


def test_no_gpu_cannot_be_shared() -> None:
    plan = make_plan(compose(["hardware=gpu", "hardware.oversubscribe=true"]), machine())
    assert plan.skip is not None
    assert "use hardware=cpu" in plan.skip


def test_the_sampler_knows_every_rank_of_a_shared_gpu() -> None:
    asked = ["hardware=gpu", "num_devices=3", "batch=6", "hardware.oversubscribe=true"]
    here = machine(8, gpus=2)
    here = here.model_copy(
        update={"gpus": [gpu.model_copy(update={"uuid": f"u{gpu.index}"}) for gpu in here.gpus]}
    )
    plan = make_plan(compose(asked), here)
    assert used_gpus(plan.ranks, {0: 100, 1: 101, 2: 102}) == {
        0: UsedGpu("u0", [100, 102]),
        1: UsedGpu("u1", [101]),
    }


TOPOLOGIES = st.builds(
    machine,
    st.integers(1, 16),
    smt=st.integers(1, 2),
    numa=st.integers(1, 4),
    gpus=st.integers(1, 4),
)


@given(here=TOPOLOGIES, data=st.data())
def test_no_cpu_is_used_twice_and_none_outside_the_cpuset(
    here: Machine, data: st.DataObject
) -> None:
    allowed = data.draw(st.lists(st.sampled_from(here.cpus), min_size=1, unique=True))
    here = here.model_copy(update={"cpus": allowed})
    ranks, cores = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    given_out = [cpu for cpus in assign_cpus(here, ranks, cores).cpus for cpu in cpus]
    if ranks * cores > len(allowed):
        assert given_out == []
        return
    assert len(given_out) == len(set(given_out)) == ranks * cores
    assert set(given_out) <= {cpu.cpu for cpu in allowed}


@given(here=TOPOLOGIES)
def test_siblings_come_last(here: Machine) -> None:
    cores = [cpu.core for cpu in order_cpus(here.cpus)]
    physical = len(set(cores))
    assert len(set(cores[:physical])) == physical


@given(here=TOPOLOGIES)
def test_every_gpu_rank_has_cpus_and_they_are_shared_out_once(here: Machine) -> None:
    near = cpus_near_gpus(here, [gpu.index for gpu in here.gpus])
    assert all(near)
    if len(here.cpus) >= 2 * len(here.gpus) * 4:
        flat = [cpu for cpus in near for cpu in cpus]
        assert len(flat) == len(set(flat)) == len(here.cpus)


def test_ranks_do_not_straddle_numa_nodes_where_they_fit() -> None:
    assignment = assign_cpus(machine(8, numa=2), ranks=2, cores_per_device=3)
    assert assignment.cpus == [[0, 1, 2], [4, 5, 6]]


def test_shared_physical_cores_are_noted() -> None:
    assert "SMT" in assign_cpus(machine(2, smt=2), 4, 1).notes[0]


def test_threads_are_set_at_every_device_count() -> None:
    for devices in (1, 2):
        config = dataclasses.replace(compose([]), num_devices=devices)
        assert {rank.threads for rank in make_plan(config, machine()).ranks} == {1}


@pytest.mark.parametrize("workers", [None, 0, 1, 2])
def test_a_rank_loads_with_equally_many_cores_at_every_device_count(workers: int | None) -> None:
    config = compose([f"dataset.workers={'null' if workers is None else workers}"])
    for devices in (1, 2, 4):
        plan = make_plan(dataclasses.replace(config, num_devices=devices), machine(12))
        assert [len(rank.spare_cpus) for rank in plan.ranks] == [workers or 0] * devices
        assert plan.notes == []
        used = [cpu for rank in plan.ranks for cpu in [*rank.cpus, *rank.spare_cpus]]
        assert len(used) == len(set(used))


def test_loader_workers_without_cores_of_their_own_are_noted() -> None:
    config = compose(["dataset.workers=2"])
    few = make_plan(dataclasses.replace(config, num_devices=4), machine(8))
    assert [len(rank.spare_cpus) for rank in few.ranks] == [1, 1, 1, 1]
    (note,) = few.notes
    assert note.startswith("dataset.workers=2, but each rank has 1 core for them")
    (note,) = make_plan(dataclasses.replace(config, num_devices=8), machine(8)).notes
    assert note.startswith("dataset.workers=2, but each rank has no core for them")
