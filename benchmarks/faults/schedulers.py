"""Faults of a scheduler: commands that fail, jobs that are ended, and what the manifest knows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault
from benchmarks.faults.invariants import (
    TRACEBACK,
    no_process,
    no_traceback,
    run_again,
    run_numbers,
)
from benchmarks.faults.programs import Program, Zygote, awaited, environment_of
from benchmarks.faults.stub_slurm import LIVING, install, read_jobs, write_job
from dpeval import record
from dpeval.launchers.tracking.manifest import FILE_NAME

_JOB_FAULTS = ("job_signal", "job_killed", "suspended", "requeued")
_ALLOWED = {0, 1, 2, 130}
_DOWN_S = 2.0


class Cluster:
    """Runs the jobs of one stub, one at a time, and hits the first of them."""

    def __init__(self, folder: Path, zygote: Zygote, fault: Fault) -> None:
        """Make an empty cluster in `folder` whose commands suffer `fault`."""
        self.folder, self._zygote, self._fault = folder / "cluster", zygote, fault
        self._work = folder
        install(self.folder, folder / "bin")
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
        while not self._ended.wait(0.05):
            jobs = read_jobs(self.folder)
            waiting = [job_id for job_id, job in jobs.items() if job["state"] == "PENDING"]
            if waiting:
                self._carry_out(waiting[0], jobs[waiting[0]])

    def _carry_out(self, job_id: str, job: dict[str, Any]) -> None:
        submitit = Path(job["script"]).parent
        write_job(self.folder, job_id, job | {"state": "RUNNING"})
        array, _, task = job_id.partition("_")
        variables = {
            "SUBMITIT_EXECUTOR": "slurm",  # submitit's script for sbatch sets it
            "SLURM_JOB_ID": array, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
            "SLURM_JOB_NODELIST": "node1", "SLURM_RESTART_COUNT": str(job["restarts"]),
        }  # fmt: skip
        if task:
            variables |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
        program = self._zygote.start(
            self._work,
            [str(submitit)],
            self.environment | variables,
            program=("submitit.core.submission", "submitit_main"),
            log=os.path.relpath(submitit / f"{job_id}_0_log.out", self._work),
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
            now |= {"state": state, "exit": f"{max(program.status or 0, 0)}:0"}
        write_job(self.folder, job_id, now)

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


def carry_out(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[str]:
    """Let a sweep on a stub of SLURM suffer `fault`; yield what is lost or left."""
    cluster = Cluster(folder, zygote, fault)
    waits = fault.number % 2 == 0 or fault.kind == "restart"
    victim = victims.start(
        zygote, folder, fault, environment=cluster.environment,
        overrides=[
            "hydra/launcher=slurm", f"hydra.launcher.wait={str(waits).lower()}",
            f"hydra.launcher.pack={str(fault.number % 3 == 0).lower()}",
            "hydra.launcher.poll_s=0.3",
        ] + (["sweep.order=auto"] if fault.sequential else []),
    )  # fmt: skip
    if waits and fault.kind != "changed_job":
        cluster.start()
    if fault.kind == "restart":
        awaited(lambda: cluster.living, 30.0)
        cluster.fault_is("restart", down_s=_DOWN_S)
    if fault.kind == "changed_job":
        awaited(lambda: cluster.living or not victim.program.is_running, 60.0)
        for path in victim.sweep.glob("*/job.json"):
            path.write_text(path.read_text().replace("calibrated_model", "another_model"))
        cluster.start()
    ended = victims.finish(victim)
    cluster.fault_is("")
    try:
        yield from _after(fault, victim, cluster, zygote, ended=ended)
    finally:
        cluster.stop()


def _after(
    fault: Fault, victim: victims.Victim, cluster: Cluster, zygote: Zygote, *, ended: bool
) -> Iterator[str]:
    if not ended:
        yield "it hung"
        return
    yield from no_process(victim.program)
    yield from no_traceback(victim.program)
    allowed = {-9} if fault.kind == "killed" else _ALLOWED
    if victim.program.status not in allowed | ({0} if fault.at > 1 else set()):
        yield f"exit status {victim.program.status}: {victim.program.output.strip()[-200:]}"
    if not (victim.sweep / FILE_NAME).exists():
        if read_jobs(cluster.folder):
            yield "jobs without a manifest"
        return
    yield from _told(victim, cluster, zygote)  # reconciles the manifest
    listed = {run["job_id"] for run in _runs(victim.sweep)}
    strays = cluster.living - listed
    said = (victim.folder / "log-status-0").read_text()
    for job_id in strays:  # the status says how to end them
        write_job(
            cluster.folder, job_id, read_jobs(cluster.folder)[job_id] | {"state": "CANCELLED"}
        )
    if strays and "measure none of its runs" not in said:
        yield f"jobs that the manifest does not list: {' '.join(sorted(strays))}"
    if not cluster._thread.is_alive():
        cluster.start()
    if not awaited(lambda: not cluster.living, 2 * victims.LONGEST_S):
        yield "jobs did not end"
        return
    for program in cluster.programs:
        yield from no_process(program)
        if TRACEBACK in program.output:
            yield f"a traceback in a job: {program.output.strip().splitlines()[-1][:150]}"
    yield from _told(victim, cluster, zygote, final=True)
    yield from _resumed(victim, cluster, zygote)


def _runs(sweep: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((sweep / FILE_NAME).read_bytes())["runs"]
    return runs


def _told(
    victim: victims.Victim, cluster: Cluster, zygote: Zygote, *, final: bool = False
) -> Iterator[str]:
    """What ``dpeval.status`` says; when all has ended, every run that was sent has a record."""
    program = zygote.start(
        victim.folder, [str(victim.sweep)], cluster.environment,
        program=("dpeval.status", "main"), log=f"log-status-{int(final)}",
    )  # fmt: skip
    if not program.wait(60.0):
        program.kill_all()
        yield "dpeval.status hung"
        return
    yield from no_traceback(program)
    if not final:
        return
    if program.status != 0:
        yield f"status {program.status} of dpeval.status: {program.output.strip()[-300:]}"
    for run in _runs(victim.sweep):
        path = victim.sweep / run["folder"] / record.FILE_NAME
        if run["job_id"] is None:
            continue
        if not path.exists() and "lost" not in program.output:
            yield f"run {run['number']} of job {run['job_id']} has no record"
        elif path.exists():
            made = record.read(path)
            if made.cause is not None and made.cause.kind == "bug":
                yield f"run {run['number']}: a bug: {made.cause.message}"


def _resumed(victim: victims.Victim, cluster: Cluster, zygote: Zygote) -> Iterator[str]:
    """A sweep that resumes this one sends what is missing, once."""
    missing = run_numbers(victim.sweep)
    if not missing:
        return
    before = set(read_jobs(cluster.folder))
    launcher = ["hydra/launcher=slurm", "hydra.launcher.pack=false", "hydra.launcher.poll_s=0.3"]
    program = yield from run_again(zygote, victim, launcher, cluster.environment)
    if program is None:
        return
    if program.status != 0:
        yield f"resumed with status {program.status}: {program.output.strip()[-200:]}"
    sent = set(read_jobs(cluster.folder)) - before
    if len(sent) != len(missing):
        yield f"{len(sent)} jobs for {len(missing)} missing runs"
