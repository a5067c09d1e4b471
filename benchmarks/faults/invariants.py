"""What holds after every fault."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

from benchmarks.faults.drawing import Fault
from benchmarks.faults.victim import Victim, left_of
from dpeval import record
from dpeval.commands.sweep_status import statuses_of
from dpeval.errors import DpevalError
from dpeval.launchers.tracking.manifest import FILE_NAME
from dpeval.launchers.tracking.run_status import FINAL

LEFT_S = 10.0
"""No process of the sweep lives this long after its end."""


def violations(victim: Victim, fault: Fault, *, hit: bool, ended: bool) -> Iterator[str]:
    """What the sweep has left that it should not have.

    Args:
        victim: the sweep, after its end.
        fault: what happened to it.
        hit: whether the fault was injected before the sweep ended by itself.
        ended: whether it ended in time.
    """
    if not ended:
        yield "it hung"
        return
    yield from _processes(victim)
    if "Traceback (most recent call last)" in victim.err:
        yield "a traceback"
    yield from _exit_status(victim, fault, hit=hit)
    yield from _records(victim)
    yield from _files(victim, fault)


def _processes(victim: Victim) -> Iterator[str]:
    deadline_s = time.monotonic() + LEFT_S
    while left := left_of(victim):
        if time.monotonic() > deadline_s:
            yield f"processes left: {', '.join(str(process.pid) for process in left)}"
            for process in left:
                process.kill()
            return
        time.sleep(0.1)


def _exit_status(victim: Victim, fault: Fault, *, hit: bool) -> Iterator[str]:
    status = victim.process.returncode
    allowed = {0}
    if hit and fault.stops:
        allowed = {0, 130}  # it may come when all has been measured
        if fault.phase == "import":  # or before Python can handle it
            allowed.add(-signal.Signals[fault.kind])
    elif hit and fault.target in ("parent", "group") and fault.kind == "SIGKILL":
        allowed = {-9}
    elif fault.target == "files":
        allowed = {0, 1, 2}
    elif hit and fault.kind != "PAUSE":
        allowed = {0, 1}
    if status not in allowed:
        yield f"exit status {status}, not one of {sorted(allowed)}"


def _records(victim: Victim) -> Iterator[str]:
    """Every run that was started has one final record, or none was started."""
    if not (victim.sweep / FILE_NAME).exists():
        if list(victim.folder.rglob(record.FILE_NAME)):
            yield "records without a manifest"
        return
    try:
        found = statuses_of(victim.sweep)
    except DpevalError as error:
        yield f"no status: {error}"
        return
    for status in found:
        folder = victim.sweep / status.run.folder
        if status.standing not in FINAL:
            yield f"run {status.run.number} is {status.standing} after the sweep's end"
        if not (folder / "job.json").exists():
            continue
        try:
            made = record.read(folder / record.FILE_NAME)
        except DpevalError as error:
            yield f"run {status.run.number} was started and has no record: {error}"
            continue
        if made.cause is not None and made.cause.kind == "bug":
            yield f"run {status.run.number}: a bug: {made.cause.message}"


def _files(victim: Victim, fault: Fault) -> Iterator[str]:
    left = [str(path.relative_to(victim.folder)) for path in victim.folder.rglob("*.tmp")]
    if left:
        yield f"temporary files: {', '.join(left)}"
    killed = fault.kind == "SIGKILL" and fault.target in ("parent", "group")
    names = [path.name for path in (victim.folder / "tmp").iterdir()]
    kept = [name for name in names if not name.startswith("torchinductor_")]  # torch's own cache
    if kept and not killed and fault.tier != "files":
        yield f"left in the temporary folder: {', '.join(kept)}"
