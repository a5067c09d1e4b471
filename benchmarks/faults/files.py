"""Faults of files: small disks, refused calls, and what somebody damaged."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault
from benchmarks.faults.findings import Finding, hang, lost, other
from benchmarks.faults.invariants import (
    TRACEBACK,
    no_process,
    no_traceback,
    resumed,
    violations,
)
from benchmarks.faults.programs import Zygote
from benchmarks.faults.zygote import Failing
from dpeval import record
from dpeval.commands.sweep_status import looked_at
from dpeval.launchers.tracking.manifest import FILE_NAME

_STRACE_CALLS = {
    "fsync": "fsync", "rename": "rename,renameat,renameat2", "link": "link,linkat",
    "openat": "openat",
}  # fmt: skip


def carry_out(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """Let a sweep in `folder` suffer `fault`; yield what it leaves that it should not have."""
    if fault.kind in ("tmpfs", "inodes", "tmpdir"):
        yield from _on_small_disk(fault, folder, zygote)
    elif fault.kind.startswith("strace"):
        yield from _traced(fault, folder, zygote)
    elif fault.kind.startswith("damaged"):
        yield from _damaged(fault, folder, zygote)
    elif fault.kind == "size_limit":
        limits = {"RLIMIT_FSIZE": fault.size * 1024}
        victim = victims.start(zygote, folder, fault, limits=limits)
        ended = victims.finish(victim)
        yield from violations(zygote, victim, fault, hit=False, ended=ended)
    else:
        signal = "SIGKILL" if fault.kind == "leftover" else ""
        failing = Failing(fault.call, fault.at, error=fault.error, signal=signal)
        victim = victims.start(zygote, folder, fault, failing=failing)
        ended = victims.finish(victim)
        yield from violations(zygote, victim, fault, hit=False, ended=ended)
        yield from _measured(victim)


def _measured(victim: victims.Victim) -> Iterator[Finding]:
    """What was measured is in a record, in a second place, or on the terminal."""
    output = victim.program.output
    for number in range(victims.RUNS):
        path = victim.sweep / str(number) / record.FILE_NAME
        shown = f"[{number + 1}/{victims.RUNS}]"
        was_measured = any(shown in line and "img/s" in line for line in output.splitlines())
        elsewhere = "it was saved as" in output or "here it is:" in output
        if was_measured and not path.exists() and not elsewhere:
            yield lost(f"run {number} was measured, and its record is nowhere")


def _on_small_disk(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """On a file system of some KiB or with few inodes, for the sweep or for temporary files."""
    disk = folder / "disk"
    disk.mkdir()
    limit = f"nr_inodes={fault.size}" if fault.kind == "inodes" else f"size={fault.size}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)], check=True)
    try:
        environment = {"TMPDIR": str(disk)} if fault.kind == "tmpdir" else None
        sweep = None if fault.kind == "tmpdir" else disk / "sweep"
        victim = victims.start(zygote, folder, fault, environment=environment, sweep=sweep)
        ended = victims.finish(victim)
        yield from violations(zygote, victim, fault, hit=False, ended=ended)
        yield from _measured(victim)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _traced(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """The kernel itself refuses one call of the sweep's process, or every one from it on, or kills
    the process at it."""
    victim = victims.start(zygote, folder, fault, traced=True)
    more = "+" if fault.number % 2 and fault.call != "openat" else ""
    what = f"error={fault.error}" if fault.error else "signal=SIGKILL"
    inject = f"inject={_STRACE_CALLS[fault.call]}:{what}:when={fault.at}{more}"
    tracer = subprocess.Popen(
        ["strace", "-q", "-o", os.devnull, "-e", inject, "-p", str(victim.program.pid)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    ended = victims.finish(victim)
    with contextlib.suppress(subprocess.TimeoutExpired):
        tracer.wait(5.0)
    tracer.kill()
    tracer.wait()
    found = list(violations(zygote, victim, fault, hit=False, ended=ended))
    if fault.call == "openat":
        # Any file of Python's own may be the one: what it makes of that is its own affair.
        found = [one for one in found if one.kind != "other"]
    yield from found
    if not fault.kills:
        yield from _measured(victim)


def _damaged(fault: Fault, folder: Path, zygote: Zygote) -> Iterator[Finding]:
    """A file of a finished sweep is damaged: it is told, and what it held is measured again."""
    victim = victims.start(zygote, folder, fault)
    if not victims.finish(victim):
        yield hang("it hung")
        return
    yield from no_process(victim.program)
    yield from no_traceback(victim.program)
    name = {"damaged_manifest": FILE_NAME, "damaged_job": "0/job.json"}.get(
        fault.kind, f"0/{record.FILE_NAME}"
    )
    path = victim.sweep / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * (fault.number % 4) // 4])
    for module in ("status", "cancel"):
        program = zygote.start(
            folder, [str(victim.sweep)], dict(os.environ), program=(f"dpeval.{module}", "main"),
            log=f"log-{module}",
        )  # fmt: skip
        if not program.wait(60.0):
            program.kill_all()
            yield hang(f"dpeval.{module} hung")
        if TRACEBACK in program.output:
            yield other(f"a traceback of dpeval.{module}")
        if program.status not in (0, 1, 2):
            yield other(f"dpeval.{module} ended with status {program.status}")
    if fault.kind == "damaged_record":
        broken = [item for item in looked_at(victim.sweep)[0] if item.standing != "ok"]
        if [item.run.number for item in broken] != [0]:
            yield other("the damaged record does not show in the status")
    yield from resumed(zygote, victim)
