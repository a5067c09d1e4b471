"""The specification of a submitted run, and the record of a run that wrote none itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpeval.config import Config, identity, to_plain
from dpeval.record.codes import Status
from dpeval.record.schema import Cause, Record, Scheduler, blank
from dpeval.util.frozen import Frozen

SPEC_NAME = "job.json"


class JobSpec(Frozen):
    """Everything a job needs to know about its run."""

    launcher: str
    config: dict[str, Any]
    overrides: list[str]
    identity: str
    requeue: int
    """How often this run may be requeued after an interruption."""
    nodes_asked: str | None = None
    """The kind of node that its job requests."""

    @classmethod
    def of(
        cls,
        launcher: str,
        config: Config,
        overrides: tuple[str, ...],
        requeue: int,
        nodes_asked: str | None = None,
    ) -> JobSpec:
        """The specification of a run.

        Args:
            launcher: name of the scheduler.
            config: the run's configuration.
            overrides: the run's overrides of the defaults.
            requeue: how often the run may be requeued.
            nodes_asked: the kind of node that its job requests.
        """
        return cls(
            launcher=launcher,
            config=to_plain(config),
            overrides=list(overrides),
            identity=identity(config),
            requeue=requeue,
            nodes_asked=nodes_asked,
        )


def write(spec: JobSpec, folder: Path) -> None:
    """Write `spec` to the run's folder.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_NAME).write_text(spec.model_dump_json() + "\n", encoding="utf-8")


def read(folder: Path) -> JobSpec:
    """The specification in `folder`.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    return JobSpec.model_validate_json((folder / SPEC_NAME).read_bytes())


def is_unchanged(folder: Path, submitted: str) -> bool:
    """Whether `folder` still holds the specification that was `submitted`, as JSON."""
    try:
        return (folder / SPEC_NAME).read_text(encoding="utf-8").rstrip() == submitted
    except (OSError, ValueError):
        return False


def unmeasured(spec: JobSpec, status: Status, cause: Cause, scheduler: Scheduler | None) -> Record:
    """A record of what was requested and why nothing was measured.

    Args:
        spec: the run as it was submitted.
        status: how it ended.
        cause: why it ended that way.
        scheduler: the job; None if there was none.

    Returns:
        A record whose ``missing`` lists the fields that are unknown.
    """
    return blank(spec.config, spec.identity, spec.overrides, status, cause, scheduler=scheduler)
