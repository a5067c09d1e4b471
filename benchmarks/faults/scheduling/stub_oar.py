"""OAR's commands as a stub: see :mod:`benchmarks.faults.scheduling.stub_jobs`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.faults.scheduling.stub_jobs import (
    LIVING,
    Command,
    add_jobs,
    answer,
    cancel_jobs,
    next_number,
    read_jobs,
)

_STATES = {
    "PENDING": "Waiting", "RUNNING": "Running", "SUSPENDED": "Suspended", "CANCELLED": "Error",
    "NODE_FAIL": "Error",
}  # fmt: skip
_EVENTS = {"CANCELLED": "FRAG_JOB_REQUEST", "NODE_FAIL": "PING_CHECKER_NODE_SUSPECTED"}


def _oarsub(cluster: Path, arguments: list[str]) -> int:
    script = shlex.split(arguments[-1])[-1]
    count = int(arguments[arguments.index("--array") + 1]) if "--array" in arguments else 1
    ids = [str(100 + next_number(cluster / "last")) for _ in range(count)]
    add_jobs(cluster, ids, script)
    print("[ADMISSION RULE] Modify resource description with type constraints")
    print("\n".join(f"OAR_JOB_ID={job_id}" for job_id in ids))
    return 0


def _oarstat(cluster: Path, arguments: list[str]) -> int:
    jobs = read_jobs(cluster)
    where = arguments[arguments.index("--sql") + 1] if "--sql" in arguments else ""
    if where.startswith("job_id IN"):
        asked = re.findall(r"\d+", where)
    elif where.startswith("resubmit_job_id IN"):
        asked = []
    elif where == "state = 'Running'":
        asked = [job_id for job_id, job in jobs.items() if job["state"] == "RUNNING"]
    elif "-u" in arguments:  # without ids, oarstat shows what has not ended
        asked = [job_id for job_id, job in jobs.items() if job["state"] in LIVING]
    else:
        raise SystemExit(f"the stub of oarstat does not know {shlex.join(arguments)}")
    shown = {job_id: _shown(jobs[job_id]) for job_id in asked if job_id in jobs}
    print(json.dumps(shown) if shown else "")
    return 0


def _shown(job: dict[str, Any]) -> dict[str, Any]:
    state = job["state"]
    event = _EVENTS.get(state)
    return {
        "state": _STATES.get(state, "Terminated"),
        "command": f"/bin/bash {shlex.quote(job['script'])}",
        "owner": "root",
        "assigned_network_address": ["node1"] if state != "PENDING" else [],
        "exit_code": job["exit"] << 8 if state not in LIVING else None,
        "events": [{"type": event, "description": event.lower()}] if event else [],
    }


def _oardel(cluster: Path, arguments: list[str]) -> int:
    cancel_jobs(cluster, arguments)
    return 0


COMMANDS: dict[str, Command] = {"oarsub": _oarsub, "oarstat": _oarstat, "oardel": _oardel}


if __name__ == "__main__":
    sys.exit(
        answer(
            COMMANDS,
            "DBI connect failed: could not connect to server: Connection refused",
            "oarsub: connection to the server timed out",
        )
    )
