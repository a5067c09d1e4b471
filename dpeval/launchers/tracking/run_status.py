"""The status of every run of a sweep, from its manifest, its records and its scheduler."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dpeval import record
from dpeval.errors import RecordError
from dpeval.launchers.schedulers.base import UNKNOWN, Ending, JobState, Tracker, unique
from dpeval.launchers.tracking.job_spec import SPEC_NAME
from dpeval.launchers.tracking.manifest import Manifest, ManifestRun
from dpeval.launchers.tracking.reconcile import is_submitting
from dpeval.record.codes import CauseCode, Status
from dpeval.util.display.plural import counted
from dpeval.util.display.units import MIB
from dpeval.util.files import replacing, write_new
from dpeval.util.frozen import Frozen

PROGRESS_NAME = "progress.json"
Standing = Literal[
    Status,
    "queued",
    "running",
    "lost",
    "left out",
    "not submitted",
]
FINAL: frozenset[Standing] = frozenset(
    ("ok", "skipped", "oom", "failed", "interrupted", "lost", "left out", "not submitted")
)
_LOG_BYTES = 2_000
_FULL_DISK_BYTES = MIB
_FULL = ("no space left on device", "disk quota exceeded")
"""Messages at the end of a log when the disk is full."""


class Progress(Frozen):
    """What a run publishes while it is measured."""

    host: str
    stage: str
    steps: int
    img_per_s: float
    unit: str = "img"
    at_s: float
    """Seconds since the epoch."""


class RunStatus(Frozen):
    """The status of one run."""

    run: ManifestRun
    standing: Standing
    kind: CauseCode | Literal[""] = ""
    """The cause's code if the run is not ``ok``."""
    text: str = ""
    log: str = ""
    """The end of the job's log, if it explains the status."""
    img_per_s: float | None = None
    unit: str = "img"
    """What a sample is where names say img."""


@dataclass(frozen=True)
class _Headline:
    """The fields of a record that a status needs."""

    status: Standing
    kind: CauseCode | Literal[""]
    message: str
    img_per_s: float | None
    unit: str = "img"

    @property
    def is_provisional(self) -> bool:
        """Whether the run was killed before it could write why it ended."""
        return self.status == "interrupted" and self.kind == "lost"


def run_statuses(manifest: Manifest, sweep_dir: Path, tracker: Tracker) -> list[RunStatus]:
    """The status of every run of a sweep; costs one query and one file per run.

    Args:
        manifest: of the sweep.
        sweep_dir: the sweep's folder.
        tracker: to query about jobs that may not have ended.

    Raises:
        LaunchError: the scheduler does not answer.
    """
    for run in manifest.runs:
        bring_home(run, sweep_dir)
    headlines = {run.number: _headline(sweep_dir / run.folder) for run in manifest.runs}
    open_jobs = [
        run.job_id
        for run in manifest.runs
        if not _is_settled(headlines[run.number]) and run.left_out is None
    ]
    states = tracker.query(unique(open_jobs))
    still = is_submitting(manifest, sweep_dir)
    runs_of = Counter(run.job_id for run in manifest.runs)
    found = []
    for run in manifest.runs:
        state = states.get(run.job_id or "", UNKNOWN)
        headline = headlines[run.number]
        if state.state in ("ended", "unknown") and headline is None:
            # It may have written its record before the scheduler answered.
            headline = _headline(sweep_dir / run.folder)
        if manifest.process is not None and not (sweep_dir / run.folder / SPEC_NAME).exists():
            found.append(_not_started(run, state))
            continue
        if still and headline is None and run.job_id is None and run.left_out is None:
            found.append(RunStatus(run=run, standing="queued", text="is being submitted"))
            continue
        logs, shares = Path(manifest.submitit_folder), runs_of[run.job_id] > 1
        shares = shares and manifest.process is None
        found.append(status_of(run, headline, state, sweep_dir, logs, shares_job=shares))
    return found


def bring_home(run: ManifestRun, sweep_dir: Path) -> None:
    """Copy a record to its folder if it could not be written there before and now can."""
    path = sweep_dir / run.folder / record.FILE_NAME
    if run.record_at is not None and not path.exists():
        with contextlib.suppress(OSError):
            write_new(path, Path(run.record_at).read_text(encoding="utf-8"))


def _not_started(run: ManifestRun, state: JobState) -> RunStatus:
    """The status of a run that its local sweep has not started."""
    if run.left_out is not None:
        return RunStatus(run=run, standing="left out", text=run.left_out)
    if state.state == "running":
        return RunStatus(run=run, standing="queued", text="other runs of its sweep come first")
    return RunStatus(run=run, standing="not submitted", text="not started: the sweep has ended")


def _is_settled(headline: _Headline | None) -> bool:
    """Whether the record decides the status."""
    return headline is not None and not _is_open(headline)


def _is_open(headline: _Headline) -> bool:
    """Whether the run may go on: an interrupted one may have been requeued, and the record of one
    that takes turns is provisional until all have ended."""
    return headline.status == "interrupted"


def _headline(folder: Path) -> _Headline | None:
    path = folder / record.FILE_NAME
    if not path.exists():
        return None
    try:
        found = record.read(path)
    except RecordError as error:
        return _Headline("failed", "record", str(error), None)
    cause = found.cause
    return _Headline(
        status=found.status,
        kind=cause.kind if cause is not None else "",
        message=cause.message if cause is not None else "",
        img_per_s=found.throughput.img_per_s if found.throughput is not None else None,
        unit=found.unit,
    )


def status_of(
    run: ManifestRun,
    headline: _Headline | None,
    state: JobState,
    sweep_dir: Path,
    logs: Path,
    *,
    shares_job: bool = False,
) -> RunStatus:
    """The status of one run: from its record if there is one, else from its scheduler and log.

    Args:
        run: the run as it was submitted.
        headline: the record's status and cause; None if there is no record.
        state: the job's state according to its scheduler.
        sweep_dir: the sweep's folder.
        logs: the folder of the jobs' logs.
        shares_job: whether other runs take turns with it in its job.
    """
    if run.left_out is not None:
        return RunStatus(run=run, standing="left out", text=run.left_out)
    alive = state.state in ("queued", "running")
    is_explained = headline is not None and headline.is_provisional and state.ending is not None
    if headline is not None and not is_explained and not (_is_open(headline) and alive):
        return RunStatus(
            run=run,
            standing=headline.status,
            kind=headline.kind,
            text=headline.message,
            img_per_s=headline.img_per_s,
            unit=headline.unit,
        )
    if run.refused is not None:
        return RunStatus(run=run, standing="failed", kind="refused", text=run.refused)
    if run.job_id is None:
        return RunStatus(run=run, standing="not submitted", text="interrupted before submission")
    if state.state == "queued":
        again = " (requeued after an interruption)" if headline is not None else ""
        return RunStatus(run=run, standing="queued", text=state.reason + again)
    if state.state == "running":
        found = _running(run, state, sweep_dir / run.folder, shares_job=shares_job)
        if found.img_per_s is None and headline is not None and headline.is_provisional:
            # A local sweep publishes nothing else of the runs that take turns.
            text = f"on {state.nodes}: measuring"
            speed = {"img_per_s": headline.img_per_s, "unit": headline.unit}
            return found.model_copy(update={"text": text, **speed})
        return found
    ended = _ended(run, state, sweep_dir / run.folder, logs)
    if shares_job:
        ended = _together(ended, state, sweep_dir / run.folder)
    if headline is None:
        return ended
    return ended.model_copy(
        update={
            "text": f"{ended.text}; a provisional record holds what it had measured",
            "img_per_s": headline.img_per_s,
            "unit": headline.unit,
        }
    )


def _running(run: ManifestRun, state: JobState, folder: Path, *, shares_job: bool) -> RunStatus:
    progress = read_progress(folder)
    if progress is None:
        stage = "starting, or waiting for its first turn" if shares_job else "starting"
        return RunStatus(run=run, standing="running", text=f"on {state.nodes}: {stage}")
    is_measured = shares_job and progress.stage == "finished"
    stage = "measured, waiting for the others of its job" if is_measured else progress.stage
    text = f"on {progress.host}: {stage}, {counted(progress.steps, 'step')}"
    silent_s = time.time() - progress.at_s
    if silent_s > 60 and not is_measured:
        text += f", no progress for {silent_s:.0f} s"
    speed = progress.img_per_s or None
    return RunStatus(run=run, standing="running", text=text, img_per_s=speed, unit=progress.unit)


def read_progress(folder: Path) -> Progress | None:
    """The progress that the run in `folder` published last; None if there is none."""
    try:
        return Progress.model_validate_json((folder / PROGRESS_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


_ENDINGS: Mapping[Ending, tuple[Standing, CauseCode, str]] = {
    "cancelled": ("interrupted", "cancelled", "cancelled before it wrote a record"),
    "preempted": ("interrupted", "preempted", "preempted before it wrote a record"),
    "timeout": ("failed", "time_limit", "job reached its time limit without a record"),
    "node_fail": ("failed", "node_fail", "node failed"),
    "oom_kill": ("oom", "oom_kill", "killed for exceeding the job's memory limit"),
    "failed": ("failed", "exit", "job failed without a record"),
    "completed": ("lost", "lost", "job completed without a record"),
}


def _ended(run: ManifestRun, state: JobState, folder: Path, logs: Path) -> RunStatus:
    log = log_end(logs, run.job_id or "")
    full = next((words for words in _FULL if words.lower() in log.lower()), None)
    if full is not None or _is_full(folder):
        return RunStatus(
            run=run,
            standing="failed",
            kind="disk_full",
            text=f"{full or _FULL[0]}: the record could not be written ({folder})",
            log=log,
        )
    if state.ending is None:
        return RunStatus(run=run, standing="lost", kind="lost", text=state.reason, log=log)
    standing, kind, text = _ENDINGS[state.ending]
    detail = f"{text} ({state.reason}{f' on {state.nodes}' if state.nodes else ''})"
    return RunStatus(run=run, standing=standing, kind=kind, text=detail, log=log)


def _together(ended: RunStatus, state: JobState, folder: Path) -> RunStatus:
    """The status of a run whose shared job has ended.

    Args:
        ended: the status if no other run had been in the job.
        state: of the job.
        folder: the run's.
    """
    if state.ending not in ("timeout", "node_fail", "oom_kill"):
        return ended
    if read_progress(folder) is None:
        text = f"not started: {ended.text}, with the other runs of its job"
        return ended.model_copy(update={"standing": "interrupted", "text": text})
    if state.ending == "oom_kill":
        # Which run used the memory is unknown, so no run is said to need too much.
        text = f"{ended.text}: the runs of its job held it together"
        return ended.model_copy(update={"standing": "failed", "text": text})
    return ended


def log_end(logs: Path, job_id: str) -> str:
    """The end of the job's standard error, or of its only log."""
    if not job_id:
        return ""
    for suffix in ("err", "out"):  # with stderr_to_stdout=true there is only .out
        try:
            with (logs / f"{job_id}_0_log.{suffix}").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _LOG_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            continue
    return ""


def _is_full(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize < _FULL_DISK_BYTES


def counts(statuses: Sequence[RunStatus]) -> str:
    """``3 ok, 1 running, 2 queued``."""
    found = Counter(status.standing for status in statuses)
    order: tuple[Any, ...] = (
        "ok",
        "running",
        "queued",
        *sorted(name for name in found if name not in ("ok", "running", "queued")),
    )
    return ", ".join(f"{found[name]} {name}" for name in order if found[name])


def write_progress(progress: Progress, folder: Path) -> None:
    """Publish a run's progress; a full disk or a removed folder must not end the run."""
    with contextlib.suppress(OSError), replacing(folder / PROGRESS_NAME) as temporary:
        temporary.write_text(progress.model_dump_json(), encoding="utf-8")
