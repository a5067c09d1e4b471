"""The manifest of a submitted sweep: later processes find its runs and jobs through it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from dpeval.errors import LaunchError
from dpeval.util.files import write_atomically
from dpeval.util.frozen import Frozen

FILE_NAME = "sweep.json"


class SentRun(Frozen):
    """One run of a sweep."""

    number: int
    folder: str
    """Relative to the sweep's folder."""
    identity: str
    label: str
    overrides: list[str]
    job_id: str | None = None
    """None: not submitted (see `left_out`), or interrupted before its submission."""
    left_out: str | None = None
    """Why it was not submitted: done or already on its way elsewhere."""
    refused: str | None = None
    """The scheduler's reason for refusing it."""


class Manifest(Frozen):
    """One sweep."""

    version: int = 1
    launcher: str
    token: str
    """Part of the jobs' names, so that they can be found by it."""
    study: str
    created_at: str
    submitit_folder: str
    prepare_job_id: str | None = None
    runs: list[SentRun]


def write(manifest: Manifest, sweep_dir: Path) -> None:
    """Write atomically: a reader finds the old file or the new one, whole.

    Raises:
        OSError: the folder cannot be written.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(sweep_dir / FILE_NAME, manifest.model_dump_json(indent=1) + "\n")


def read(sweep_dir: Path) -> Manifest:
    """Read the manifest of a sweep.

    Raises:
        LaunchError: there is none, or it is not one.
    """
    path = sweep_dir / FILE_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise LaunchError(
            f"{sweep_dir} has no {FILE_NAME}: it is not the folder of a sweep sent to a scheduler"
        ) from error
    except OSError as error:
        raise LaunchError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise LaunchError(f"{path}: is not the manifest of a sweep") from error
