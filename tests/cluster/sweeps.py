"""Helpers for the tests of both schedulers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import dpeval
from dpeval.launchers.tracking import manifest as manifests
from dpeval.record.io import read
from dpeval.record.schema import Record
from tests.cluster.conftest import TINY, Cluster, Watching, wait_until


def records(sweep: Path) -> list[Record]:
    """The records of a sweep, by run number."""
    runs = manifests.read(sweep).runs
    return [
        read(sweep / run.folder / "metrics.json")
        for run in runs
        if (sweep / run.folder / "metrics.json").exists()
    ]


def job_ids(sweep: Path) -> list[str]:
    """The job of every run of a sweep."""
    ids = [run.job_id for run in manifests.read(sweep).runs]
    return [job_id for job_id in ids if job_id is not None]


def standing(cluster: Cluster, sweep: Path) -> list[str]:
    """What ``dpeval.status`` prints per run."""
    done = cluster.module("status", str(sweep))
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if re.match(r"^\d+: ", line)]


def wait_for_lines(
    cluster: Cluster, sweep: Path, matches: Callable[[list[str]], bool], timeout_s: float = 240
) -> None:
    """Watch a sweep until the status lines of all its runs match.

    One command that looks again and again: to start a new one for each look would take the
    processor from the jobs that are waited for.

    Args:
        cluster: the scheduler.
        sweep: the sweep's folder.
        matches: tells from one line per run whether to stop.
        timeout_s: the longest to wait.

    Raises:
        AssertionError: the lines did not match in time, or the command failed.
    """
    seen: dict[int, str] = {}

    def have_matched(watching: Watching) -> bool:
        if watching.has_failed():
            raise AssertionError(watching.text())
        for line in watching.text().splitlines():
            if found := re.match(r"^(\d+): ", line):
                seen[int(found[1])] = line
        complete = len(seen) == len(manifests.read(sweep).runs)
        return complete and matches([seen[number] for number in sorted(seen)])

    deadline_s = time.monotonic() + timeout_s
    # The command ends with the last run, whose state may still change: by a requeue, for example.
    while True:
        with cluster.watching("status", str(sweep), "--watch", "1") as watching:
            wait_until(
                lambda at=watching: have_matched(at) or at.has_ended(),  # type: ignore[misc]
                deadline_s - time.monotonic(),
                lambda: f"last seen: {list(seen.values())}",
            )
            if have_matched(watching):
                return


def wait_for_status(cluster: Cluster, sweep: Path, words: str, timeout_s: float = 240) -> None:
    """Watch until the first run's status line matches the regular expression `words`."""
    wait_for_lines(cluster, sweep, lambda lines: bool(re.search(words, lines[0])), timeout_s)


def check_turns_in_one_job(cluster: Cluster, too_many: int | None = None) -> str:
    """Sweep over 1, 2 and 3 devices at a site that allocates whole nodes; return the job's id.

    Args:
        cluster: the scheduler.
        too_many: a further number of devices, which the scheduler refuses.

    Raises:
        AssertionError: the runs did not take turns, or are not runs of their own in status and
            resume.
    """
    command = (*TINY, "hydra.launcher.pack=null", "batch=24")
    devices = "1,2,3" if too_many is None else f"1,2,3,{too_many}"
    done, sweep = cluster.sweep(*command, f"num_devices={devices}")
    assert done.returncode == (too_many is not None), done.stdout + done.stderr
    assert "3 runs submitted" in done.stdout
    assert "in 1 job" in done.stdout
    [job_id] = set(job_ids(sweep))
    found = records(sweep)[:3]
    assert [record.status for record in found] == ["ok"] * 3
    assert {record.scheduler.job_id for record in found if record.scheduler} == {job_id}
    assert len({record.sitting.id for record in found if record.sitting}) == 1
    assert not list(sweep.glob("*/progress.json"))

    table = dpeval.scaling(dpeval.read(sweep)).set_index("num_devices")
    assert list(table["baseline_devices"][:3]) == [1, 1, 1]
    assert [bool(table["is_paired"][count]) for count in (2, 3)] == [True, True]

    lines = standing(cluster, sweep)
    assert [": ok " in line for line in lines[:3]] == [True] * 3
    assert all("refused by" in line for line in lines[3:])
    again = cluster.module(
        "train", "-m", f"hydra/launcher={cluster.launcher}", "hydra.launcher.dry_run=true",
        *command, "num_devices=1,2,3,4,5", f"sweep.resume={sweep}",
    )  # fmt: skip
    assert "2 runs in one job:" in again.stdout, again.stdout + again.stderr
    return job_id
