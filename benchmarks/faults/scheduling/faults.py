"""Faults of a scheduler: commands that fail, jobs that are ended, and what the manifest knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault
from benchmarks.faults.findings import Finding, doubled, hang, lost, orphan, other
from benchmarks.faults.invariants import (
    TRACEBACK,
    files_left,
    no_process,
    no_traceback,
    run_again,
    run_numbers,
)
from benchmarks.faults.programs import Zygote, awaited
from benchmarks.faults.scheduling.cluster import Cluster
from benchmarks.faults.scheduling.stub_jobs import read_jobs, write_job
from dpeval import record
from dpeval.launchers.tracking.manifest import FILE_NAME

_ALLOWED = {0, 1, 2, 130}
_DOWN_S = 2.0
_WHILE_WAITING = ("restart", "accounting_restart", "late_accounting")
"""What happens to a sweep only while it waits for its jobs."""


def carry_out(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """Let a sweep on a stub suffer `fault`; yield what is lost or left."""
    cluster = Cluster(folder, zygote, fault)
    waits = fault.number % 2 == 0 or fault.kind in _WHILE_WAITING
    victim = victims.start(
        zygote, folder, fault, environment=cluster.environment,
        skew_s=0.0 if fault.hits_nodes else fault.skew_s,
        overrides=[
            f"hydra/launcher={fault.scheduler}", f"hydra.launcher.wait={str(waits).lower()}",
            f"hydra.launcher.pack={str(fault.number % 3 == 0).lower()}",
            "hydra.launcher.poll_s=0.3",
        ] + (["sweep.order=auto"] if fault.sequential else []),
    )  # fmt: skip
    if waits and fault.kind != "changed_job":
        cluster.start()
    if fault.kind in ("restart", "accounting_restart"):
        awaited(lambda: cluster.living or not victim.program.is_running, 30.0)
        only = "sacct" if fault.kind == "accounting_restart" else ""
        cluster.fault_is(fault.kind, only, down_s=_DOWN_S)
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
) -> Iterator[Finding]:
    if not ended:
        yield hang("it hung")
        return
    yield from no_process(victim.program)
    yield from no_traceback(victim.program)
    allowed = {-9} if fault.kind == "killed" else _ALLOWED
    if victim.program.status not in allowed | ({0} if fault.at > 1 else set()):
        words = f"exit status {victim.program.status}"
        yield other(f"{words}: {victim.program.output.strip()[-200:]}")
    if not (victim.sweep / FILE_NAME).exists():
        if read_jobs(cluster.folder):
            yield orphan("jobs without a manifest")
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
        yield orphan(f"jobs that the manifest does not list: {' '.join(sorted(strays))}")
    if not cluster._thread.is_alive():
        cluster.start()
    if not awaited(lambda: not cluster.living, 2 * victims.LONGEST_S):
        yield hang("jobs did not end")
        return
    for program in cluster.programs:
        yield from no_process(program)
        if TRACEBACK in program.output:
            last = program.output.strip().splitlines()[-1][:150]
            yield other(f"a traceback in a job: {last}")
    yield from files_left(victim, fault)
    yield from _told(victim, cluster, zygote, final=True)
    yield from _resumed(victim, cluster, zygote)


def _runs(sweep: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((sweep / FILE_NAME).read_bytes())["runs"]
    return runs


def _told(
    victim: victims.Victim, cluster: Cluster, zygote: Zygote, *, final: bool = False
) -> Iterator[Finding]:
    """What ``dpeval.status`` says; when all has ended, every run that was sent has a record."""
    program = zygote.start(
        victim.folder, [str(victim.sweep)], cluster.environment,
        program=("dpeval.status", "main"), log=f"log-status-{int(final)}",
    )  # fmt: skip
    if not program.wait(60.0):
        program.kill_all()
        yield hang("dpeval.status hung")
        return
    yield from no_traceback(program)
    if not final:
        return
    if program.status != 0:
        words = f"status {program.status} of dpeval.status"
        yield other(f"{words}: {program.output.strip()[-300:]}")
    for run in _runs(victim.sweep):
        path = victim.sweep / run["folder"] / record.FILE_NAME
        if run["job_id"] is None:
            continue
        if not path.exists() and "lost" not in program.output:
            yield lost(f"run {run['number']} of job {run['job_id']} has no record")
        elif path.exists():
            made = record.read(path)
            if made.cause is not None and made.cause.kind == "bug":
                yield other(f"run {run['number']}: a bug: {made.cause.message}")


def _resumed(victim: victims.Victim, cluster: Cluster, zygote: Zygote) -> Iterator[Finding]:
    """A sweep that resumes this one sends what is missing, once."""
    missing = run_numbers(victim.sweep)
    if not missing:
        return
    before = set(read_jobs(cluster.folder))
    launcher = [
        f"hydra/launcher={cluster.scheduler}", "hydra.launcher.pack=false",
        "hydra.launcher.poll_s=0.3",
    ]  # fmt: skip
    program = yield from run_again(zygote, victim, launcher, cluster.environment)
    if program is None:
        return
    if program.status != 0:
        words = f"resumed with status {program.status}"
        yield other(f"{words}: {program.output.strip()[-200:]}")
    sent = set(read_jobs(cluster.folder)) - before
    if len(sent) != len(missing):
        words = f"{len(sent)} jobs for {len(missing)} missing runs"
        yield lost(words) if len(sent) < len(missing) else doubled(words)
