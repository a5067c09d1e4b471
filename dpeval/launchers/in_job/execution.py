"""Execute the runs of a job, several in turns; each leaves a record."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dpeval import record
from dpeval.config import Config
from dpeval.errors import DpevalError, RecordError
from dpeval.launchers.in_job.job_signals import deliver
from dpeval.launchers.tracking.job_spec import JobSpec, unmeasured
from dpeval.launchers.tracking.run_status import Progress, write_progress
from dpeval.record import schema
from dpeval.record.schema import Cause, Record, now
from dpeval.run import forkserver
from dpeval.run.job import Node, take_turns
from dpeval.run.recording.record_files import RecordFiles

if TYPE_CHECKING:
    from dpeval.run.job import Job
    from dpeval.run.session import Session

_PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True)
class SubmittedRun:
    """One run of a job, as it was submitted."""

    folder: Path
    spec: JobSpec
    config: Config


def job_session() -> Session:
    """A session that prints to the job's log and publishes the progress of every run.

    Raises:
        KeyboardInterrupt: a stop signal that was held until now, since now a record says so.
    """
    deliver()
    from rich.console import Console

    forkserver.warm_up()
    from dpeval.run.console import PlainReporter
    from dpeval.run.job import Snapshot
    from dpeval.run.session import Session

    class JobReporter(PlainReporter):
        """Prints to the job's log and publishes the progress that ``dpeval.status`` shows."""

        def __init__(self, console: Console) -> None:
            super().__init__(console)
            self._published: dict[Path, tuple[str, float]] = {}
            """The stage last published for every run, and when."""

        def progress(self, job: Job, snapshot: Snapshot) -> None:
            super().progress(job, snapshot)
            if job.node is not None and job.node.index > 0:
                return
            stage, now_s = snapshot.stage.name.lower(), time.monotonic()
            before, shown_s = self._published.get(job.folder, ("", 0.0))
            if stage == before and now_s - shown_s < _PROGRESS_EVERY_S:
                return
            self._published[job.folder] = stage, now_s
            now = Progress(
                host=socket.gethostname(),
                stage=stage,
                steps=snapshot.steps,
                img_per_s=snapshot.img_per_s,
                unit=snapshot.unit,
                at_s=time.time(),
            )
            write_progress(now, job.folder)

    return Session(JobReporter(Console(highlight=False, soft_wrap=True)))


def execute(
    config: Config,
    folder: Path,
    spec: JobSpec,
    job_record: schema.Scheduler | None = None,
    node: Node | None = None,
    around: Sequence[AbstractContextManager[object]] = (),
) -> Record:
    """Run `config` and return its record, even if it cannot be measured.

    Args:
        config: the run.
        folder: the run's folder.
        spec: the run as it was submitted.
        job_record: the scheduler's job; None if there is none.
        node: this process's node, if the run has several.
        around: context managers to enter before the run and to leave after it.
    """
    try:
        session = job_session()
        from dpeval.run.recording import record_builder

        job = session.job(config, folder, spec.overrides, node)
    except KeyboardInterrupt:
        # Importing torch takes seconds, or minutes on a slow file system: a signal can arrive here.
        message = "stopped by the scheduler while the program was starting"
        cause = Cause(kind="interrupt", message=message)
        return unmeasured(spec, "interrupted", cause, job_record)
    except DpevalError as error:
        return unmeasured(spec, "failed", setup_cause(error), job_record)
    begun, made = now(), None
    try:
        with contextlib.ExitStack() as stack:
            for context in around:
                stack.enter_context(context)
            made = session.execute(job)
    except KeyboardInterrupt:
        made = made or _recorded_since(begun, folder)
        if made is None:
            message = "stopped by the scheduler before the first step"
            cause = Cause(kind="interrupt", message=message)
            made = record_builder.blank(
                job, session.environment, begun, status="interrupted", cause=cause
            )
    except DpevalError as error:
        cause = setup_cause(error)
        return record_builder.blank(job, session.environment, begun, status="failed", cause=cause)
    return made


def setup_cause(error: DpevalError) -> Cause:
    """Why a run failed before its ranks were started."""
    return Cause(kind="setup", message=str(error), exception=type(error).__name__)


def _recorded_since(begun: str, folder: Path) -> Record | None:
    """The record that a run wrote before a signal stopped this process; None if there is none."""
    try:
        found = record.read(folder / record.FILE_NAME)
    except RecordError:
        return None
    is_new = datetime.fromisoformat(found.started_at) >= datetime.fromisoformat(begun)
    return found if is_new else None  # an older one belongs to an earlier attempt


def execute_together(
    runs: Sequence[SubmittedRun],
    job_record: schema.Scheduler,
    around: Sequence[AbstractContextManager[object]],
) -> dict[Path, Record]:
    """Execute `runs` on this node, in turns or one after another; return the records by folder.

    Afterwards every run has a record. Records that unstarted runs have from an earlier attempt of
    this job are kept, since they may hold measurements, and are not returned.

    Args:
        runs: the job's runs that have no result yet.
        job_record: the scheduler's job.
        around: context managers to enter before the first run and to leave after the last.
    """
    begun = now()
    made: dict[Path, Record] = {}
    with _all_recorded(runs, made, begun, job_record), contextlib.suppress(KeyboardInterrupt):
        session = job_session()
        from dpeval.sitting import sweep

        planned: list[Job] = []
        for run in runs:
            job = _planned(session, run, job_record)
            if isinstance(job, Record):
                made[run.folder] = job
            else:
                planned.append(job)
        with contextlib.ExitStack() as stack:
            for context in around:
                stack.enter_context(context)
            if take_turns(planned):
                for job, found in sweep.measure(session, planned):
                    made[job.folder] = found
            else:
                for job in planned:
                    made[job.folder] = session.execute(job)
                    if made[job.folder].status == "interrupted":
                        break
    return made


def _planned(session: Session, run: SubmittedRun, job_record: schema.Scheduler) -> Job | Record:
    """`run` with its data prepared, or its record if that fails; the other runs go on."""
    try:
        job = session.job(run.config, run.folder, run.spec.overrides)
        session.prepare_all([job])
    except DpevalError as error:
        return unmeasured(run.spec, "failed", setup_cause(error), job_record)
    return job


@contextlib.contextmanager
def _all_recorded(
    runs: Sequence[SubmittedRun],
    made: dict[Path, Record],
    begun: str,
    job_record: schema.Scheduler,
) -> Iterator[None]:
    """When the context ends, however it does, complete `made`; see :func:`execute_together`.

    Args:
        runs: the job's runs.
        made: the records so far, by folder.
        begun: when this attempt of the job began.
        job_record: the scheduler's job.
    """
    try:
        yield
    finally:
        for run in runs:
            path = run.folder / record.FILE_NAME
            found = made.get(run.folder) or _recorded_since(begun, run.folder)
            if found is None and not path.exists():
                message = "not started: the job was stopped before this run's first turn"
                cause = Cause(kind="interrupt", message=message)
                found = unmeasured(run.spec, "interrupted", cause, job_record)
                RecordFiles().keep(found, run.folder)
            if found is not None:
                made[run.folder] = found
