"""The clusters of the stubs: they run the submitted jobs, and hit the first of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault, SchedulerName
from benchmarks.faults.programs import Program, Zygote, awaited, environment_of
from benchmarks.faults.scheduling import stub_oar, stub_slurm
from benchmarks.faults.scheduling.stub_jobs import LIVING, Command, install, read_jobs, write_job

_JOB_FAULTS = ("job_signal", "job_killed", "suspended", "requeued")
_CALM_S = 0.05
"""How often a cluster looks for jobs."""


@dataclass(frozen=True)
class _Stub:
    module: str
    commands: Mapping[str, Command]


_STUBS: Mapping[SchedulerName, _Stub] = {
    "slurm": _Stub(stub_slurm.__name__, stub_slurm.COMMANDS),
    "oar": _Stub(stub_oar.__name__, stub_oar.COMMANDS),
}


class Cluster:
    """Runs the jobs of one stub, one at a time, and hits the first of them."""

    def __init__(self, folder: Path, zygote: Zygote, fault: Fault) -> None:
        """Make an empty cluster in `folder` whose commands suffer `fault`."""
        self.scheduler = fault.scheduler
        self.folder, self._zygote, self._fault = folder / "cluster", zygote, fault
        self._work = folder
        stub = _STUBS[fault.scheduler]
        install(self.folder, folder / "bin", stub.module, stub.commands)
        self.fault_is(fault.kind, fault.call, fault.at)
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.environment = {**environment_of(folder), "PATH": path}
        self.programs: list[Program] = []
        self.is_hit = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def fault_is(self, kind: str, call: str = "", at: int = 1, down_s: float = 0.0) -> None:
        """From now on, the commands suffer this fault."""
        content = {"kind": kind, "call": call, "at": at}
        content |= {"down_until_s": time.time() + down_s} if down_s else {}
        (self.folder / "fault.json").write_text(json.dumps(content))

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Run no more jobs."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def living(self) -> set[str]:
        """The ids of the jobs that wait or run."""
        return {job_id for job_id, job in read_jobs(self.folder).items() if job["state"] in LIVING}

    def _run(self) -> None:
        while not self._ended.wait(_CALM_S):
            jobs = read_jobs(self.folder)
            waiting = [job_id for job_id, job in jobs.items() if job["state"] == "PENDING"]
            if waiting:
                self._carry_out(waiting[0], jobs[waiting[0]])

    def _carry_out(self, job_id: str, job: dict[str, Any]) -> None:
        submitit = Path(job["script"]).parent
        write_job(self.folder, job_id, job | {"state": "RUNNING"})
        is_oar = self._fault.scheduler == "oar"
        variables = self._oar_variables(job_id) if is_oar else _slurm_variables(job_id, job)
        program = self._zygote.start(
            self._work,
            [str(submitit)],
            self.environment | variables | {"SUBMITIT_EXECUTOR": self._fault.scheduler},
            program=("submitit.core.submission", "submitit_main"),
            log=os.path.relpath(submitit / f"{job_id}_0_log.out", self._work),
            skew_s=self._fault.skew_s if self._fault.hits_nodes else 0.0,
        )
        self.programs.append(program)
        ending = ""
        if self._fault.kind in _JOB_FAULTS and not self.is_hit:
            ending = self._hit(program)
        while not program.wait(0.1):
            if read_jobs(self.folder)[job_id]["state"] == "CANCELLED":
                program.send(signal.SIGTERM)
                program.wait(victims.LONGEST_S)
        awaited(lambda: not program.living(), 5.0)
        now = read_jobs(self.folder)[job_id]
        if now["state"] == "REQUEUED" or ending == "REQUEUED":
            now |= {"state": "PENDING", "restarts": now["restarts"] + 1}
        elif now["state"] != "CANCELLED":
            state = ending or ("COMPLETED" if program.status == 0 else "FAILED")
            now |= {"state": state, "exit": max(program.status or 0, 0)}
        write_job(self.folder, job_id, now | {"ended_s": time.time()})

    def _oar_variables(self, job_id: str) -> dict[str, str]:
        nodes = self.folder / "nodes"
        nodes.write_text("node1\n")
        return {"OAR_JOB_ID": job_id, "OAR_ARRAY_ID": job_id, "OAR_NODEFILE": str(nodes)}

    def _hit(self, program: Program) -> str:
        """Let the fault happen to a running job; return the state that it ends in, if known."""
        fault = self._fault
        program.wait(fault.after_s)
        if not program.is_running:
            return ""
        self.is_hit = True
        if fault.kind == "job_signal":
            program.send(signal.Signals[fault.error])
            return ""
        if fault.kind == "suspended":
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for process in program.living():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, number)
                if number == signal.SIGSTOP:
                    time.sleep(fault.pause_s)
            return ""
        program.kill_all()
        return "REQUEUED" if fault.kind == "requeued" else "NODE_FAIL"


def _slurm_variables(job_id: str, job: Mapping[str, Any]) -> dict[str, str]:
    array, _, task = job_id.partition("_")
    found = {
        "SLURM_JOB_ID": array, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "node1", "SLURM_RESTART_COUNT": str(job["restarts"]),
    }  # fmt: skip
    return found | ({"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task} if task else {})
