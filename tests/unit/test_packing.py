"""Which runs share a job, what that job requests, and what each way costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.config import (
    Config,
    HardwareConfig,
    LauncherOptions,
    MeasureConfig,
    SiteConfig,
    SweepConfig,
)
from dpeval.launchers.dry_run import describe_groups
from dpeval.launchers.packing import (
    Need,
    apart_words,
    device_hours,
    hours_words,
    job_of,
    jobs_of,
    without_largest,
)
from dpeval.launchers.schedulers.oar.scheduler import oar_parameters
from dpeval.launchers.schedulers.resources import JobRequest, NodeSize, derive, group
from dpeval.launchers.schedulers.slurm import SlurmOptions
from dpeval.launchers.schedulers.slurm_request import slurm_parameters
from dpeval.launchers.schedulers.slurm_states import parse_node_sizes, parse_time_limits
from dpeval.record.memory import Forecast

OPTIONS = LauncherOptions(signal_delay_s=30)
GIB = 2**30


def run(devices: int, batch: int = 64, **changes: Any) -> Config:
    measure = MeasureConfig(time_limit_s=120.0, ablation=False)
    base = Config(measure=measure, num_devices=devices, batch=batch)
    return dataclasses.replace(base, **changes)


def needs_of(configs: Sequence[Config], gib: int = 1) -> list[Need]:
    """What each run needs whose ranks take `gib` GiB each."""
    memory = Forecast(total_bytes=gib * GIB, parts={}, source="model")
    return [Need(at, one, derive(one, memory, OPTIONS)) for at, one in enumerate(configs)]


def jobs(
    configs: Sequence[Config],
    pack: bool | None = None,
    longest_min: int | None = None,
    **options: Any,
) -> list[JobRequest]:
    made = dataclasses.replace(OPTIONS, **options)
    return jobs_of(needs_of(configs), made, lambda _: longest_min, pack)


def members(found: Sequence[JobRequest]) -> list[tuple[int, ...]]:
    return [job.members for job in found]


SHARED = SiteConfig(exclusive=False)
CURVES = [run(devices, batch) for batch in (32, 64) for devices in (1, 2, 4)]


def test_runs_share_a_job_where_the_site_allocates_whole_nodes() -> None:
    assert members(jobs(CURVES)) == [(0, 1, 2, 3, 4, 5)]
    shared = [dataclasses.replace(one, site=SHARED) for one in CURVES]
    assert members(jobs(shared)) == [(at,) for at in range(6)]


@pytest.mark.parametrize(
    ("order", "exclusive", "is_shared"),
    [
        ("auto", True, True), ("auto", False, False), ("interleaved", False, True),
        ("interleaved", True, True), ("sequential", True, False), ("sequential", False, False),
    ],
)  # fmt: skip
def test_the_order_of_a_sweep_decides_whether_its_runs_share_a_job(
    order: str, exclusive: bool, is_shared: bool
) -> None:
    site, sweep = SiteConfig(exclusive=exclusive), SweepConfig(order=order)
    configs = [dataclasses.replace(one, site=site, sweep=sweep) for one in CURVES]
    assert len(jobs(configs)) == (1 if is_shared else 6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_user_decides_whether_runs_share_a_job(exclusive: bool) -> None:
    site = SiteConfig(exclusive=exclusive)
    configs = [dataclasses.replace(one, site=site) for one in CURVES]
    assert members(jobs(configs, pack=True)) == [(0, 1, 2, 3, 4, 5)]
    assert members(jobs(configs, pack=False)) == [(at,) for at in range(6)]


def test_a_shared_job_needs_the_most_devices_and_the_time_of_all() -> None:
    [job] = jobs(CURVES)
    alone = [need.resources for need in needs_of(CURVES)]
    assert (job.resources.cores, job.resources.nodes) == (4, 1)
    assert job.resources.time_min >= 6 * 120 / 60
    assert job.resources.time_min < sum(one.time_min for one in alone)
    assert job.resources.memory_mib == max(one.memory_mib or 0 for one in alone)
    assert job.resources.warning_s > OPTIONS.signal_delay_s, "six records take longer than one"


def test_a_run_that_is_compiled_needs_its_own_time_to_start() -> None:
    plain, compiled = [run(1), run(2)], [run(1), run(2, compile=True)]
    [short], [long] = jobs(plain), jobs(compiled)
    assert long.resources.time_min >= short.resources.time_min + 4


def test_a_run_alone_asks_for_what_it_asked_for_without_packing() -> None:
    [job] = jobs([run(2)])
    [apart] = jobs([run(2)], pack=False)
    assert job == apart


def test_a_whole_node_gives_all_its_memory_and_a_part_the_sum() -> None:
    [whole] = jobs(CURVES)
    asked = slurm_parameters(whole.resources, SiteConfig(), OPTIONS, "n")
    assert (asked["mem"], asked["exclusive"]) == ("0", True)
    site = SiteConfig(memory_properties="memnode>={mib}")
    properties = oar_parameters(whole.resources, site, OPTIONS, "n")["additional_parameters"]["p"]
    assert properties == f"memnode>={whole.resources.memory_mib}"
    configs = [dataclasses.replace(one, site=SHARED) for one in CURVES]
    [part] = jobs(configs, pack=True)
    alone = [need.resources.memory_mib or 0 for need in needs_of(configs)]
    assert part.resources.memory_mib == sum(alone)
    assert slurm_parameters(part.resources, SHARED, OPTIONS, "n")["mem"] == f"{sum(alone)}M"


def test_keys_of_the_launcher_override_a_shared_job() -> None:
    options = SlurmOptions(mem_gb=7, cpus_per_task=9)
    job = job_of(needs_of(CURVES), options)
    asked = slurm_parameters(job.resources, SiteConfig(), options, "n")
    assert (asked["mem"], asked["cpus_per_task"]) == ("7168M", 9)


def test_repetitions_have_jobs_of_their_own_in_one_submission() -> None:
    configs = [run(n, repeat=2, repetition=k) for k in (0, 1) for n in (1, 2)]
    found = jobs(configs)
    assert members(found) == [(0, 1), (2, 3)]
    [one] = group(found, lambda r, s: slurm_parameters(r, s, OPTIONS, "n"))
    assert (one.jobs, one.members) == (((0, 1), (2, 3)), (0, 1, 2, 3))


def test_runs_on_several_nodes_have_jobs_of_their_own() -> None:
    configs = [run(1), run(2), run(4, num_nodes=2), run(8, num_nodes=2)]
    assert members(jobs(configs)) == [(0, 1), (2,), (3,)]
    assert members(jobs(configs, pack=True)) == [(0, 1), (2,), (3,)]
    for pack in (True, None):
        assert apart_words(needs_of(configs), pack).startswith("2 runs on several nodes")
    assert apart_words(needs_of(configs), pack=False) == ""
    assert apart_words(needs_of(configs[:2]), pack=True) == ""
    wide = needs_of(configs[3:])
    assert apart_words(wide, pack=True).startswith("1 run on several nodes has a job of its own")
    assert apart_words(wide, None) == ""


def test_devices_of_another_kind_and_other_sites_are_other_jobs() -> None:
    gpu = HardwareConfig(kind="gpu")
    configs = [run(1), run(1, hardware=gpu), run(2), run(2, site=SiteConfig(partition="p"))]
    assert members(jobs(configs)) == [(0, 2), (1,), (3,)]


def test_a_sweep_longer_than_a_job_may_last_is_divided_between_its_curves() -> None:
    for found in (jobs(CURVES, longest_min=14), jobs(CURVES, timeout_min=14)):
        assert members(found) == [(0, 1, 2), (3, 4, 5)]
        assert all(job.resources.time_min <= 14 for job in found)


def test_a_curve_longer_than_a_job_may_last_is_divided_too() -> None:
    assert members(jobs(CURVES, longest_min=12)) == [(0, 1), (2, 3), (4, 5)]
    assert members(jobs(CURVES, longest_min=1)) == [(at,) for at in range(6)]


@given(
    counts=st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=12),
    nodes=st.sampled_from([1, 2]),
    longest_min=st.none() | st.integers(1, 60),
    pack=st.sampled_from([None, True, False]),
)
def test_every_run_is_in_one_job_that_gives_what_it_needs(
    counts: list[int], nodes: int, longest_min: int | None, pack: bool | None
) -> None:
    configs = [
        run(nodes * n, batch=32 * (1 + at % 2), num_nodes=nodes) for at, n in enumerate(counts)
    ]
    found = jobs(configs, pack, longest_min)
    assert sorted(at for job in found for at in job.members) == list(range(len(configs)))
    alone = needs_of(configs)
    for job in found:
        for at in job.members:
            assert job.resources.cores >= alone[at].resources.cores
            assert job.resources.nodes == alone[at].resources.nodes
            assert job.resources.time_min >= alone[at].resources.time_min
        assert len(job.members) == 1 or job.resources.time_min <= (longest_min or 10**9)


def test_what_no_node_holds_leaves_the_job_of_the_others() -> None:
    found = without_largest(needs_of([run(1), run(8), run(2), run(8, 32)]), OPTIONS)
    assert [job.members for job in found] == [(0, 2), (1, 3)]
    assert [job.resources.cores for job in found] == [2, 8]
    assert without_largest(needs_of([run(2), run(2, 32)]), OPTIONS) == []


def unknown(site: SiteConfig) -> NodeSize:
    return NodeSize()


def test_device_hours_count_what_a_site_charges() -> None:
    apart = jobs([run(1), run(4)], pack=False)
    minutes = [job.resources.time_min for job in apart]
    assert device_hours(apart, lambda _: NodeSize(cores=40)) == pytest.approx(
        40 * sum(minutes) / 60
    )
    told = jobs([dataclasses.replace(run(1), site=SiteConfig(node_cores=16))])
    hours = 16 * told[0].resources.time_min / 60
    assert (
        f"{hours:.2f} (if every run takes its whole time limit, and a whole node counts as its 16"
        in (hours_words(told, told, unknown))
    )


def test_the_size_of_a_node_is_read_from_sinfo() -> None:
    text = "gpu*|40|gpu:v100:4(S:0-1)\ngpu*|48|(null)\nbig|64|gpu:a100:8,nvme:1\n"
    assert parse_node_sizes(text, None) == NodeSize(48, 4)
    assert parse_node_sizes(text, "big") == NodeSize(64, 8)
    assert parse_node_sizes("cpu|8|(null)\n", "cpu") == NodeSize(8, None)


def test_device_hours_count_whole_nodes_as_the_largest_run() -> None:
    configs = [run(1), run(4)]
    apart = jobs(configs, pack=False)
    minutes = [job.resources.time_min for job in apart]
    assert device_hours(apart, unknown) == pytest.approx(4 * sum(minutes) / 60)
    shared = jobs([dataclasses.replace(one, site=SHARED) for one in configs], pack=False)
    assert device_hours(shared, unknown) == pytest.approx((minutes[0] + 4 * minutes[1]) / 60)


def test_the_dry_run_names_the_cost_of_both_ways() -> None:
    packed, apart = jobs(CURVES), jobs(CURVES, pack=False)
    cost = hours_words(packed, apart, unknown)
    assert f"{device_hours(packed, unknown):.2f} in 1 job that runs share" in cost
    assert f"{device_hours(apart, unknown):.2f} with a job for each run" in cost
    assert device_hours(packed, unknown) < device_hours(apart, unknown)
    groups = group(packed, lambda r, s: slurm_parameters(r, s, OPTIONS, "n"))
    text = describe_groups(groups, [f"run {at}" for at in range(6)], ["#SBATCH"], cost)
    assert text.startswith("submission 1 of 1: 1 job with 1 whole node with 4 cores, all memory")
    assert "6 runs in one job:\n    run 0\n" in text
    assert text.endswith("6 runs in 1 job; nothing was submitted")
    assert "share" not in hours_words(apart, apart, unknown)


LIMITS = "short|30:00\nlong*|2-12:00:00\nodd|infinite\nday|12:30:00\n"


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ("short", 30), ("long", 3600), (None, 3600), ("odd", None), ("day", 750),
        ("day,short", 30), ("absent", None),
    ],
)  # fmt: skip
def test_the_limit_of_a_partition_is_read(partition: str | None, expected: int | None) -> None:
    assert parse_time_limits(LIMITS, partition) == expected
