"""Follow a submitted sweep to its end, and leave a record for every run that could not."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from dpeval import record
from dpeval.errors import LaunchError, RunFailed, RunInterrupted
from dpeval.launchers.schedulers.base import Scheduler, unique
from dpeval.launchers.schedulers.registry import scheduler
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking.job_spec import unmeasured
from dpeval.launchers.tracking.manifest import Manifest
from dpeval.launchers.tracking.run_status import FINAL, RunStatus, counts, look
from dpeval.record import schema
from dpeval.record.codes import Status
from dpeval.record.schema import Cause
from dpeval.util.files import write_new
from dpeval.util.plural import counted, some_of

_SILENCE_S = 600.0
"""How long a scheduler may fail to answer before waiting for it is given up."""
_LOOKS_UNTIL_LOST = 3
"""A record may need a moment to be seen through a network file system."""


def wait_for(manifest: Manifest, sweep_dir: Path, poll_s: float, console: Console) -> None:
    """Return when every run has its end.

    Raises:
        RunInterrupted: Ctrl-C; the jobs go on or were cancelled, as the user chose.
        RunFailed: a run failed without a record, and none could be written for it.
    """
    asked = scheduler(manifest.launcher)
    try:
        statuses = _until_all_ended(manifest, sweep_dir, asked, poll_s, console)
    except KeyboardInterrupt:
        _leave_or_cancel(manifest, sweep_dir, asked, console)
        raise RunInterrupted(
            f"stopped waiting; see python -m dpeval.status {shlex.quote(str(sweep_dir))}"
        ) from None
    for status in statuses:
        settle(status, sweep_dir, manifest.launcher)
    console.print(f"all runs have ended: {counts(statuses)}", markup=False)
    silent = [
        item
        for item in statuses
        if item.standing in ("failed", "oom", "lost", "interrupted")
        and not (sweep_dir / item.run.folder / record.FILE_NAME).exists()
    ]
    if silent:
        raise RunFailed(
            f"{some_of(len(silent), len(statuses), 'run')} failed and no record could be written: "
            + "; ".join(sorted({item.text for item in silent}))
        )


def _until_all_ended(
    manifest: Manifest, sweep_dir: Path, asked: Scheduler, poll_s: float, console: Console
) -> list[RunStatus]:
    told: set[int] = set()
    lost: Counter[int] = Counter()
    answered_s = time.monotonic()
    while True:
        try:
            statuses = look(manifest, sweep_dir, asked)
        except LaunchError as error:
            if time.monotonic() - answered_s > _SILENCE_S:
                raise
            console.print(f"{error}; trying again", markup=False)
            time.sleep(poll_s)
            continue
        answered_s = time.monotonic()
        lost.update(item.run.number for item in statuses if item.standing == "lost")
        ended = [
            item
            for item in statuses
            if item.standing in FINAL
            and (item.standing != "lost" or lost[item.run.number] >= _LOOKS_UNTIL_LOST)
        ]
        for item in ended:
            if item.run.number not in told:
                told.add(item.run.number)
                console.print(f"[{len(told)}/{len(statuses)}] {line(item)}", markup=False)
        if len(ended) == len(statuses):
            return statuses
        time.sleep(poll_s)


def line(status: RunStatus) -> str:
    """One run's standing as a line of plain text."""
    speed = f" {status.img_per_s:.2f} img/s" if status.img_per_s is not None else ""
    text = f" — {status.text}" if status.text else ""
    job = f" (job {status.run.job_id})" if status.run.job_id is not None else ""
    return f"{status.run.label}{job}: {status.standing}{speed}{text}"


def _leave_or_cancel(
    manifest: Manifest, sweep_dir: Path, asked: Scheduler, console: Console
) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        console.print("interrupted: the jobs go on", markup=False)
        return
    answer = ""
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        answer = input("\nLeave the jobs to go on, or cancel them? [leave/cancel] ")
    if answer.strip().lower() in ("c", "cancel"):
        ended = cancel(manifest, sweep_dir, asked)
        console.print(f"cancelled {counted(len(ended), 'job')}", markup=False)
    else:
        console.print("the jobs go on", markup=False)


def cancel(manifest: Manifest, sweep_dir: Path, asked: Scheduler) -> list[str]:
    """End the jobs of a sweep that still wait or run, and only them; return their ids.

    Raises:
        LaunchError: the scheduler does not answer or refuses.
    """
    alive = [
        item.run.job_id
        for item in look(manifest, sweep_dir, asked)
        if item.standing in ("queued", "running")
    ]
    if manifest.prepare_job_id is not None:
        state = asked.query([manifest.prepare_job_id]).get(manifest.prepare_job_id)
        if state is not None and state.state in ("queued", "running"):
            alive.insert(0, manifest.prepare_job_id)
    ids = unique(alive)
    asked.cancel(ids)
    return ids


def settle(status: RunStatus, sweep_dir: Path, launcher: str) -> None:
    """Leave a record for a run that ended and left none, so that no analysis overlooks it.

    It never replaces a record: the file is linked into place, which fails where one exists,
    also when this machine does not see it yet.
    """
    folder = sweep_dir / status.run.folder
    path = folder / record.FILE_NAME
    if status.standing in ("left out", "not sent", "queued", "running") or path.exists():
        return
    try:
        spec = job_spec.read(folder)
        made = unmeasured(
            spec,
            _STATUSES.get(status.standing, "failed"),
            Cause(kind=status.kind or "lost", message=status.text, log=status.log),
            schema.Scheduler(kind=launcher, job_id=status.run.job_id or ""),
        )
        write_new(path, made.model_dump_json() + "\n")
    except (OSError, ValueError):
        return  # a full disk or a removed folder: the status still says what happened


_STATUSES: dict[str, Status] = {"oom": "oom", "interrupted": "interrupted"}
