"""What a scheduler's job executes: one run, stopped in time, with one record.

submitit pickles only the path of a folder. Everything else is read from the JSON file that the
submitting process wrote there, so a pickle holds neither configuration nor code.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from dpeval import record
from dpeval.config import Config, check
from dpeval.errors import DpevalError, RecordError
from dpeval.launchers.in_job.job_signals import stop_on_warning
from dpeval.launchers.in_job.node_sharing import NodeWatch
from dpeval.launchers.schedulers.registry import scheduler
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking.job_spec import JobSpec, unmeasured
from dpeval.launchers.tracking.run_status import PROGRESS_NAME, Progress, write_progress
from dpeval.record import schema
from dpeval.record.schema import Cause, Record, now
from dpeval.run.job import Node
from dpeval.util.frozen import Frozen

if TYPE_CHECKING:
    from dpeval.run.session import Session

ATTEMPTS_NAME = "attempts.jsonl"
_PROGRESS_EVERY_S = 2.0


class Attempt(Frozen):
    """One start of a run."""

    job_id: str
    host: str
    at_s: float


@dataclass(frozen=True)
class SubmittedRun:
    """The callable that submitit pickles for one run."""

    folder: str

    def __call__(self) -> None:
        status = run_in_job(Path(self.folder))
        if status:
            # Not an exception: submitit would print a traceback for an orderly end.
            sys.exit(status)


@dataclass(frozen=True)
class PreparationJob:
    """The callable that submitit pickles to prepare the data, where login nodes may not compute."""

    specs: tuple[str, ...]
    """One :class:`JobSpec` as JSON per data set."""

    def __call__(self) -> None:
        from dpeval.data import prepare

        for spec in self.specs:
            config = rebuild(JobSpec.model_validate_json(spec).config)
            point_at_scratch(config)
            prepare(config.dataset, print)


def rebuild(plain: Mapping[str, Any]) -> Config:
    """The configuration in `plain` (see :func:`dpeval.config.to_plain`), checked.

    Raises:
        ConfigError: a value is wrong.
    """
    config = TypeAdapter(Config).validate_python(plain)
    check(config)
    return config


def run_in_job(folder: Path) -> int:
    """Execute the run specified in `folder` and return the job's exit status.

    Unless this process is killed, it writes a record: also after a signal before the first step,
    and after an interruption that requeues the run.

    Raises:
        OSError, ValueError: `folder` holds no valid specification.
    """
    spec = job_spec.read(folder)
    own = scheduler(spec.launcher)
    nodes = int(spec.config["num_nodes"])
    node = own.node_in_job(os.environ, nodes, folder) if nodes > 1 else None
    if _is_done(folder):
        return 0
    config = rebuild(spec.config)
    point_at_scratch(config)
    own.expose_gpus(os.environ)
    if node is not None and node.index > 0:
        return _assist(config, folder, spec, node)
    job = own.describe_job(os.environ)
    others = NodeWatch(own, job, os.environ)
    with stop_on_warning() as stops:
        # Not before: whoever sees the attempt may send the warning.
        attempts = _add_attempt(folder, job)
        around: list[AbstractContextManager[object]] = [others, own.other_nodes(config, node)]
        made = execute(config, folder, spec, job, node, around)
    details, warnings = others.report()
    job = job.model_copy(update={"details": {**job.details, **details}})
    made = made.model_copy(update={"scheduler": job, "warnings": [*made.warnings, *warnings]})
    record.write(made, folder / record.FILE_NAME)
    # A later attempt, which takes a while to start, would seem to have made this progress.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    may_requeue = made.status == "interrupted" and attempts <= spec.requeue
    if may_requeue and ("SIGUSR2" in stops or own.is_preempted(os.environ)):
        return own.requeue(os.environ)
    return 0 if made.status in ("ok", "skipped") else 1


def _assist(config: Config, folder: Path, spec: JobSpec, node: Node) -> int:
    """Execute the ranks of a node other than 0, which writes the record; return the exit status."""
    with stop_on_warning():
        session = _session(folder=None)
        return 0 if session.assist(session.job(config, folder, spec.overrides, node)) else 1


def _is_done(folder: Path) -> bool:
    path = folder / record.FILE_NAME
    return path.exists() and record.read(path).status == "ok"


def _add_attempt(folder: Path, job: schema.Scheduler) -> int:
    """Add a line to the attempts file and return the number of attempts."""
    path = folder / ATTEMPTS_NAME
    attempt = Attempt(job_id=job.job_id, host=socket.gethostname(), at_s=time.time())
    # An earlier attempt that was killed has left its progress.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(attempt.model_dump_json() + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def _session(folder: Path | None) -> Session:
    """A session that prints to the job's log and publishes its progress in `folder`."""
    from rich.console import Console

    from dpeval.run.console import PlainReporter
    from dpeval.run.job import Job, Snapshot
    from dpeval.run.session import Session

    class JobReporter(PlainReporter):
        """Prints to the job's log and publishes the progress that ``dpeval.status`` shows."""

        _published_s = float("-inf")

        def progress(self, job: Job, snapshot: Snapshot) -> None:
            super().progress(job, snapshot)
            if folder is None or time.monotonic() - self._published_s < _PROGRESS_EVERY_S:
                return
            self._published_s = time.monotonic()
            now = Progress(
                host=socket.gethostname(),
                stage=snapshot.stage.name.lower(),
                steps=snapshot.steps,
                img_per_s=snapshot.img_per_s,
                at_s=time.time(),
            )
            write_progress(now, folder)

    return Session(JobReporter(Console(highlight=False, soft_wrap=True)))


def execute(
    config: Config,
    folder: Path,
    spec: JobSpec,
    job_record: schema.Scheduler | None = None,
    node: Node | None = None,
    around: Sequence[AbstractContextManager[object]] = (),
) -> Record:
    """Run `config` and return its record, also when it cannot be measured.

    Args:
        config: the run.
        folder: the run's folder.
        spec: the run as it was submitted.
        job_record: the scheduler's job; None if there is none.
        node: this process's node, if the run has several.
        around: context managers to enter before the run and to leave after it.
    """
    try:
        from dpeval.run import record_builder

        session = _session(folder)
        job = session.job(config, folder, spec.overrides, node)
    except KeyboardInterrupt:
        # Importing torch takes seconds, or minutes on a slow file system: a signal can arrive here.
        message = "stopped by the scheduler while the program was starting"
        cause = Cause(kind="interrupt", message=message)
        return unmeasured(spec, "interrupted", cause, job_record)
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
        cause = Cause(kind="setup", message=str(error), exception=type(error).__name__)
        return record_builder.blank(job, session.environment, begun, status="failed", cause=cause)
    return made


def _recorded_since(begun: str, folder: Path) -> Record | None:
    """The record that a run wrote before a signal ended its process's work; None: it wrote none."""
    try:
        found = record.read(folder / record.FILE_NAME)
    except RecordError:
        return None
    is_new = datetime.fromisoformat(found.started_at) >= datetime.fromisoformat(begun)
    return found if is_new else None  # an older one is of an earlier attempt


def point_at_scratch(config: Config) -> None:
    """Store data in the site's scratch folder, unless the configuration names another."""
    if config.site.scratch is not None and config.dataset.root is None:
        os.environ["DPEVAL_DATA"] = os.path.expandvars(config.site.scratch)


if __name__ == "__main__":
    sys.exit(run_in_job(Path(sys.argv[1])))
