"""Submit a sweep group by group; its manifest on disk always lists what has been submitted."""

from __future__ import annotations

import contextlib
import dataclasses
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dpeval.config import Config, LauncherOptions, nodes_asked
from dpeval.errors import LaunchError
from dpeval.launchers.base import SweepJob
from dpeval.launchers.in_job.data_folder import data_at
from dpeval.launchers.in_job.run_job import PreparationJob, SubmittedRuns
from dpeval.launchers.schedulers.base import Scheduler
from dpeval.launchers.schedulers.resources import Group
from dpeval.launchers.schedulers.submission_limit import commands_limited
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.launchers.tracking.local_process import this_process
from dpeval.launchers.tracking.manifest import Manifest
from dpeval.launchers.tracking.reconcile import end_strays
from dpeval.system.processes.signals import stop_signals, unsent_to_children
from dpeval.util.files import only_we_write


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The scheduler's answer to a submission."""

    ids: list[str | None]
    """Of its jobs; None: not submitted."""
    failure: str | None = None
    """Why not all are submitted."""
    is_refusal: bool = False
    """Whether the scheduler has answered, and accepted nothing."""


class Submission:
    """Submits the jobs of one sweep."""

    def __init__(
        self,
        jobs: Sequence[SweepJob],
        sweep_dir: Path,
        scheduler: Scheduler,
        options: LauncherOptions,
        say: Callable[[str], object],
    ) -> None:
        """Submit nothing yet.

        Args:
            jobs: the sweep's runs.
            sweep_dir: the sweep's folder.
            scheduler: where they go.
            options: the keys of ``hydra/launcher``.
            say: prints a line for the user.
        """
        self._jobs, self._sweep_dir, self._scheduler = jobs, sweep_dir, scheduler
        self._options, self._say = options, say
        self._kept_back: set[int] = set()
        """Numbers of the runs that were refused before the scheduler saw them."""

    def submit(
        self, groups: Sequence[Group], manifest: Manifest, divide: Callable[[Group], list[Group]]
    ) -> Manifest:
        """Submit `groups` and return the manifest with their jobs.

        Args:
            groups: the submissions.
            manifest: of the sweep.
            divide: a refused submission as several that need less, or nothing.

        Raises:
            LaunchError: the job that prepares the data was refused, or its files are not safe.
            KeyboardInterrupt: a stop signal; what was submitted is in the manifest.
        """
        self._kept_back = {run.number for run in manifest.runs if run.refused is not None}
        folder = Path(manifest.submitit_folder)
        _make_private(folder)
        _close_to_others(self._sweep_dir)
        # In case this process is killed: the scheduler may have jobs that are not listed yet.
        manifest = manifest.model_copy(update={"submitter": this_process(), "is_unsure": True})
        manifests.write(manifest, self._sweep_dir)
        for position in (position for one in groups for position in one.members):
            job_spec.write(self._spec(position), self._jobs[position].folder)
        try:
            manifest = self._submit_all(groups, manifest, divide)
        except (KeyboardInterrupt, LaunchError):
            self._ended(manifests.read(self._sweep_dir))
            raise
        return self._ended(manifest)

    def _ended(self, manifest: Manifest) -> Manifest:
        """The manifest after the last submission, written."""
        is_unsure = any(
            run.refused is not None and run.number not in self._kept_back for run in manifest.runs
        )
        manifest = manifest.model_copy(update={"submitter": None, "is_unsure": is_unsure})
        manifests.write(manifest, self._sweep_dir)
        return manifest

    def _submit_all(
        self, groups: Sequence[Group], manifest: Manifest, divide: Callable[[Group], list[Group]]
    ) -> Manifest:
        if self._options.prepare == "job" and groups:
            manifest = self._submit_preparation(groups[0], manifest)
        waiting = deque(groups)
        while waiting:
            one = waiting.popleft()
            parameters = one.parameters
            if manifest.prepare_job_id is not None:
                parameters = self._scheduler.after(parameters, manifest.prepare_job_id)
            calls = [self._call(members) for members in one.jobs]
            with _stop_deferred():
                config = self._jobs[one.members[0]].config
                answer = self._send(manifest, parameters, calls, config)
                if answer.is_refusal and (smaller := divide(one)):
                    self._say(f"{answer.failure}; the largest runs get a job of their own")
                    waiting.extendleft(reversed(smaller))
                    continue
                manifest = _with_job_ids(manifest, one.jobs, answer)
                manifests.write(manifest, self._sweep_dir)
        return manifest

    def _call(self, members: Sequence[int]) -> SubmittedRuns:
        folders = (str(self._jobs[position].folder.absolute()) for position in members)
        specs = (self._spec(position).model_dump_json() for position in members)
        return SubmittedRuns(tuple(folders), tuple(specs))

    def _submit_preparation(self, like: Group, manifest: Manifest) -> Manifest:
        """Submit one job, with the resources of `like`, that prepares all data sets."""
        distinct = {str(job.config.dataset): at for at, job in enumerate(self._jobs)}
        specs = tuple(self._spec(at).model_dump_json() for at in distinct.values())
        config = self._jobs[like.members[0]].config
        with _stop_deferred():
            answer = self._send(manifest, like.parameters, [PreparationJob(specs)], config)
            if answer.failure is not None:
                text = f"cannot submit the job that prepares the data: {answer.failure}"
                raise LaunchError(text)
            manifest = manifest.model_copy(update={"prepare_job_id": answer.ids[0]})
            manifests.write(manifest, self._sweep_dir)
        return manifest

    def _send(
        self, manifest: Manifest, parameters: dict[str, Any], calls: Sequence[Any], config: Config
    ) -> _Answer:
        """The scheduler's answer, after what it has accepted anyway is cancelled."""
        folder = Path(manifest.submitit_folder)
        answer = self._attempt(folder, parameters, calls, config)
        if answer.failure is None:
            return answer
        known = {*(run.job_id for run in manifest.runs), manifest.prepare_job_id, *answer.ids}
        ids = {job_id for job_id in known if job_id is not None}
        done = end_strays(self._scheduler, folder, ids)
        return dataclasses.replace(answer, failure=f"{answer.failure}{done}")

    def _attempt(
        self, folder: Path, parameters: dict[str, Any], calls: Sequence[Any], config: Config
    ) -> _Answer:
        # Late: submitit takes a tenth of a second, and a dry run does not need it.
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        name = self._scheduler.name
        executor = self._scheduler.executor(folder, parameters, config.site, self._options)
        try:
            with data_at(config), self._scheduler.submitting(parameters), commands_limited():
                sent = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError, LaunchError, OSError) as error:
            message = [line.strip() for line in str(error).splitlines() if line.strip()]
            is_answer = isinstance(error, (FailedJobError, FailedSubmissionError))
            what = "refused by" if is_answer else "not submitted to"
            # Some of several submissions may have been accepted.
            ids: list[str | None] = [job.job_id for job in getattr(executor, "sent", [])]
            return _Answer(
                ids=[*ids, *[None] * (len(calls) - len(ids))],
                failure=f"{what} {name}: {' '.join(message[-2:])}",
                is_refusal=is_answer and not ids,
            )
        return _Answer([job.job_id for job in sent])

    def _spec(self, position: int) -> JobSpec:
        job = self._jobs[position]
        requeue = self._options.requeue if job.config.site.requeue else 0
        asked = nodes_requested(job.config, self._options)
        return JobSpec.of(self._options.scheduler, job.config, job.overrides, requeue, asked)


def nodes_requested(config: Config, options: LauncherOptions) -> str:
    """The kind of node that the job of `config` requests (:func:`dpeval.config.nodes_asked`)."""
    return nodes_asked(dataclasses.asdict(config.site), dataclasses.asdict(options))


def _make_private(folder: Path) -> None:
    """Make `folder`, which will hold pickles that jobs load: only its owner may write there.

    Raises:
        LaunchError: it belongs to somebody else, or others can write to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        folder.chmod(0o700)
    if not only_we_write(folder):
        raise LaunchError(
            f"others can write to {folder}, from which jobs load code; name a folder of your own "
            "with hydra.launcher.submitit_folder"
        )


def _close_to_others(sweep_dir: Path) -> None:
    """Let only its owner put files in `sweep_dir`, as far as its file system can; all may read on.

    Who can write there could put another folder in the place of the one with the pickles.
    """
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(sweep_dir.stat().st_mode)
        if mode & 0o022:
            sweep_dir.chmod(mode & ~0o022)


def _with_job_ids(manifest: Manifest, jobs: Sequence[Sequence[int]], answer: _Answer) -> Manifest:
    by_position = {
        position: job_id
        for members, job_id in zip(jobs, answer.ids, strict=True)
        for position in members
    }
    runs = [
        run.model_copy(
            update={
                "job_id": by_position[position],
                "refused": answer.failure if by_position[position] is None else None,
            }
        )
        if position in by_position
        else run
        for position, run in enumerate(manifest.runs)
    ]
    return manifest.model_copy(update={"runs": runs})


@contextlib.contextmanager
def _stop_deferred() -> Iterator[None]:
    """Defer stop signals until the submitted jobs are in the manifest, or they would be lost.

    The scheduler's command does not receive them at all.

    Raises:
        KeyboardInterrupt: there was one.
    """
    with stop_signals() as received, unsent_to_children():
        yield
    if received:
        raise KeyboardInterrupt
