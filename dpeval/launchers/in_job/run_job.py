"""What happens inside a scheduler's job: one run, told to end in time, with one record.

submitit carries only the path of a folder here; everything else is read from the JSON that
the submitting process left in it, so a pickle holds no configuration and no code.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from dpeval import record
from dpeval.config import Config, check
from dpeval.errors import DpevalError
from dpeval.launchers.in_job.job_signals import told_to_end
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
class CarriedRun:
    """The callable that submitit pickles."""

    folder: str

    def __call__(self) -> None:
        status = carry(Path(self.folder))
        if status:
            # Not an exception: submitit would print a traceback for a run that ended in order.
            sys.exit(status)


@dataclass(frozen=True)
class CarriedPreparation:
    """Makes the data ready in a job, where the login node may not compute."""

    specs: tuple[str, ...]
    """One :class:`JobSpec` as JSON for each data set."""

    def __call__(self) -> None:
        from dpeval.data import prepare

        for spec in self.specs:
            config = rebuild(JobSpec.model_validate_json(spec).config)
            point_at_scratch(config)
            prepare(config.dataset, print)


def rebuild(plain: Mapping[str, Any]) -> Config:
    """The checked configuration from its plain form (:func:`dpeval.config.to_plain`)."""
    config = TypeAdapter(Config).validate_python(plain)
    check(config)
    return config


def carry(folder: Path) -> int:
    """Run what lies in `folder` and return the job's exit status.

    Every ending that lets this process act leaves a record: also a signal before the first
    step, and an interruption after which the run goes back to the queue.
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
    attempts = _note_attempt(folder, job)
    with told_to_end() as stops:
        others = NodeWatch(own, job, os.environ)
        made = execute(config, folder, spec, job, node, own.further_nodes(config, node))
        others.look()
    details, warnings = others.told()
    job = job.model_copy(update={"details": {**job.details, **details}})
    made = made.model_copy(update={"scheduler": job, "warnings": [*made.warnings, *warnings]})
    record.write(made, folder / record.FILE_NAME)
    may_go_on = made.status == "interrupted" and attempts <= spec.requeue
    if may_go_on and ("SIGUSR2" in stops or own.is_preempted(os.environ)):
        return own.requeue(os.environ)
    return 0 if made.status in ("ok", "skipped") else 1


def _assist(config: Config, folder: Path, spec: JobSpec, node: Node) -> int:
    """Carry a further node's ranks of a run that node 0 records; return the exit status."""
    with told_to_end():
        session = _session(folder=None)
        return 0 if session.assist(session.job(config, folder, spec.overrides, node)) else 1


def _is_done(folder: Path) -> bool:
    path = folder / record.FILE_NAME
    return path.exists() and record.read(path).status == "ok"


def _note_attempt(folder: Path, job: schema.Scheduler) -> int:
    """Add a line to the attempts and return how many there are."""
    path = folder / ATTEMPTS_NAME
    attempt = Attempt(job_id=job.job_id, host=socket.gethostname(), at_s=time.time())
    # The progress of an earlier attempt would be taken for this one's.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(attempt.model_dump_json() + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def _session(folder: Path | None) -> Session:
    """A session that prints to the job's log and leaves its progress in `folder`."""
    from rich.console import Console

    from dpeval.run.console import PlainReporter
    from dpeval.run.job import Job, Snapshot
    from dpeval.run.session import Session

    class JobReporter(PlainReporter):
        """Prints to the job's log, and leaves the progress that `dpeval.status` shows."""

        _told_s = float("-inf")

        def progress(self, job: Job, snapshot: Snapshot) -> None:
            super().progress(job, snapshot)
            if folder is None or time.monotonic() - self._told_s < _PROGRESS_EVERY_S:
                return
            self._told_s = time.monotonic()
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
    further_nodes: AbstractContextManager[None] | None = None,
) -> Record:
    """Run `config` and return its record, whatever keeps it from being measured.

    Args:
        config: the run.
        folder: where its record goes.
        spec: the run as it was submitted.
        job_record: the scheduler's job; None where there is none.
        node: this process's place where the run has several nodes.
        further_nodes: starts the run's other nodes.
    """
    from dpeval.run import record_builder

    try:
        session = _session(folder)
        job = session.job(config, folder, spec.overrides, node)
    except KeyboardInterrupt:
        # Importing torch takes seconds, minutes on a slow file system: time for a signal.
        message = "told to end by the scheduler while the program was starting"
        cause = Cause(kind="interrupt", message=message)
        return unmeasured(spec, "interrupted", cause, job_record)
    begun = now()
    try:
        with further_nodes or contextlib.nullcontext():
            return session.execute(job)
    except KeyboardInterrupt:
        message = "told to end by the scheduler before the first step"
        cause = Cause(kind="interrupt", message=message)
        return record_builder.blank(
            job, session.environment, begun, status="interrupted", cause=cause
        )
    except DpevalError as error:
        cause = Cause(kind="setup", message=str(error), exception=type(error).__name__)
        return record_builder.blank(job, session.environment, begun, status="failed", cause=cause)


def point_at_scratch(config: Config) -> None:
    """Let the data lie where the site wants it, unless the configuration names a folder."""
    if config.site.scratch is not None and config.dataset.root is None:
        os.environ["DPEVAL_DATA"] = os.path.expandvars(config.site.scratch)


if __name__ == "__main__":
    sys.exit(carry(Path(sys.argv[1])))
