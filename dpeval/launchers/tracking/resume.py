"""Find the runs that need no submission: they are done, queued or running."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dpeval import record
from dpeval.config import SweepConfig
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.schedulers.base import unique
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.manifest import ManifestRun
from dpeval.launchers.tracking.tracker import tracker
from dpeval.util.files import remove_leftovers


def skip_reasons(
    identities: Sequence[str], sweep: SweepConfig, study_dir: Path, own: Path
) -> dict[str, str]:
    """Why a run need not be submitted, by identity, for those done, queued or running elsewhere.

    Searches ``sweep.resume``, or with ``sweep.skip_done`` the study's folder.

    Args:
        identities: of this sweep's runs.
        sweep: the sweep's configuration.
        study_dir: the study's folder.
        own: this sweep's folder, which is not searched for jobs.

    Raises:
        ConfigError: ``sweep.resume`` is not a folder.
        LaunchError: the scheduler of an earlier sweep's jobs does not answer.
    """
    if sweep.resume is not None:
        root = Path(sweep.resume)
        if not root.is_dir():
            raise ConfigError(
                f"sweep.resume={sweep.resume} is not a folder; give the folder of a sweep"
            )
    elif sweep.skip_done:
        root = study_dir
    else:
        return {}
    wanted = set(identities)
    found = {
        identity: f"done in {path.parent}"
        for path in record.below(root)
        if (outcome := _outcome(path)) is not None
        and outcome[0] == "ok"
        and (identity := outcome[1]) in wanted
    }
    for path in root.rglob(manifests.FILE_NAME):
        remove_leftovers(path.parent)
        if path.parent != own:
            found |= _queued_or_running(path.parent, wanted - found.keys())
    return found


def _outcome(path: Path) -> tuple[str, str] | None:
    """Status and identity of the record at `path`; None if there is no readable one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return str(content.get("status")), str(content.get("identity"))


def _queued_or_running(sweep_dir: Path, wanted: Iterable[str]) -> dict[str, str]:
    try:
        manifest = manifests.read(sweep_dir)
    except LaunchError:
        return {}
    wanted = set(wanted)
    open_runs = [
        run
        for run in manifest.runs
        if run.job_id is not None and run.identity in wanted and not _has_ended(sweep_dir, run)
    ]
    if not open_runs:
        return {}
    states = tracker(manifest).query(unique(run.job_id for run in open_runs))
    return {
        run.identity: f"job {run.job_id} of {sweep_dir} is {states[run.job_id].state}"
        for run in open_runs
        if run.job_id in states and states[run.job_id].state in ("queued", "running")
    }


def _has_ended(sweep_dir: Path, run: ManifestRun) -> bool:
    """Whether `run` has its final record: a run that shares a job may end before the job does."""
    outcome = _outcome(sweep_dir / run.folder / record.FILE_NAME)
    return outcome is not None and outcome[0] != "interrupted"  # that one may be requeued
