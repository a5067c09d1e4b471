"""SLURM's commands as a stub: see :mod:`benchmarks.faults.scheduling.stub_jobs`."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from benchmarks.faults.scheduling.stub_jobs import (
    LATE_S,
    LIVING,
    Command,
    add_jobs,
    answer,
    cancel_jobs,
    is_late,
    next_number,
    read_jobs,
    write_job,
)


def _sbatch(cluster: Path, arguments: list[str]) -> int:
    script = Path(arguments[-1])
    number = 100 + next_number(cluster / "last")
    array = re.search(r"^#SBATCH --array=0-(\d+)", script.read_text(), re.MULTILINE)
    ids = [f"{number}_{at}" for at in range(int(array[1]) + 1)] if array else [str(number)]
    add_jobs(cluster, ids, str(script))
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
            lags = is_late(cluster) and time.time() < job.get("ended_s", 0.0) + LATE_S
            print(f"{job_id}|{'RUNNING' if lags else job['state']}|{job['exit']}:0|node1")
    return 0


def _scancel(cluster: Path, arguments: list[str]) -> int:
    cancel_jobs(cluster, arguments)
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


COMMANDS: dict[str, Command] = {
    "sbatch": _sbatch, "squeue": _squeue, "sacct": _sacct, "scancel": _scancel,
    "scontrol": _scontrol, "sinfo": _sinfo, "srun": _srun,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(
        answer(
            COMMANDS,
            "error: Unable to contact slurm controller (connect failure)",
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        )
    )
