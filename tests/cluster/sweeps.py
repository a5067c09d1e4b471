"""Helpers for the tests of both schedulers."""

from __future__ import annotations

import re
from pathlib import Path

from dpeval.launchers.tracking import manifest as manifests
from dpeval.record.io import read
from dpeval.record.schema import Record
from tests.cluster.conftest import Cluster, wait_until


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


def wait_for_status(cluster: Cluster, sweep: Path, words: str, timeout_s: float = 240) -> None:
    """Poll until the first run's status line matches the regular expression `words`."""
    seen: list[str] = []

    def matches() -> bool:
        seen[:] = standing(cluster, sweep)
        return bool(re.search(words, seen[0]))

    wait_until(matches, timeout_s, lambda: f"status '{words}'; last seen: {seen}")
