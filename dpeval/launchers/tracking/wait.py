"""Wait for a submitted sweep, and write a record for every run that ended without one."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dpeval import record
from dpeval.errors import LaunchError, RunFailed, RunInterrupted
from dpeval.launchers.schedulers.base import Tracker, unique
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking.job_spec import unmeasured
from dpeval.launchers.tracking.manifest import LOCAL, Manifest
from dpeval.launchers.tracking.reconcile import reconciled
from dpeval.launchers.tracking.run_status import FINAL, RunStatus, Standing, counts, run_statuses
from dpeval.launchers.tracking.tracker import tracker
from dpeval.record import schema
from dpeval.record.codes import Status
from dpeval.record.schema import Cause
from dpeval.util.display.plural import counted, some_of
from dpeval.util.files import write_new

_SILENCE_S = 600.0
"""How long a scheduler may fail to answer before waiting ends with its error."""
_QUERIES_UNTIL_LOST = 3
"""A record may take a moment to appear on a network file system."""
_QUERY_SHARE = 0.05
"""The next query waits for this share of the time that nothing has changed …"""
_QUERY_MOST_S = 60.0
"""… but no longer: thousands of users ask one controller."""


def wait_for(manifest: Manifest, sweep_dir: Path, poll_s: float, console: Console) -> None:
    """Return when every run has ended.

    Args:
        manifest: of the sweep.
        sweep_dir: the sweep's folder.
        poll_s: seconds between two queries, at least; see :func:`pause_s`.
        console: prints a line for every run that ends.

    Raises:
        RunInterrupted: Ctrl-C; the jobs continue or were cancelled, as the user chose.
        RunFailed: a run failed without a record, and none could be written for it.
        LaunchError: the scheduler has not answered for ten minutes.
    """
    own_scheduler = tracker(manifest)
    try:
        statuses = _until_all_ended(manifest, sweep_dir, own_scheduler, poll_s, console)
    except KeyboardInterrupt:
        _keep_or_cancel(manifest, sweep_dir, own_scheduler, console)
        raise RunInterrupted(
            f"stopped waiting; status: python -m dpeval.status {shlex.quote(str(sweep_dir))}"
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
    manifest: Manifest, sweep_dir: Path, own_scheduler: Tracker, poll_s: float, console: Console
) -> list[RunStatus]:
    printed: set[int] = set()
    lost: Counter[int] = Counter()
    answered_s = changed_s = time.monotonic()
    before: list[Standing] = []
    while True:
        try:
            whole = reconciled(manifest, sweep_dir, own_scheduler)
            manifest = whole.manifest
            statuses = run_statuses(manifest, sweep_dir, own_scheduler)
            if whole.strays:
                own_scheduler.cancel(whole.strays)
                gone = f"ended because they measure none of its runs: {' '.join(whole.strays)}"
                console.print(f"jobs of this sweep {gone}", markup=False)
        except LaunchError as error:
            if time.monotonic() - answered_s > _SILENCE_S:
                raise
            wait_s = pause_s(poll_s, time.monotonic() - answered_s)
            console.print(f"{error}; asking again in {wait_s:.0f} s", markup=False)
            time.sleep(wait_s)
            continue
        answered_s = time.monotonic()
        now = [item.standing for item in statuses]
        if now != before:
            before, changed_s = now, answered_s
        lost.update(item.run.number for item in statuses if item.standing == "lost")
        ended = [
            item
            for item in statuses
            if item.standing in FINAL
            and (item.standing != "lost" or lost[item.run.number] >= _QUERIES_UNTIL_LOST)
        ]
        for item in ended:
            if item.run.number not in printed:
                printed.add(item.run.number)
                console.print(f"[{len(printed)}/{len(statuses)}] {line(item)}", markup=False)
        if len(ended) == len(statuses):
            return statuses
        time.sleep(pause_s(poll_s, time.monotonic() - changed_s))


def pause_s(least_s: float, unchanged_s: float) -> float:
    """How long to wait until the scheduler is asked again, s.

    Args:
        least_s: the shortest pause, s.
        unchanged_s: for how long nothing has changed, or it has not answered, s.
    """
    return max(least_s, min(_QUERY_SHARE * unchanged_s, _QUERY_MOST_S))


def line(status: RunStatus) -> str:
    """The status of one run as a line of plain text."""
    speed = f" {status.img_per_s:.2f} {status.unit}/s" if status.img_per_s is not None else ""
    text = f" — {status.text}" if status.text else ""
    job = f" (job {status.run.job_id})" if status.run.job_id is not None else ""
    return f"{status.run.label}{job}: {status.standing}{speed}{text}"


def _keep_or_cancel(
    manifest: Manifest, sweep_dir: Path, own_scheduler: Tracker, console: Console
) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        console.print("interrupted; the jobs continue", markup=False)
        return
    answer = ""
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        answer = input("\nKeep the jobs or cancel them? [keep/cancel] ")
    if answer.strip().lower() in ("c", "cancel"):
        console.print(cancel(manifest, sweep_dir, own_scheduler).words(), markup=False)
    else:
        console.print("the jobs continue", markup=False)


@dataclass(frozen=True)
class Cancelled:
    """What was cancelled in a sweep."""

    job_ids: list[str]
    runs: int
    """How many runs these jobs still had to measure."""

    def words(self) -> str:
        """``1 job with 3 runs cancelled: 17``."""
        words = counted(len(self.job_ids), "job")
        if self.runs > len(self.job_ids):
            words += f" with {counted(self.runs, 'run')}"
        ids = ": " + " ".join(self.job_ids) if self.job_ids else ""
        return f"{words} cancelled{ids}"


def cancel(manifest: Manifest, sweep_dir: Path, own_scheduler: Tracker) -> Cancelled:
    """Cancel the queued and running jobs of a sweep, and no others.

    Runs that share a job are cancelled together.

    Args:
        manifest: of the sweep.
        sweep_dir: the sweep's folder.
        own_scheduler: the sweep's scheduler.

    Raises:
        LaunchError: the scheduler does not answer or refuses.
    """
    found = reconciled(manifest, sweep_dir, own_scheduler)
    manifest = found.manifest
    alive = [
        item.run.job_id
        for item in run_statuses(manifest, sweep_dir, own_scheduler)
        if item.standing in ("queued", "running") and item.run.job_id is not None
    ]
    if manifest.prepare_job_id is not None:
        state = own_scheduler.query([manifest.prepare_job_id]).get(manifest.prepare_job_id)
        if state is not None and state.state in ("queued", "running"):
            alive.insert(0, manifest.prepare_job_id)
    ids = unique([*alive, *found.strays])
    own_scheduler.cancel(ids)
    return Cancelled(ids, len(alive))


def settle(status: RunStatus, sweep_dir: Path, launcher: str) -> None:
    """Write a record for a run that ended without one, so that the analysis counts it.

    An existing record is never replaced: the new file is linked into place, which fails if there
    is one, even one that this machine does not see yet.

    Args:
        status: of the run.
        sweep_dir: the sweep's folder.
        launcher: name of the scheduler, or ``local``.
    """
    folder = sweep_dir / status.run.folder
    path = folder / record.FILE_NAME
    if status.standing in ("left out", "not submitted", "queued", "running") or path.exists():
        return
    try:
        spec = job_spec.read(folder)
        made = unmeasured(
            spec,
            _STATUSES.get(status.standing, "failed"),
            Cause(kind=status.kind or "lost", message=status.text, log=status.log),
            None
            if launcher == LOCAL
            else schema.Scheduler(
                kind=launcher, job_id=status.run.job_id or "", nodes_asked=spec.nodes_asked
            ),
        )
        write_new(path, made.model_dump_json() + "\n")
    except (OSError, ValueError):
        return  # a full disk or a removed folder: the status still shows the cause


_STATUSES: dict[str, Status] = {"oom": "oom", "interrupted": "interrupted"}
