"""What the stubs of all schedulers share: jobs are files, and one call fails as the campaign asks.

The commands of a stub import nothing of dpeval, so that a call takes 30 ms.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIVING = ("PENDING", "RUNNING", "SUSPENDED")
LATE_S = 2.0
"""How long accounting that lags shows a job as running after its end."""
_ROOT = Path(__file__).resolve().parents[3]

Command = Callable[[Path, list[str]], int]
"""Answers one call for a cluster's folder; returns the exit status."""


def read_jobs(cluster: Path) -> dict[str, dict[str, Any]]:
    """The jobs by id, in the order of their submission."""
    paths = sorted((cluster / "jobs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return {path.name: json.loads(path.read_text()) for path in paths if path.suffix == ""}


def write_job(cluster: Path, job_id: str, job: dict[str, Any]) -> None:
    """Write one job, at once."""
    path = cluster / "jobs" / job_id
    path.with_suffix(".new").write_text(json.dumps(job))
    path.with_suffix(".new").replace(path)


def add_jobs(cluster: Path, ids: list[str], script: str) -> None:
    """Queue jobs that run `script`."""
    for job_id in ids:
        write_job(cluster, job_id, {"state": "PENDING", "script": script, "exit": 0, "restarts": 0})


def cancel_jobs(cluster: Path, ids: list[str]) -> None:
    """End those jobs of `ids` that wait or run."""
    known = read_jobs(cluster)
    for job_id in ids:
        if job_id in known and known[job_id]["state"] in LIVING:
            write_job(cluster, job_id, known[job_id] | {"state": "CANCELLED"})


def next_number(path: Path) -> int:
    """One more than the last time, from 1."""
    count = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(count))
    return count


def answer(commands: Mapping[str, Command], down: str, timed_out: str) -> int:
    """Answer the call on this program's command line, ``CLUSTER COMMAND ARGUMENTS``.

    Args:
        commands: of this scheduler, by name.
        down: what they print when the scheduler does not answer.
        timed_out: what a submission prints that was accepted all the same.
    """
    cluster, command, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with (cluster / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        count = next_number(cluster / f"calls-{command}")
        fault = json.loads((cluster / "fault.json").read_text())
        kind = fault["kind"] if _is_hit(fault, command, count) else ""
        if kind in ("fail", "no_accounting") or _is_down(fault, command):
            print(f"{command}: {down}", file=sys.stderr)
            return 1
        if kind in ("empty", "empty_squeue"):
            return 0
        if kind == "garbage":
            print("load_jobs: ??? \x00 |||")
            return 0
        if kind == "stopped":
            os.kill(os.getppid(), signal.SIGTERM)
        status = commands[command](cluster, arguments)
        if kind == "killed":
            os.kill(os.getppid(), signal.SIGKILL)
        if kind == "accept_then_fail":
            print(timed_out, file=sys.stderr)
            return 1
    return status


def _is_hit(fault: dict[str, Any], command: str, count: int) -> bool:
    if fault["call"] != command:
        return False
    if fault["kind"] == "no_accounting":
        return True
    longer = 2 if fault["kind"] == "empty_squeue" else 0
    return bool(fault["at"] <= count <= fault["at"] + longer)


def _is_down(fault: dict[str, Any], command: str) -> bool:
    """Whether what `command` asks is being started anew."""
    is_asked = fault["call"] in ("", command)
    return bool(is_asked and time.time() < fault.get("down_until_s", 0.0))


def is_late(cluster: Path) -> bool:
    """Whether accounting lags in this cluster."""
    return bool(json.loads((cluster / "fault.json").read_text())["kind"] == "late_accounting")


def install(cluster: Path, binaries: Path, module: str, commands: Mapping[str, Command]) -> None:
    """Make an empty cluster, and its commands in `binaries`.

    Args:
        cluster: its folder, which this makes.
        binaries: the folder for the commands, which this makes.
        module: the stub, whose commands these are.
        commands: by name.
    """
    (cluster / "jobs").mkdir(parents=True)
    binaries.mkdir()
    for command in commands:
        path = binaries / command
        path.write_text(
            f"#!/bin/sh\nPYTHONPATH={_ROOT} exec {sys.executable} -S -s -m {module} "
            f'{cluster} {command} "$@"\n'
        )
        path.chmod(0o755)
