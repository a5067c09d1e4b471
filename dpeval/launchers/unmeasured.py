"""The record of a run that ended before it could say anything of its machine."""

from __future__ import annotations

import shlex
import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from dpeval import __version__
from dpeval.record.codes import Status
from dpeval.record.machine import Environment
from dpeval.record.schema import Cause, Record, Scheduler

if TYPE_CHECKING:
    from dpeval.launchers.job import JobSpec


def unmeasured(spec: JobSpec, status: Status, cause: Cause, scheduler: Scheduler) -> Record:
    """What was asked and why there is nothing; ``missing`` names what nobody can know."""
    nowhere = Environment(
        host="",
        cpu_model="",
        logical_cpus=0,
        physical_cores=0,
        sockets=0,
        numa_nodes=0,
        allowed_cpus=[],
        gpus=[],
        memory_bytes=0,
        kernel="",
        os="",
        python="",
        versions={},
        git_commit=None,
        git_dirty=None,
    )
    return Record(
        dpeval_version=__version__,
        run_id=uuid.uuid4().hex,
        identity=spec.identity,
        status=status,
        cause=cause,
        study=str(spec.config["study"]),
        repetition=int(spec.config["repetition"]),
        started_at=datetime.now().astimezone().isoformat(timespec="milliseconds"),
        wall_s=0.0,
        command=shlex.join(["python", "-m", "dpeval.train", *spec.overrides]),
        overrides=spec.overrides,
        config=spec.config,
        environment=nowhere,
        scheduler=scheduler,
        missing=["environment", "started_at", "wall_s", "plan", "ranks", "dataset"],
    )
