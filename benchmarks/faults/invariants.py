"""What holds after every fault."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Collection, Generator, Iterator
from pathlib import Path

import psutil

from benchmarks.faults import victim as victims
from benchmarks.faults.drawing import Fault
from benchmarks.faults.findings import Finding, doubled, hang, lost, orphan, other
from benchmarks.faults.programs import Program, Zygote, awaited, environment_of
from benchmarks.faults.victim import Victim
from dpeval import record
from dpeval.commands.sweep_status import looked_at
from dpeval.errors import DpevalError
from dpeval.launchers.tracking.manifest import FILE_NAME
from dpeval.launchers.tracking.run_status import FINAL, Standing

LEFT_S = 10.0
"""No process of the sweep lives this long after its end."""
STOPPED_S = 10.0
"""A sweep that is told to stop has ended by then."""
NEXT_RUN_S = 20.0
"""The same, if it still has runs to measure; they take about 3 s on an idle machine."""
AGAIN = "again"
"""The folder of the sweep that resumes, in the victim's."""
TRACEBACK = "Traceback (most recent call last)"


def violations(
    zygote: Zygote, victim: Victim, fault: Fault, *, hit: bool, ended: bool
) -> Iterator[Finding]:
    """What the sweep has left that it should not have.

    Args:
        zygote: forks the sweep that resumes it.
        victim: the sweep, after its end.
        fault: what happened to it.
        hit: whether the fault was injected before the sweep ended by itself.
        ended: whether it ended in time.
    """
    if not ended:
        yield hang("it hung")
        return
    yield from no_process(victim.program)
    if hit and victim.hit_s:
        yield from _in_time(victim, fault)
    yield from no_traceback(victim.program)
    yield from _exit_status(victim, fault, hit=hit)
    yield from records(victim.sweep, _allowed(fault))
    yield from files_left(victim, fault)
    yield from resumed(zygote, victim)


def no_process(program: Program) -> Iterator[Finding]:
    """Nothing that `program` has started lives on."""
    if awaited(lambda: not program.living(), LEFT_S):
        return
    words = []
    for process in program.living():
        with contextlib.suppress(psutil.Error):
            words.append(f"{process.pid} {' '.join(process.cmdline())[-60:]}")
            process.kill()
    yield orphan(f"processes left: {', '.join(words)}")


def no_traceback(program: Program) -> Iterator[Finding]:
    if TRACEBACK in program.output:
        yield other(f"a traceback, ending {program.output.strip().splitlines()[-1][:150]}")


def _in_time(victim: Victim, fault: Fault) -> Iterator[Finding]:
    if fault.kind in ("PAUSE", "frozen") or fault.target == "helper":
        return  # it goes on, or starts its helper anew: see LONGEST_S
    limit_s = STOPPED_S if fault.stops or fault.kills else NEXT_RUN_S
    took_s = victim.ended_s - victim.hit_s
    if took_s > limit_s:
        yield hang(f"ended {took_s:.0f} s after the fault")
    if fault.target == "rank":
        began_s = time.time() - (time.monotonic() - victim.hit_s)
        told_s = [path.stat().st_mtime for path in _records(victim.sweep) if not _is_ok(path)]
        if told_s and min(told_s) > began_s + STOPPED_S:
            yield hang(f"the run ended {min(told_s) - began_s:.0f} s after its rank")


def _exit_status(victim: Victim, fault: Fault, *, hit: bool) -> Iterator[Finding]:
    status = victim.program.status
    allowed = {0}
    if fault.stops and (hit or fault.call):
        allowed = {0, 130}  # it may come when all has been measured
        if fault.phase == "import":  # or before Python can handle it
            allowed.add(-signal.Signals[fault.kind])
    elif fault.kills and (hit or fault.call):
        allowed = {-9} if hit and not fault.call else {0, -9}
    elif fault.target in ("files", "command") and fault.kind != "frozen":
        allowed = {0, 1, 2}
        if fault.kind == "cpu_limit":
            allowed |= {130, -signal.SIGXCPU}
    elif hit and fault.kind not in ("PAUSE", "frozen"):
        allowed = {0, 1}
    if status not in allowed:
        words = f"exit status {status}, not one of {sorted(allowed)}"
        yield other(f"{words}: {_last_line(victim.program)}")


def _allowed(fault: Fault) -> Collection[Standing]:
    """The statuses that runs may have after `fault`: nobody is to be blamed for anything else."""
    allowed: tuple[Standing, ...] = tuple(FINAL)
    if fault.kind in ("PAUSE", "frozen"):
        allowed = ("ok",)
    elif fault.stops:
        allowed = ("ok", "interrupted", "not submitted")
    elif fault.kills:  # a sitting keeps what it has measured so far: "interrupted"
        allowed = ("ok", "lost", "interrupted", "not submitted")
    elif fault.target in ("rank", "helper"):
        allowed = ("ok", "failed")
    return allowed


def _last_line(program: Program) -> str:
    lines = program.output.strip().splitlines()
    return lines[-1][:200] if lines else "(no output)"


def records(sweep: Path, allowed: Collection[Standing] = FINAL) -> Iterator[Finding]:
    """Every run that was started has one final record, or none was started.

    Args:
        sweep: a sweep that has ended.
        allowed: the statuses that its runs may have.
    """
    if not (sweep / FILE_NAME).exists():
        if _records(sweep):
            yield lost("records without a manifest")
        with contextlib.suppress(DpevalError):
            looked_at(sweep)  # says that there is no sweep, and removes what a killed writer left
        return
    try:
        found, strays = looked_at(sweep)
    except DpevalError as error:
        yield lost(f"no status: {error}")
        return
    if strays:
        yield orphan(strays)
    known = {sweep / status.run.folder / record.FILE_NAME for status in found}
    for path in set(_records(sweep)) - known:
        yield doubled(f"{path.relative_to(sweep)} is of no run of the sweep")
    for status in found:
        folder = sweep / status.run.folder
        if status.standing not in allowed:
            words = f"run {status.run.number} is {status.standing} after the sweep's end"
            yield lost(words) if status.standing not in FINAL else other(words)
        if not (folder / "job.json").exists():
            continue
        try:
            made = record.read(folder / record.FILE_NAME)
        except DpevalError as error:
            if status.standing not in ("failed", "lost"):
                yield lost(f"run {status.run.number} was started and has no record: {error}")
            continue
        if made.cause is not None and made.cause.kind == "bug":
            yield other(f"run {status.run.number}: a bug: {made.cause.message}")


def files_left(victim: Victim, fault: Fault) -> Iterator[Finding]:
    """No temporary file of the sweep is left."""
    left = [str(path.relative_to(victim.folder)) for path in victim.folder.rglob("*.tmp")]
    if left:
        yield orphan(f"temporary files: {', '.join(left)}")
    names = [path.name for path in (victim.folder / "tmp").iterdir()]
    kept = [name for name in names if not name.startswith("torchinductor_")]  # torch's own cache
    saved = [name for name in kept if name.startswith("dpeval-record-")]
    if set(kept) - set(saved) and not fault.kills:
        yield orphan(f"left in the temporary folder: {', '.join(kept)}")
    if saved and fault.target != "files":
        yield other(f"a record was not written to its folder: {', '.join(saved)}")


def run_again(
    zygote: Zygote, victim: Victim, launcher: list[str], environment: dict[str, str]
) -> Generator[Finding, None, Program | None]:
    """Run the sweep that resumes the victim's, and yield what is wrong with how it ends.

    Args:
        zygote: starts it.
        victim: what it resumes; it writes to :data:`AGAIN` in the victim's folder.
        launcher: overrides that choose the launcher.
        environment: the program's.

    Returns:
        None: it hung.
    """
    arguments = [
        *victim.words, f"sweep.resume={_relative(victim)}", f"hydra.sweep.dir={AGAIN}",
        *launcher,
    ]  # fmt: skip
    program = zygote.start(victim.folder, arguments, environment, log="log-again")
    if not program.wait(victims.LONGEST_S):
        program.kill_all()
        yield hang("the sweep that resumes it hung")
        return None
    yield from no_process(program)
    yield from no_traceback(program)
    return program


def _relative(victim: Victim) -> Path:
    return victim.sweep.relative_to(victim.folder)


def resumed(zygote: Zygote, victim: Victim) -> Iterator[Finding]:
    """A sweep that resumes this one measures what is missing."""
    missing = _unmeasured(victim.sweep)
    if not missing:
        return
    program = yield from run_again(zygote, victim, [], environment_of(victim.folder))
    if program is None:
        return
    if program.status != 0:
        yield other(f"resumed with status {program.status}: {_last_line(program)}")
        return
    again = victim.folder / AGAIN
    measured = {_identity(path) for path in _records(again) if _is_ok(path)}
    if missing - measured:
        count = f"{len(missing - measured)} of {len(missing)} runs"
        yield lost(f"{count} were not measured by the sweep that resumes it")
    made = len(_records(again))
    if made > len(missing):
        yield doubled(f"{made} runs measured again, and {len(missing)} were missing")


def _unmeasured(sweep: Path) -> set[str]:
    """The identities of a sweep's runs that have no complete record."""
    try:
        manifest = json.loads((sweep / FILE_NAME).read_bytes())
    except (OSError, ValueError):
        return set()
    return {
        run["identity"]
        for run in manifest["runs"]
        if not _is_ok(sweep / run["folder"] / record.FILE_NAME)
    }


def run_numbers(sweep: Path) -> set[int]:
    """The numbers of a sweep's runs that have no complete record."""
    manifest = json.loads((sweep / FILE_NAME).read_bytes())
    return {
        run["number"]
        for run in manifest["runs"]
        if not _is_ok(sweep / run["folder"] / record.FILE_NAME)
    }


def _is_ok(path: Path) -> bool:
    try:
        return record.read(path).status == "ok"
    except DpevalError:
        return False


def _records(sweep: Path) -> list[Path]:
    return list(sweep.rglob(record.FILE_NAME))


def _identity(path: Path) -> str:
    return record.read(path).identity
