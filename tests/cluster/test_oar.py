"""Sweeps on a real OAR: their requests, and that records show what OAR does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpeval.launchers.tracking import manifest as manifests
from tests.cluster.conftest import LONG, TINY, Cluster
from tests.cluster.sweeps import (
    check_turns_in_one_job,
    job_ids,
    records,
    wait_for_lines,
    wait_for_status,
)

SHARED = "site.exclusive=false"


def oar_jobs(cluster: Cluster, sweep: Path) -> list[dict[str, Any]]:
    """Each run's job as OAR shows it."""
    found = []
    for job_id in job_ids(sweep):
        done = cluster.run("oarstat", "-f", "-J", "-j", job_id)
        found.append(json.loads(done.stdout)[job_id])
    return found


def test_every_run_gets_the_cores_it_needs(oar: Cluster) -> None:
    done, sweep = oar.sweep(*TINY, SHARED, "num_devices=1,2", "batch=12,24",
                            "hydra.launcher.prepare=job",
                            "site.setup=['# a comment', 'export DPEVAL_NOTE=\"two  words\"']",
                            study="two words")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record.status for record in records(sweep)] == ["ok"] * 4
    wanted = [job["wanted_resources"] for job in oar_jobs(oar, sweep)]
    assert ["core=1," in wanted[0], "core=1," in wanted[1]] == [True, True]
    assert ["core=2," in wanted[2], "core=2," in wanted[3]] == [True, True]
    first = manifests.read(sweep).prepare_job_id
    assert first is not None
    prepared = json.loads(oar.run("oarstat", "-f", "-J", "-j", first).stdout)[first]
    starts = [int(job["startTime"]) for job in oar_jobs(oar, sweep)]
    assert min(starts) >= int(prepared["stopTime"]) > 0
    found = records(sweep)[0]
    assert found.scheduler is not None
    assert (found.scheduler.kind, found.scheduler.job_id) == ("oar", job_ids(sweep)[0])


def test_runs_take_turns_in_one_job(oar: Cluster) -> None:
    job_id = check_turns_in_one_job(oar)
    [job] = json.loads(oar.run("oarstat", "-f", "-J", "-j", job_id).stdout).values()
    assert "/network_address=1," in job["wanted_resources"], "one whole node"


def test_every_run_gets_and_sees_the_gpus_it_needs(oar: Cluster) -> None:
    done, sweep = oar.sweep(*TINY, SHARED, "hardware=gpu", "hardware.oversubscribe=false",
                            "num_devices=1,2,3", "batch=16",
                            "site=grid5000")  # fmt: skip
    found = oar_jobs(oar, sweep)
    assert [f"/gpu={n}," in job["wanted_resources"] for n, job in enumerate(found, 1)] == [
        True, True, True]  # fmt: skip
    assert [f"gpu_count>={n}" in job["properties"] for n, job in enumerate(found, 1)] == [
        True, True, True]  # fmt: skip
    assert [record.status for record in records(sweep)] == ["skipped"] * 3, done.stdout
    visible = [
        record.scheduler.details["CUDA_VISIBLE_DEVICES"]
        for record in records(sweep)
        if record.scheduler is not None
    ]
    assert [len(devices.split(",")) for devices in visible] == [1, 2, 3]


def test_array_parallelism_limits_the_running_jobs_even_after_failures(oar: Cluster) -> None:
    # The first two fail, which must not block the others.
    done, sweep = oar.sweep(*TINY, SHARED, "batch=12,16,20,24",
                            "+model.args.faults.fail_at_step=3",
                            "hydra.launcher.array_parallelism=2")  # fmt: skip
    assert [record.status for record in records(sweep)] == ["failed"] * 4, done.stdout
    jobs = oar_jobs(oar, sweep)
    assert len({job["array_id"] for job in jobs}) == 2
    ends = [int(job["stopTime"]) for job in jobs[:2]]
    assert all(int(job["startTime"]) >= max(ends) for job in jobs[2:])


def test_a_failed_run_is_failed_whatever_oar_shows(oar: Cluster) -> None:
    done, sweep = oar.sweep(*TINY, SHARED, "batch=16", "+model.args.faults.fail_at_step=3")
    assert done.returncode == 1
    assert oar_jobs(oar, sweep)[0]["state"] in ("Running", "Finishing", "Terminated")
    [found] = records(sweep)
    assert (found.status, found.cause is not None) == ("failed", True)


def test_two_nodes_make_one_record(oar: Cluster) -> None:
    # oarsh needs OAR's cpusets, which oar_up.sh disables (see there). Like ssh, this shell
    # passes no environment to the other "node".
    shell = oar.work / "remote shell"
    shell.write_text('#!/bin/bash\nshift\nexec env -i /bin/bash -c "$*"\n')
    shell.chmod(0o755)
    done, sweep = oar.sweep(*TINY, SHARED, "num_nodes=2", "num_devices=2", "batch=16",
                            f"site.remote_shell=['{shell}']")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = records(sweep)
    assert (found.status, len(found.ranks)) == ("ok", 2)
    assert len({rank.pid for rank in found.ranks}) == 2
    assert len(oar_jobs(oar, sweep)[0]["assigned_network_address"]) == 2


def test_an_unreachable_node_is_reported_at_once(oar: Cluster) -> None:
    done, sweep = oar.sweep(*TINY, SHARED, "num_nodes=2", "num_devices=2", "batch=16",
                            "site.remote_shell=[bash,-c,'echo no way in; exit 5']")  # fmt: skip
    assert done.returncode == 1
    [found] = records(sweep)
    assert found.cause is not None
    assert "no way in" in found.cause.message


def test_cancel_ends_only_the_jobs_of_the_sweep(oar: Cluster) -> None:
    _, sweep = oar.sweep(*LONG, SHARED, "batch=16,32", "hydra.launcher.wait=false")
    wait_for_status(oar, sweep, "measuring")
    other = oar.run("oarsub", "-l", "/nodes=1/core=1", "-O", "/dev/null", "-E", "/dev/null",
                    "sleep 60").stdout.rpartition("OAR_JOB_ID=")[2].strip()  # fmt: skip
    cancelled = oar.module("cancel", str(sweep))
    assert cancelled.stdout.startswith("2 jobs cancelled"), cancelled.stdout + cancelled.stderr
    wait_for_lines(oar, sweep, lambda lines: all(": interrupted" in line for line in lines))
    state = json.loads(oar.run("oarstat", "-f", "-J", "-j", other).stdout)[other]["state"]
    assert state not in ("Error", "toError")
    oar.run("oardel", other)
    assert len(records(sweep)) == 2


def test_warning_before_the_walltime_stops_in_order_and_resubmits_once(oar: Cluster) -> None:
    # OAR resubmits only jobs that ran for more than a minute.
    done, sweep = oar.sweep(*LONG, SHARED, "batch=16", "hydra.launcher.timeout_min=2",
                            "hydra.launcher.signal_delay_s=40", "hydra.launcher.requeue=1",
                            timeout_s=560)  # fmt: skip
    [found] = records(sweep)
    assert found.status == "interrupted", done.stdout
    assert found.throughput is not None
    attempts = [json.loads(line) for line in (sweep / "0" / "attempts.jsonl").open()]
    assert len({attempt["job_id"] for attempt in attempts}) == 2
