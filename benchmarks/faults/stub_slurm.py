"""SLURM's commands as a stub: jobs are files, and one call fails as the campaign asks.

Run as ``stub_slurm.py FOLDER COMMAND ARGUMENTS`` without any of dpeval's modules, so that a call
takes 20 ms.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

LIVING = ("PENDING", "RUNNING", "SUSPENDED")
_DOWN = "error: Unable to contact slurm controller (connect failure)"


def read_jobs(cluster: Path) -> dict[str, dict[str, Any]]:
    """The jobs by id, in the order of their submission."""
    paths = sorted((cluster / "jobs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return {path.name: json.loads(path.read_text()) for path in paths if path.suffix == ""}


def write_job(cluster: Path, job_id: str, job: dict[str, Any]) -> None:
    """Write one job, at once."""
    path = cluster / "jobs" / job_id
    path.with_suffix(".new").write_text(json.dumps(job))
    path.with_suffix(".new").replace(path)


def main() -> int:
    """Answer one call; return its exit status."""
    cluster, command, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with (cluster / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        count = _count(cluster / f"calls-{command}")
        fault = json.loads((cluster / "fault.json").read_text())
        kind = fault["kind"] if _is_hit(fault, command, count) else ""
        if time.time() < fault.get("down_until_s", 0) or kind in ("fail", "no_accounting"):
            print(f"{command}: {_DOWN}", file=sys.stderr)
            return 1
        if kind in ("empty", "empty_squeue"):
            return 0
        if kind == "garbage":
            print("slurm_load_jobs: ??? \x00 |||")
            return 0
        if kind == "stopped":
            os.kill(os.getppid(), signal.SIGTERM)
        status = _COMMANDS[command](cluster, arguments)
        if kind == "killed":
            os.kill(os.getppid(), signal.SIGKILL)
        if kind == "accept_then_fail":
            print("sbatch: error: Batch job submission failed: Socket timed out on send/recv "
                  "operation", file=sys.stderr)  # fmt: skip
            return 1
    return status


def _is_hit(fault: dict[str, Any], command: str, count: int) -> bool:
    if fault["call"] != command:
        return False
    if fault["kind"] == "no_accounting":
        return True
    longer = 2 if fault["kind"] == "empty_squeue" else 0
    return bool(fault["at"] <= count <= fault["at"] + longer)


def _count(path: Path) -> int:
    count = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(count))
    return count


def _sbatch(cluster: Path, arguments: list[str]) -> int:
    script = Path(arguments[-1])
    text = script.read_text()
    number = 100 + _count(cluster / "last")
    array = re.search(r"^#SBATCH --array=0-(\d+)", text, re.MULTILINE)
    ids = [f"{number}_{at}" for at in range(int(array[1]) + 1)] if array else [str(number)]
    for job_id in ids:
        write_job(
            cluster,
            job_id,
            {"state": "PENDING", "script": str(script), "exit": "0:0", "restarts": 0},
        )
    print(f"Submitted batch job {number}")
    return 0


def _squeue(cluster: Path, arguments: list[str]) -> int:
    layout = arguments[arguments.index("-o") + 1]
    states = arguments[arguments.index("-t") + 1] if "-t" in arguments else ""
    for job_id, job in read_jobs(cluster).items():
        is_shown = states == "all" or job["state"] in LIVING
        if states == "R":
            is_shown = job["state"] == "RUNNING"
        if is_shown:
            node = "node1" if job["state"] != "PENDING" else ""
            words = {"%i": job_id, "%T": job["state"], "%r": "None", "%N": node}
            words |= {"%o": job["script"], "%A": job_id.partition("_")[0], "%u": "root"}
            print("|".join(words[item] for item in layout.split("|")))
    return 0


def _sacct(cluster: Path, arguments: list[str]) -> int:
    asked = arguments[arguments.index("-j") + 1].split(",")
    for job_id, job in read_jobs(cluster).items():
        if job_id.partition("_")[0] in asked:
            print(f"{job_id}|{job['state']}|{job['exit']}|node1")
    return 0


def _scancel(cluster: Path, arguments: list[str]) -> int:
    known = read_jobs(cluster)
    for job_id in arguments:
        if job_id in known and known[job_id]["state"] in LIVING:
            write_job(cluster, job_id, known[job_id] | {"state": "CANCELLED"})
    return 0


def _scontrol(cluster: Path, arguments: list[str]) -> int:
    if arguments[:2] == ["show", "config"]:
        print("MaxArraySize            = 1001")
    elif arguments[0] == "requeue":
        known = read_jobs(cluster)
        job_id = next(name for name in known if name in (arguments[1], f"{arguments[1]}_0"))
        write_job(cluster, job_id, known[job_id] | {"state": "REQUEUED"})
    else:
        print(f"JobId={arguments[-1]} PreemptTime=None")
    return 0


def _sinfo(cluster: Path, arguments: list[str]) -> int:
    layout = arguments[arguments.index("-o") + 1]
    print("all*|2|(null)" if "%G" in layout else "all*|infinite")
    return 0


def _srun(cluster: Path, arguments: list[str]) -> int:
    return 0


_COMMANDS = {
    "sbatch": _sbatch, "squeue": _squeue, "sacct": _sacct, "scancel": _scancel,
    "scontrol": _scontrol, "sinfo": _sinfo, "srun": _srun,
}  # fmt: skip


def install(cluster: Path, binaries: Path) -> None:
    """Make an empty cluster, and its commands in `binaries`."""
    (cluster / "jobs").mkdir(parents=True)
    binaries.mkdir()
    for command in _COMMANDS:
        path = binaries / command
        path.write_text(
            f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {cluster} {command} "$@"\n'
        )
        path.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
