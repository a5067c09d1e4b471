"""Jobs of a sweep that its manifest does not list: found, matched with their runs, or ended.

A scheduler may accept jobs although its command fails, such as by a time-out, and a submitting
process may be killed before it has written their ids down. They are known by their files, which
lie in the sweep's own folder.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import Tracker
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.local_process import lives
from dpeval.launchers.tracking.manifest import Manifest
from dpeval.util.files import only_we_write

_SUBMITTING_S = 600.0
"""How long a process on another machine may submit without a new manifest, s."""


@dataclass(frozen=True)
class Reconciled:
    """A manifest that lists what the scheduler has."""

    manifest: Manifest
    strays: list[str]
    """Queued and running jobs of the sweep that have no run: they measure nothing."""

    def words(self, sweep_dir: Path) -> str:
        """What to do about the strays; empty if there are none."""
        if not self.strays:
            return ""
        return (
            f"jobs of this sweep that measure none of its runs: {' '.join(self.strays)}; end them "
            f"with python -m dpeval.cancel {sweep_dir}"
        )


def reconciled(manifest: Manifest, sweep_dir: Path, own: Tracker) -> Reconciled:
    """`manifest` with the jobs that the scheduler has accepted and it did not list.

    The scheduler is asked only if a submission has failed or has not ended.

    Args:
        manifest: of the sweep.
        sweep_dir: the sweep's folder; its manifest is written anew if something was found.
        own: the sweep's scheduler.

    Raises:
        LaunchError: the scheduler does not answer.
    """
    if not manifest.is_unsure or is_submitting(manifest, sweep_dir):
        return Reconciled(manifest, [])
    folder = Path(manifest.submitit_folder)
    known = {manifest.prepare_job_id, *(run.job_id for run in manifest.runs)}
    strays: list[str] = []
    runs_of: dict[str, str] = {}
    preparation = manifest.prepare_job_id
    for job_id in own.find(folder):
        if job_id in known:
            continue
        folders = _folders_of(folder / f"{job_id}_submitted.pkl")
        if folders is None:
            strays.append(job_id)
        elif not folders:
            preparation = job_id
        runs_of |= dict.fromkeys(folders or (), job_id)
    runs = [
        run.model_copy(update={"job_id": runs_of[own_folder], "refused": None})
        if run.job_id is None and (own_folder := str((sweep_dir / run.folder).resolve())) in runs_of
        else run
        for run in manifest.runs
    ]
    complete = manifest.model_copy(update={"runs": runs, "prepare_job_id": preparation})
    if complete != manifest:
        manifests.write(complete, sweep_dir)
    return Reconciled(complete, strays)


def is_submitting(manifest: Manifest, sweep_dir: Path) -> bool:
    """Whether the process that submits the sweep is still running."""
    if manifest.submitter is None:
        return False
    try:
        age_s = time.time() - (sweep_dir / manifests.FILE_NAME).stat().st_mtime
    except OSError:
        age_s = 0.0
    # Of a process on another machine only its manifest is known.
    return lives(manifest.submitter, elsewhere=age_s < _SUBMITTING_S)


def _folders_of(path: Path) -> list[str] | None:
    """The folders of the runs of the job whose pickle is `path`, none if it prepares the data.

    None: there is no such file, so the job cannot do anything.
    """
    # Late: it takes a tenth of a second, and only a submission that failed needs it.
    from submitit.core.utils import DelayedSubmission

    try:
        if not only_we_write(path):
            return None
        call = DelayedSubmission.load(path).function
    except Exception:  # a damaged pickle can raise anything
        return None
    return [str(Path(folder).resolve()) for folder in getattr(call, "folders", ())]


def end_strays(own: Tracker, folder: Path, known: Collection[str]) -> str:
    """Cancel the jobs whose files lie in `folder` and that are not `known`; return this in words.

    Args:
        own: the sweep's scheduler.
        folder: the sweep's folder for submissions.
        known: the ids in the manifest.
    """
    try:
        unknown = [job_id for job_id in own.find(folder) if job_id not in known]
        own.cancel(unknown)
    except LaunchError as error:
        return f"; it may have accepted jobs anyway ({error})"
    return f"; what it had accepted anyway was cancelled: {' '.join(unknown)}" * bool(unknown)
