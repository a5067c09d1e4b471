"""Which CPUs ranks get, over hosts of every shape and cpusets cut out of them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dpeval.planning.cpu_affinity import (
    LAUNCH_CPUS,
    GpuRankCpus,
    assign_cpus,
    assign_gpu_cpus,
    cpus_near_gpus,
    order_cpus,
)
from dpeval.record.machine import Cpu, Gpu, Machine


def host(
    nodes: int, cores: int, smt: int = 1, *, gpus: tuple[int | None, ...] = (), slow: int = 0
) -> Machine:
    """`cores` cores on each of `nodes` nodes; the last `slow` cores of all are of a slower kind."""
    total = nodes * cores
    cpus = [
        Cpu(
            cpu=core + turn * total,
            core=core,
            socket=core // cores,
            numa=core // cores,
            efficiency=core >= total - slow,
        )
        for turn in range(smt)
        for core in range(total)
    ]
    found = [Gpu(index=at, name="X", total_bytes=1, numa=numa) for at, numa in enumerate(gpus)]
    return Machine(host="h", cpus=cpus, gpus=found, memory_bytes=1)


@st.composite
def hosts(draw: st.DrawFn) -> Machine:
    """A host, often restricted to a part of its CPUs, in any order."""
    nodes = draw(st.integers(1, 4))
    places = st.one_of(st.none(), st.integers(0, nodes - 1))
    whole = host(
        nodes,
        draw(st.integers(1, 8)),
        draw(st.integers(1, 4)),
        gpus=tuple(draw(st.lists(places, min_size=1, max_size=8))),
        slow=draw(st.integers(0, 4)),
    )
    if draw(st.booleans()):
        return whole
    cpus = draw(st.lists(st.sampled_from(whole.cpus), min_size=1, unique_by=lambda cpu: cpu.cpu))
    return whole.model_copy(update={"cpus": cpus})


@given(here=hosts())
def test_the_order_has_every_cpu_once_and_each_core_before_any_sibling(here: Machine) -> None:
    ordered = order_cpus(here.cpus)
    assert sorted(item.cpu for item in ordered) == sorted(item.cpu for item in here.cpus)
    turns: list[int] = []
    seen: Counter[int] = Counter()
    for item in ordered:
        turns.append(seen[item.core])
        seen[item.core] += 1
    assert turns == sorted(turns)


@given(here=hosts(), ranks=st.integers(1, 12), cores=st.integers(1, 6))
def test_every_rank_has_its_own_cpus_within_the_cpuset(
    here: Machine, ranks: int, cores: int
) -> None:
    made = assign_cpus(here, ranks, cores)
    if ranks * cores > len(here.cpus):
        assert made.cpus == []
        return
    given_out = [cpu for share in made.cpus for cpu in share]
    assert [len(share) for share in made.cpus] == [cores] * ranks
    assert len(set(given_out)) == len(given_out)
    assert set(given_out) <= {item.cpu for item in here.cpus}


@given(here=hosts(), ranks=st.integers(1, 12), cores=st.integers(1, 6))
def test_no_core_is_used_twice_beside_an_idle_one(here: Machine, ranks: int, cores: int) -> None:
    core_of = {item.cpu: item.core for item in here.cpus}
    numa_of = {item.core: item.numa for item in here.cpus}
    made = assign_cpus(here, ranks, cores)
    threads = Counter(core_of[cpu] for share in made.cpus for cpu in share)
    if 0 < ranks * cores <= len(set(core_of.values())):
        assert max(threads.values()) == 1
        assert not any("SMT" in note for note in made.notes)
    for core, count in threads.items():
        if count > 1:
            assert any("SMT" in note for note in made.notes)
            beside = {other for other, numa in numa_of.items() if numa == numa_of[core]}
            assert beside <= set(threads)


@given(
    nodes=st.integers(1, 4),
    per_node=st.integers(1, 8),
    smt=st.integers(1, 2),
    ranks=st.integers(1, 12),
    cores=st.integers(1, 8),
)
def test_no_rank_straddles_nodes_that_have_room(
    nodes: int, per_node: int, smt: int, ranks: int, cores: int
) -> None:
    here = host(nodes, per_node, smt)
    made = assign_cpus(here, ranks, cores)
    # Siblings count as room only once all physical cores are wanted.
    room = per_node * (1 if ranks * cores <= nodes * per_node else smt)
    if not made.cpus or ranks > nodes * (room // cores):
        return
    numa_of = {item.cpu: item.numa for item in here.cpus}
    assert all(len({numa_of[cpu] for cpu in share}) == 1 for share in made.cpus)
    assert not any("NUMA" in note for note in made.notes)


def test_siblings_are_shared_on_the_rank_s_own_node() -> None:
    # Taking siblings in order would give rank 1 two of its six CPUs on the other node.
    shares = assign_cpus(host(2, 4, smt=2), 2, 6).cpus
    assert [sorted(share) for share in shares] == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7, 12, 13]]


def test_a_node_with_idle_cores_comes_before_siblings_on_another() -> None:
    shares = assign_cpus(host(3, 4, smt=2), 4, 4).cpus
    assert shares == [[0, 1, 12, 13], [2, 3, 14, 15], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_rank_shares_a_core_with_itself_rather_than_with_another() -> None:
    assert assign_cpus(host(1, 2, smt=2), 2, 2).cpus == [[0, 2], [1, 3]]
    assert assign_cpus(host(1, 4, smt=2), 2, 3).cpus == [[0, 1, 4], [2, 3, 6]]


def test_ranks_take_cores_in_order_node_by_node() -> None:
    assert assign_cpus(host(2, 4, smt=2), 5, 1).cpus == [[0], [1], [2], [3], [4]]


def test_efficiency_cores_come_after_the_others_and_before_siblings() -> None:
    here = host(1, 4, smt=2, slow=2)
    assert [item.cpu for item in order_cpus(here.cpus)] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert assign_cpus(here, 2, 1).notes == []
    assert "1 of 3 compute threads run on efficiency cores" in assign_cpus(here, 3, 1).notes[0]
    # Slow cores with low numbers are passed over.
    first_slow = [item.model_copy(update={"efficiency": item.core < 2}) for item in here.cpus]
    assert assign_cpus(here.model_copy(update={"cpus": first_slow}), 2, 1).cpus == [[2], [3]]


def test_notes_say_what_slows_ranks_down() -> None:
    (smt,) = assign_cpus(host(1, 4, smt=2), 6, 1).notes
    assert smt.startswith(
        "6 compute threads on 4 physical cores: 2 of them run more than one thread"
    )
    (straddling,) = assign_cpus(host(2, 3), 3, 2).notes
    assert straddling == "rank 2 has cores on NUMA nodes 0, 1"
    limited = host(1, 4).model_copy(update={"cpu_quota": 1.5})
    assert assign_cpus(limited, 1, 1).notes == []
    assert (
        "limits 2 compute threads to the CPU time of 1.5 CPUs"
        in assign_cpus(limited, 2, 1).notes[0]
    )


@given(here=hosts(), ranks=st.integers(1, 12), cores=st.integers(1, 6))
def test_oversubscribing_always_places_and_says_so(here: Machine, ranks: int, cores: int) -> None:
    made = assign_cpus(here, ranks, cores, oversubscribe=True)
    assert len(made.cpus) == ranks
    assert all(made.cpus)
    load = Counter(cpu for share in made.cpus for cpu in share)
    assert set(load) <= {item.cpu for item in here.cpus}
    is_over = ranks * cores > len(here.cpus)
    assert is_over == any("oversubscribed" in note for note in made.notes)
    if is_over and cores == 1:
        assert max(load.values()) - min(load.values()) <= 1


def test_an_empty_machine_places_nothing() -> None:
    nowhere = host(1, 1).model_copy(update={"cpus": []})
    assert assign_cpus(nowhere, 1, 1, oversubscribe=True).cpus == []
    assert cpus_near_gpus(nowhere, [0, 1]) == [[], []]
    assert cpus_near_gpus(host(1, 2), []) == []


@given(here=hosts())
def test_gpu_ranks_share_all_cpus_once_and_evenly(here: Machine) -> None:
    indices = [gpu.index for gpu in here.gpus]
    near = cpus_near_gpus(here, indices)
    cores = {item.core for item in here.cpus}
    assert all(near)
    if len(cores) < len(indices):
        return
    flat = [cpu for share in near for cpu in share]
    assert sorted(flat) == sorted(item.cpu for item in here.cpus)
    core_of = {item.cpu: item.core for item in here.cpus}
    owned = [{core_of[cpu] for cpu in share} for share in near]
    assert sum(map(len, owned)) == len(cores)  # no physical core has two owners
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@given(here=hosts())
def test_a_gpu_rank_begins_with_a_core_near_its_gpu(here: Machine) -> None:
    numa_of = {item.cpu: item.numa for item in here.cpus}
    at_home = Counter(gpu.numa for gpu in here.gpus)
    cores_on = Counter({item.core: item.numa for item in here.cpus}.values())
    near = cpus_near_gpus(here, [gpu.index for gpu in here.gpus])
    for gpu, cpus in zip(here.gpus, near, strict=True):
        if gpu.numa is not None and cores_on[gpu.numa] >= at_home[gpu.numa]:
            assert numa_of[cpus[0]] == gpu.numa


def test_gpus_on_two_nodes_keep_whole_cores_at_home() -> None:
    here = host(2, 4, smt=2, gpus=(1, 0, 0, 1))
    assert cpus_near_gpus(here, [0, 1, 2, 3]) == [
        [4, 6, 12, 14],
        [0, 2, 8, 10],
        [1, 3, 9, 11],
        [5, 7, 13, 15],
    ]


def test_a_crowded_node_gets_the_rest_from_elsewhere() -> None:
    shares = cpus_near_gpus(host(2, 4, gpus=(0, 0, 1)), [0, 1, 2])
    assert [len(share) for share in shares] == [3, 2, 3]
    assert shares[0][:2] == [0, 2]
    assert shares[1][:2] == [1, 3]
    assert set(shares[2]) <= {4, 5, 6, 7}


def test_more_gpus_than_cores_share_a_core_at_home() -> None:
    assert cpus_near_gpus(host(2, 1, gpus=(0, 0, 1)), [0, 1, 2]) == [[0], [0], [1]]


def split(launch: list[int], loading: list[int]) -> GpuRankCpus:
    return GpuRankCpus(launch=launch, loading=loading)


def test_one_gpu_on_sixteen_cpus() -> None:
    (plain,) = assign_gpu_cpus(host(1, 16, gpus=(0,)), [0])
    assert plain == split([0, 1], list(range(2, 15)))  # 15 is the supervisor's
    # A launch core is the rank's with all of its threads: a busy sibling would slow it down.
    (smt,) = assign_gpu_cpus(host(1, 8, smt=2, gpus=(0,)), [0])
    assert smt.launch == [0, 8]
    assert set(smt.loading) == set(range(15)) - {0, 8}


def test_four_gpus_on_eight_cpus_leave_none_to_the_supervisor() -> None:
    ranks = assign_gpu_cpus(host(1, 8, gpus=(0, 0, 0, 0)), [0, 1, 2, 3])
    assert ranks == [split([0], [4]), split([1], [5]), split([2], [6]), split([3], [7])]


def test_two_gpus_on_two_cpus_load_where_they_launch() -> None:
    assert assign_gpu_cpus(host(1, 2, gpus=(0, 0)), [0, 1]) == [split([0], []), split([1], [])]


def test_launch_cores_are_on_the_node_of_the_gpu() -> None:
    ranks = assign_gpu_cpus(host(2, 8, gpus=(0, 1)), [0, 1])
    assert [rank.launch for rank in ranks] == [[0, 1], [8, 9]]
    # The supervisor is where no GPU is.
    (alone,) = assign_gpu_cpus(host(2, 8, gpus=(1,)), [0])
    assert alone.launch == [8, 9]
    assert set(range(16)) - {*alone.launch, *alone.loading} == {7}


def test_ranks_that_share_a_gpu_have_launch_cores_of_their_own() -> None:
    ranks = assign_gpu_cpus(host(1, 16, gpus=(0,)), [0, 0])
    assert [rank.launch for rank in ranks] == [[0, 2], [1, 3]]


def test_a_rank_has_as_many_cores_on_one_gpu_as_beside_others() -> None:
    here = host(1, 24, gpus=(0, 0, 0))
    plans = [assign_gpu_cpus(here, list(range(count))) for count in (1, 2, 3)]
    sizes = {(len(rank.launch), len(rank.loading)) for plan in plans for rank in plan}
    assert sizes == {(2, 5)}  # 23 cores, one is the supervisor's, for three
    assert plans[2][0] == plans[0][0]
    (asked,) = assign_gpu_cpus(here, [0], 20)
    assert len(asked.launch) + len(asked.loading) == 20


def test_a_job_with_a_node_to_itself_has_no_more_cores_for_asking_for_fewer_gpus() -> None:
    alone = host(1, 24, gpus=(0,)).model_copy(update={"gpu_shares": 3})
    ranks = assign_gpu_cpus(host(1, 24, gpus=(0, 0, 0)), [0, 1, 2])
    (rank,) = assign_gpu_cpus(alone, [0])
    assert (len(rank.launch), len(rank.loading)) == (2, 5)
    assert {(len(one.launch), len(one.loading)) for one in ranks} == {(2, 5)}


@given(here=hosts(), data=st.data())
def test_ranks_are_alike_at_every_device_count(here: Machine, data: st.DataObject) -> None:
    core_of = {item.cpu: item.core for item in here.cpus}
    counts = [data.draw(st.integers(1, len(here.gpus))) for _ in range(2)]
    sizes = {
        (len(own), len({core_of[cpu] for cpu in own}))
        for count in counts
        for rank in assign_gpu_cpus(here, [gpu.index for gpu in here.gpus[:count]])
        for own in (rank.launch + rank.loading,)
    }
    assert len(sizes) == 1


@given(here=hosts(), cores=st.one_of(st.none(), st.integers(1, 6)))
def test_launching_loading_and_supervising_are_kept_apart(here: Machine, cores: int | None) -> None:
    indices = [gpu.index for gpu in here.gpus]
    ranks = assign_gpu_cpus(here, indices, cores)
    if not ranks:
        assert cores is not None
        return
    physical = {item.core for item in here.cpus}
    for rank in ranks:
        assert rank.launch
        assert set(rank.launch).isdisjoint(rank.loading)
        assert cores is None or len(rank.launch) + len(rank.loading) == cores
        assert len(rank.launch) <= max(1, len(rank.loading))
    flat = [cpu for rank in ranks for cpu in (*rank.launch, *rank.loading)]
    assert set(flat) <= {item.cpu for item in here.cpus}
    if len(physical) > len(ranks):
        assert len(flat) == len(set(flat))
    if len(here.cpus) > len(ranks) * (cores or 2):
        assert set(flat) < {item.cpu for item in here.cpus}, "one is left to the supervisor"


@given(nodes=st.integers(1, 2), cores=st.integers(4, 16), smt=st.integers(1, 2))
def test_no_worker_shares_a_physical_core_with_launches(nodes: int, cores: int, smt: int) -> None:
    here = host(nodes, cores, smt, gpus=(0,))
    core_of = {item.cpu: item.core for item in here.cpus}
    (rank,) = assign_gpu_cpus(here, [0])
    assert len(rank.launch) <= LAUNCH_CPUS
    assert {core_of[cpu] for cpu in rank.launch}.isdisjoint(core_of[cpu] for cpu in rank.loading)
