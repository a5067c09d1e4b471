"""Helpers for the tests of both schedulers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from dpeval.launchers.tracking import manifest as manifests
from dpeval.record.io import read
from dpeval.record.schema import Record
from tests.cluster.conftest import Cluster, Watching, wait_until


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
