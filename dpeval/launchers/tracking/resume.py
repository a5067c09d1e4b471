"""Find the runs that need no submission: they are done, queued or running."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from dpeval import record
from dpeval.config import SweepConfig, nodes_asked
from dpeval.errors import ConfigError, LaunchError
from dpeval.launchers.schedulers.base import Tracker, unique
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.manifest import Manifest, ManifestRun, mark_of
from dpeval.launchers.tracking.reconcile import is_submitting, reconciled
from dpeval.launchers.tracking.tracker import tracker
from dpeval.util.files import remove_leftovers


def skip_reasons(
    marks: Sequence[str],
    sweep: SweepConfig,
    study_dir: Path,
    own: Path,
    *,
    is_dry: bool = False,
) -> dict[str, str]:
    """Why a run need not be submitted, by its mark, for those done, queued or running elsewhere.

    Searches ``sweep.resume``, or with ``sweep.skip_done`` the study's folder. Jobs that a killed
    submission has left without a run are ended.

    Args:
        marks: of this sweep's runs (:func:`dpeval.launchers.tracking.manifest.mark_of`).
        sweep: the sweep's configuration.
        study_dir: the study's folder.
        own: this sweep's folder, which is not searched for jobs.
        is_dry: end no job.

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
    wanted = set(marks)
    found = {
        mark: f"done in {path.parent}"
        for path in record.below(root)
        if (outcome := _outcome(path)) is not None
        and outcome[0] == "ok"
        and (mark := outcome[1]) in wanted
    }
    for path in root.rglob(manifests.FILE_NAME):
        remove_leftovers(path.parent)
        if path.parent != own:
            found |= _queued_or_running(path.parent, wanted - found.keys(), is_dry=is_dry)
    return found


def _outcome(path: Path) -> tuple[str, str] | None:
    """Status and mark of the record at `path`; None if there is no readable one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return str(content.get("status")), mark_of(str(content.get("identity")), _nodes_of(content))


def _nodes_of(content: dict[str, Any]) -> str:
    """The kind of nodes that the job of a record asked for."""
    config, job = content.get("config"), content.get("scheduler")
    if isinstance(job, dict) and isinstance(job.get("nodes_asked"), str):
        return str(job["nodes_asked"])
    site = config.get("site") if isinstance(config, dict) else None
    return nodes_asked(site) if job is not None and isinstance(site, dict) else ""


def _queued_or_running(sweep_dir: Path, wanted: Iterable[str], *, is_dry: bool) -> dict[str, str]:
    try:
        manifest = manifests.read(sweep_dir)
    except LaunchError:
        return {}
    wanted = set(wanted)
    own = tracker(manifest)
    if is_submitting(manifest, sweep_dir):
        return {
            run.mark: f"being submitted in {sweep_dir}"
            for run in manifest.runs
            if run.mark in wanted and run.left_out is None and run.job_id is None
        } | _of_jobs(manifest, sweep_dir, own, wanted)
    whole = reconciled(manifest, sweep_dir, own)
    if whole.strays and not is_dry:
        own.cancel(whole.strays)
        gone = " ".join(whole.strays)
        print(f"jobs of {sweep_dir} ended because they measure none of its runs: {gone}")
    return _of_jobs(whole.manifest, sweep_dir, own, wanted)


def _of_jobs(
    manifest: Manifest, sweep_dir: Path, own: Tracker, wanted: Collection[str]
) -> dict[str, str]:
    open_runs = [
        run
        for run in manifest.runs
        if run.job_id is not None and run.mark in wanted and not _has_ended(sweep_dir, run)
    ]
    if not open_runs:
        return {}
    states = own.query(unique(run.job_id for run in open_runs))
    return {
        run.mark: f"job {run.job_id} of {sweep_dir} is {states[run.job_id].state}"
        for run in open_runs
        if run.job_id in states and states[run.job_id].state in ("queued", "running")
    }


def _has_ended(sweep_dir: Path, run: ManifestRun) -> bool:
    """Whether `run` has its final record: a run that shares a job may end before the job does."""
    outcome = _outcome(sweep_dir / run.folder / record.FILE_NAME)
    return outcome is not None and outcome[0] != "interrupted"  # that one may be requeued
