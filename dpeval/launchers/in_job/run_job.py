"""What a scheduler's job executes: its runs, stopped in time, each with one record.

submitit pickles only the paths of folders. Everything else is read from the JSON file that the
submitting process wrote there, so a pickle holds neither configuration nor code.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dpeval import record
from dpeval.config import Config, check
from dpeval.errors import ConfigError, DpevalError, LaunchError, RecordError
from dpeval.launchers.in_job.data_folder import point_at_scratch
from dpeval.launchers.in_job.execution import (
    SubmittedRun,
    execute,
    execute_together,
    job_session,
    setup_cause,
)
from dpeval.launchers.in_job.job_signals import deliver, stop_on_warning
from dpeval.launchers.in_job.node_sharing import NodeWatch
from dpeval.launchers.schedulers.registry import scheduler
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking.job_spec import SPEC_NAME, JobSpec, unmeasured
from dpeval.launchers.tracking.run_status import PROGRESS_NAME
from dpeval.record import schema
from dpeval.record.schema import Record
from dpeval.run.job import Node
from dpeval.run.recording.record_files import RecordFiles
from dpeval.util import entry
from dpeval.util.frozen import Frozen

ATTEMPTS_NAME = "attempts.jsonl"


class Attempt(Frozen):
    """One start of a run."""

    job_id: str
    host: str
    at_s: float


@dataclass(frozen=True)
class SubmittedRuns:
    """The callable that submitit pickles for a job."""

    folders: tuple[str, ...]
    """The folders of its runs, which take turns."""
    specs: tuple[str, ...] = ()
    """Their specifications as JSON: the files may lie where a whole group can write."""

    def __call__(self) -> None:
        entry.find_own_parts(in_job=True)
        folders = [Path(folder) for folder in self.folders]
        changed = {
            folder: JobSpec.model_validate_json(spec)
            for folder, spec in zip(folders, self.specs, strict=False)
            if not _is_done(folder) and not job_spec.is_unchanged(folder, spec)
        }
        for folder, submitted in changed.items():
            error = LaunchError(
                f"{folder / SPEC_NAME} is not what was submitted, so its run is not started; "
                "look for who can write there, and start the run again with sweep.resume"
            )
            _refuse_run(folder, submitted, error)
        status = run_in_job([folder for folder in folders if folder not in changed])
        if status or changed:
            # Not an exception: submitit would print a traceback for an orderly end.
            sys.exit(status or 1)


@dataclass(frozen=True)
class PreparationJob:
    """The callable that submitit pickles to prepare the data, where login nodes may not compute."""

    specs: tuple[str, ...]
    """One :class:`JobSpec` as JSON per data set."""

    def __call__(self) -> None:
        from dpeval.data import prepare

        deliver()  # nothing here ends in order
        entry.find_own_parts(in_job=True)
        for spec in self.specs:
            config = rebuild(JobSpec.model_validate_json(spec).config)
            if config.task.has_own_data:
                continue  # it loads its own data
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


def run_in_job(folders: Sequence[Path]) -> int:
    """Execute the runs specified in `folders` and return the job's exit status.

    Unless this process is killed, it writes a record for each run, even after a signal before the
    first step, or an interruption after which the job is requeued for the remaining runs.

    Raises:
        OSError, ValueError: a folder holds no valid specification.
    """
    runs = [_submitted(folder) for folder in folders if not _is_done(folder)]
    if not runs:
        return 0
    first = runs[0]
    own = scheduler(first.spec.launcher)
    nodes = first.config.num_nodes
    node = own.node_in_job(os.environ, nodes, first.folder) if nodes > 1 else None
    own.expose_gpus(os.environ)
    job = _job_of(first.spec)
    try:
        for run in runs:
            point_at_scratch(run.config)
    except ConfigError as error:
        if node is None or node.index == 0:
            for run in runs:
                _refuse_run(run.folder, run.spec, error)
        return 1
    if node is not None and node.index > 0:
        return _assist(first, node)
    others = NodeWatch(own, job, os.environ)
    with stop_on_warning() as stops:
        # Only now: whoever sees the attempt may send the warning.
        attempts = max(_add_attempt(run.folder, job) for run in runs)
        around: list[AbstractContextManager[object]] = [others, own.other_nodes(first.config, node)]
        if len(runs) > 1:
            made = execute_together(runs, job, around)
        else:
            made = {
                first.folder: execute(first.config, first.folder, first.spec, job, node, around)
            }
    _complete(made, job, others)
    statuses = {found.status for found in made.values()}
    is_interrupted = "interrupted" in statuses or len(made) < len(runs)
    may_requeue = is_interrupted and attempts <= first.spec.requeue
    if may_requeue and ("SIGUSR2" in stops or own.is_preempted(os.environ)):
        return own.requeue(os.environ)
    return 0 if statuses <= {"ok", "skipped"} and not is_interrupted else 1


def _refuse_run(folder: Path, spec: JobSpec, error: DpevalError) -> None:
    """Write a record that says why the run in `folder` was not measured."""
    job = _job_of(spec)
    RecordFiles().keep(unmeasured(spec, "failed", setup_cause(error), job), folder)
    print(f"dpeval: {error}", file=sys.stderr)


def _job_of(spec: JobSpec) -> schema.Scheduler:
    """This job, and what was asked for it."""
    job = scheduler(spec.launcher).describe_job(os.environ)
    return job.model_copy(update={"nodes_asked": spec.nodes_asked})


def _submitted(folder: Path) -> SubmittedRun:
    spec = job_spec.read(folder)
    return SubmittedRun(folder, spec, rebuild(spec.config))


def _complete(made: Mapping[Path, Record], job: schema.Scheduler, others: NodeWatch) -> None:
    """Write the records with the job that made them, and what else ran on its node."""
    details, warnings = others.report()
    job = job.model_copy(update={"details": {**job.details, **details}})
    for folder, found in made.items():
        whole = found.model_copy(
            update={"scheduler": job, "warnings": [*found.warnings, *warnings]}
        )
        RecordFiles().keep(whole, folder)
        # Otherwise it would look like the progress of a later attempt, which takes a while to
        # start.
        (folder / PROGRESS_NAME).unlink(missing_ok=True)


def _assist(run: SubmittedRun, node: Node) -> int:
    """Execute the ranks of a node other than 0, which writes the record; return the exit status."""
    with stop_on_warning():
        session = job_session()
        job = session.job(run.config, run.folder, run.spec.overrides, node)
        return 0 if session.assist(job) else 1


def _is_done(folder: Path) -> bool:
    try:
        return record.read(folder / record.FILE_NAME).status == "ok"
    except RecordError:  # there is none, or it is damaged
        return False


def _add_attempt(folder: Path, job: schema.Scheduler) -> int:
    """Add a line to the attempts file and return the number of attempts."""
    path = folder / ATTEMPTS_NAME
    attempt = Attempt(job_id=job.job_id, host=socket.gethostname(), at_s=time.time())
    # An earlier attempt that was killed may have left its progress behind.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(attempt.model_dump_json() + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    entry.find_own_parts(in_job=True)
    sys.exit(run_in_job([Path(folder) for folder in sys.argv[1:]]))
