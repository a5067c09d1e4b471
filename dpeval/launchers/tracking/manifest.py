"""The manifest of a sweep, through which later processes find its runs and jobs."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from dpeval.errors import LaunchError
from dpeval.util.files import write_atomically
from dpeval.util.frozen import Frozen

FILE_NAME = "sweep.json"
LOCAL = "local"
"""The launcher of a sweep that has no scheduler."""


class ManifestRun(Frozen):
    """One run of a sweep."""

    number: int
    folder: str
    """Relative to the sweep's folder."""
    identity: str
    nodes: str = ""
    """The kind of nodes that its job asks for (:func:`dpeval.config.nodes_asked`)."""
    label: str
    overrides: list[str]
    job_id: str | None = None
    """None: not submitted, see `left_out` and `refused`; if neither is set, interrupted before
    submission."""
    left_out: str | None = None
    """Why it was left out: done, queued or running in another sweep, or too large."""
    refused: str | None = None
    """Why it was not submitted: its model cannot be trained, or the scheduler refused it."""
    record_at: str | None = None
    """Where its record is, if its folder could not be written."""

    @property
    def mark(self) -> str:
        """See :func:`mark_of`."""
        return mark_of(self.identity, self.nodes)


def mark_of(identity: str, nodes: str) -> str:
    """What a resumed sweep knows a run by: what is measured, on which kind of nodes.

    Args:
        identity: of its configuration.
        nodes: the kind of nodes; empty: any, or this machine.
    """
    return f"{identity} on {nodes}" if nodes else identity


class Process(Frozen):
    """The process that executes a local sweep."""

    host: str
    pid: int
    started_s: float
    """Seconds since the epoch; distinguishes it from a later process with the same id."""

    @property
    def job_id(self) -> str:
        """What stands for a scheduler's job id."""
        return f"{self.pid}@{self.host}"


class Manifest(Frozen):
    """A sweep, submitted to a scheduler or executed by one process."""

    version: int = 1
    launcher: str
    token: str
    """Part of the jobs' names, by which they can be found."""
    study: str
    created_at: str
    submitit_folder: str
    prepare_job_id: str | None = None
    process: Process | None = None
    """Of a local sweep."""
    submitter: Process | None = None
    """What is submitting its jobs; None: that has ended."""
    is_unsure: bool = False
    """There may be jobs that are not listed here: a submission failed or has not ended."""
    runs: list[ManifestRun]


def write(manifest: Manifest, sweep_dir: Path) -> None:
    """Write atomically: a reader sees either the old file or the new one, never a part.

    Raises:
        OSError: the folder cannot be written.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(sweep_dir / FILE_NAME, manifest.model_dump_json(indent=1) + "\n")


def read(sweep_dir: Path) -> Manifest:
    """Read the manifest of a sweep.

    Raises:
        LaunchError: it is missing, unreadable or invalid.
    """
    path = sweep_dir / FILE_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        if not sweep_dir.exists():
            raise LaunchError(
                f"{sweep_dir} does not exist; give the folder of a sweep, outputs/<study>/<time>"
            ) from error
        raise LaunchError(
            f"{sweep_dir} has no {FILE_NAME}: not the folder of a sweep, or of a single run"
        ) from error
    except OSError as error:
        raise LaunchError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise LaunchError(f"{path}: not the manifest of a sweep") from error
