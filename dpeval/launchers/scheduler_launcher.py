"""Submit a sweep to a scheduler: jobs with the resources of their runs, equal ones as one array."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from rich.console import Console

from dpeval.config import Config, LauncherOptions, SiteConfig, check_bounds, identity
from dpeval.errors import ConfigError, DataError, LaunchError, nearest
from dpeval.launchers.base import SweepJob, SweepLauncher, labels_of
from dpeval.launchers.dry_run import describe_groups
from dpeval.launchers.in_job.run_job import PreparationJob, SubmittedRuns
from dpeval.launchers.packing import Need, hours_words, job_of, jobs_of, without_largest
from dpeval.launchers.preflight import Preflight, write_refusal
from dpeval.launchers.schedulers import registry
from dpeval.launchers.schedulers.resources import (
    Group,
    JobRequest,
    Resources,
    check_folder,
    derive,
    group,
    job_name,
    shortfalls,
)
from dpeval.launchers.schedulers.submission_limit import commands_limited
from dpeval.launchers.tracking import job_spec
from dpeval.launchers.tracking import manifest as manifests
from dpeval.launchers.tracking.job_spec import JobSpec
from dpeval.launchers.tracking.manifest import Manifest, ManifestRun
from dpeval.launchers.tracking.reconcile import cancel_unknown
from dpeval.launchers.tracking.resume import skip_reasons
from dpeval.launchers.tracking.wait import wait_for
from dpeval.system.processes.signals import stop_signals, unsent_to_children
from dpeval.util.display.plural import counted
from dpeval.util.display.tables import make_console


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The scheduler's answer to a submission."""

    ids: list[str | None]
    """Of its jobs; None: not submitted."""
    failure: str | None = None
    """Why not all are submitted."""
    is_refusal: bool = False
    """Whether the scheduler has answered, and accepted nothing."""


class SchedulerLauncher(SweepLauncher, BaseSubmititLauncher):  # type: ignore[misc]  # untyped base
    """Submits runs to a scheduler of :mod:`dpeval.launchers.schedulers.registry`."""

    def __init__(self, scheduler: str, **params: Any) -> None:
        """Take the keys of ``hydra/launcher``.

        Args:
            scheduler: a name in the registry, or ``package.module.Class``.
            params: the other keys, see the scheduler's options.

        Raises:
            ConfigError: the scheduler does not have this key, or the value is invalid.
        """
        BaseSubmititLauncher.__init__(self, **params)
        self.scheduler = registry.scheduler(scheduler)
        self._EXECUTOR = self.scheduler.name
        known = {item.name for item in dataclasses.fields(self.scheduler.options)}
        for key in self.params:
            if key not in known:
                raise ConfigError(f"there is no key 'hydra.launcher.{key}'{nearest(key, known)}")
        self.options: LauncherOptions = self.scheduler.options(
            **{**self.params, "scheduler": scheduler}
        )
        check_bounds(self.options, "hydra.launcher.")
        self._longest: dict[str | None, int | None] = {}
        """What the scheduler says of partitions."""

    def launch_jobs(self, jobs: list[SweepJob], sweep_dir: Path) -> None:
        """Submit `jobs` and, unless ``wait=false``, wait for them to end.

        Raises:
            ConfigError: two keys contradict each other, or the folder has characters that the
                scheduler does not take.
            LaunchError: the scheduler refused a submission.
        """
        if self.options.pack is False and jobs[0].config.sweep.order == "interleaved":
            raise ConfigError(
                "sweep.order=interleaved lets the runs of one machine take turns, and "
                "hydra.launcher.pack=false gives every run a job of its own; remove one of the two"
            )
        sweep_dir = sweep_dir.absolute()
        check_folder("hydra.sweep.dir", str(sweep_dir))
        console = make_console()
        identities = [identity(job.config) for job in jobs]
        skipped = skip_reasons(identities, jobs[0].config.sweep, sweep_dir.parent, sweep_dir)
        preflight = Preflight()
        skipped |= self._skip_oversized(preflight, jobs, identities, skipped, console)
        token = secrets.token_hex(3)
        needs = self._needs(preflight, jobs, identities, skipped, console)
        name = self.options.name or job_name(jobs[0].config.study, token)
        groups = self._grouped(self._jobs(needs, self.options.pack), name)
        divide = functools.partial(self._divided, {need.position: need for need in needs}, name)
        folder, labels = self._folder(), labels_of(jobs)
        if self.options.dry_run:
            texts = [self.scheduler.preview(one, folder, self.options) for one in groups]
            cost = hours_words(self._jobs(needs, pack=True), self._jobs(needs, pack=False))
            console.print(describe_groups(groups, labels, texts, cost), markup=False)
            return
        if self.options.prepare == "parent":
            _prepare([jobs[at].config for one in groups for at in one.members], console)
        manifest = Manifest(
            launcher=self.options.scheduler,
            token=token,
            study=jobs[0].config.study,
            created_at=datetime.now().astimezone().isoformat(timespec="seconds"),
            submitit_folder=str(folder),
            runs=[
                ManifestRun(
                    number=job.number,
                    folder=os.path.relpath(job.folder.absolute(), sweep_dir),
                    identity=mark,
                    label=label,
                    overrides=list(job.overrides),
                    left_out=skipped.get(mark),
                )
                for job, mark, label in zip(jobs, identities, labels, strict=True)
            ],
        )
        manifest = self._submit_all(jobs, groups, manifest, sweep_dir, divide, console)
        _print_summary(manifest, sweep_dir, console)
        if self.options.wait:
            wait_for(manifest, sweep_dir, self.options.poll_s, console)
        else:
            _raise_refused(manifest)

    def _needs(
        self,
        preflight: Preflight,
        jobs: list[SweepJob],
        identities: list[str],
        skipped: dict[str, str],
        console: Console,
    ) -> list[Need]:
        """What every run needs that is not skipped."""
        needs: list[Need] = []
        warned: set[str] = set()
        for position, job in enumerate(jobs):
            if identities[position] in skipped:
                continue
            needed = derive(job.config, preflight.forecast(job.config), self.options)
            for line in shortfalls(job.config, needed, self.options):
                if line not in warned:
                    warned.add(line)
                    console.print(line, markup=False)
            needs.append(Need(position, job.config, needed))
        return needs

    def _jobs(self, needs: Sequence[Need], pack: bool | None) -> list[JobRequest]:
        return jobs_of(needs, self.options, self._longest_min, pack)

    def _longest_min(self, site: SiteConfig) -> int | None:
        """The longest time limit of a job at `site`, min; None: none, or not known."""
        if site.longest_min is not None:
            return site.longest_min
        if site.partition not in self._longest:
            self._longest[site.partition] = self.scheduler.longest_min(site, self.options)
        return self._longest[site.partition]

    def _grouped(self, requests: Sequence[JobRequest], name: str) -> list[Group]:
        """The submissions: equal requests together."""

        def parameters(resources: Resources, site: SiteConfig) -> dict[str, Any]:
            return self.scheduler.parameters(resources, site, self.options, name)

        most = self.scheduler.most_in_array() if len(requests) > 1 else None
        return group(requests, parameters, most)

    def _skip_oversized(
        self,
        preflight: Preflight,
        jobs: list[SweepJob],
        identities: list[str],
        skipped: dict[str, str],
        console: Console,
    ) -> dict[str, str]:
        """Write records of the runs that exceed their memory; return why, by identity."""
        refused: dict[str, str] = {}
        for job, mark in zip(jobs, identities, strict=True):
            decision = None if mark in skipped else preflight.refusal(job.config)
            if decision is None:
                continue
            refused[mark] = decision.line
            console.print(f"{' '.join(job.overrides)}: {decision.line}", markup=False)
            if not self.options.dry_run:
                write_refusal(job, decision, self.options.scheduler)
        return refused

    def _divided(self, needs: Mapping[int, Need], name: str, refused: Group) -> list[Group]:
        """The jobs of a refused submission without their largest runs, and these; or nothing."""
        requests: list[JobRequest] = []
        for members in refused.jobs:
            runs = [needs[position] for position in members]
            requests += without_largest(runs, self.options) or [job_of(runs, self.options)]
        return self._grouped(requests, name) if len(requests) > len(refused.jobs) else []

    def _submit_all(
        self,
        jobs: list[SweepJob],
        groups: list[Group],
        manifest: Manifest,
        sweep_dir: Path,
        divide: Callable[[Group], list[Group]],
        console: Console,
    ) -> Manifest:
        """Submit group by group; the manifest on disk always lists everything submitted so far.

        Args:
            jobs: the sweep's runs.
            groups: the submissions.
            manifest: of the sweep.
            sweep_dir: the sweep's folder.
            divide: a refused submission as several that need less, or nothing.
            console: tells of refusals.
        """
        folder = Path(manifest.submitit_folder)
        folder.mkdir(parents=True, exist_ok=True)
        # It holds pickles that jobs will load: only their owner may write or read there.
        folder.chmod(0o700)
        manifests.write(manifest, sweep_dir)
        for position in (position for one in groups for position in one.members):
            job_spec.write(self._spec(jobs[position]), jobs[position].folder)
        if self.options.prepare == "job" and groups:
            manifest = self._submit_preparation(jobs, groups[0], manifest, sweep_dir)
        waiting = deque(groups)
        while waiting:
            one = waiting.popleft()
            parameters = one.parameters
            if manifest.prepare_job_id is not None:
                parameters = self.scheduler.after(parameters, manifest.prepare_job_id)
            calls = [
                SubmittedRuns(tuple(str(jobs[position].folder.absolute()) for position in members))
                for members in one.jobs
            ]
            with _stop_deferred():
                config = jobs[one.members[0]].config
                answer = self._submit(folder, parameters, calls, config)
                if answer.failure is not None:
                    answer = self._reconciled(answer, parameters, manifest)
                if answer.is_refusal and (smaller := divide(one)):
                    text = f"{answer.failure}; the largest runs get a job apart"
                    console.print(text, markup=False)
                    waiting.extendleft(reversed(smaller))
                    continue
                manifest = _with_job_ids(manifest, one.jobs, answer)
                manifests.write(manifest, sweep_dir)
        return manifest

    def _submit(
        self, folder: Path, parameters: dict[str, Any], calls: Sequence[Any], config: Config
    ) -> _Answer:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self.scheduler.executor(folder, parameters, config.site, self.options)
        try:
            with self.scheduler.submitting(parameters), commands_limited():
                sent = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError, LaunchError, OSError) as error:
            message = [line.strip() for line in str(error).splitlines() if line.strip()]
            is_answer = isinstance(error, (FailedJobError, FailedSubmissionError))
            what = "refused by" if is_answer else "not submitted to"
            # Some of several submissions may have been accepted.
            ids: list[str | None] = [job.job_id for job in getattr(executor, "sent", [])]
            return _Answer(
                ids=[*ids, *[None] * (len(calls) - len(ids))],
                failure=f"{what} {self.scheduler.name}: {' '.join(message[-2:])}",
                is_refusal=is_answer and not ids,
            )
        return _Answer([job.job_id for job in sent])

    def _reconciled(
        self, answer: _Answer, parameters: Mapping[str, Any], manifest: Manifest
    ) -> _Answer:
        """`answer`, after what the scheduler has accepted in spite of it is cancelled."""
        known = {*(run.job_id for run in manifest.runs), manifest.prepare_job_id, *answer.ids}
        name = str(parameters.get("job_name") or parameters.get("n") or "")
        ids = {job_id for job_id in known if job_id is not None}
        done = cancel_unknown(self.scheduler, name, manifest.token, ids)
        return dataclasses.replace(answer, failure=f"{answer.failure}{done}")

    def _submit_preparation(
        self, jobs: list[SweepJob], like: Group, manifest: Manifest, sweep_dir: Path
    ) -> Manifest:
        """Submit one job, with the resources of `like`, that prepares all data sets."""
        folder = Path(manifest.submitit_folder)
        distinct = {str(job.config.dataset): job for job in jobs}
        specs = tuple(self._spec(job).model_dump_json() for job in distinct.values())
        answer = self._submit(folder, like.parameters, [PreparationJob(specs)], jobs[0].config)
        if answer.failure is not None:
            raise LaunchError(f"cannot submit the job that prepares the data: {answer.failure}")
        manifest = manifest.model_copy(update={"prepare_job_id": answer.ids[0]})
        manifests.write(manifest, sweep_dir)
        return manifest

    def _folder(self) -> Path:
        """The folder in which submitit writes.

        Raises:
            LaunchError: a scheduler cannot write logs there.
        """
        folder = Path(self.options.submitit_folder).absolute()
        check_folder("hydra.launcher.submitit_folder", str(folder))
        return folder

    def _spec(self, job: SweepJob) -> JobSpec:
        requeue = self.options.requeue if job.config.site.requeue else 0
        return JobSpec.of(self.options.scheduler, job.config, job.overrides, requeue)


def _with_job_ids(
    manifest: Manifest,
    jobs: Sequence[Sequence[int]],
    answer: _Answer,
) -> Manifest:
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


def _prepare(configs: list[Config], console: Console) -> None:
    from dpeval.data import prepare

    own = [config.dataset for config in configs if not config.task.has_own_data]
    distinct = {str(dataset): dataset for dataset in own}
    faults: list[DataError] = []
    for dataset in distinct.values():
        try:
            prepare(dataset, console.print)
        except DataError as error:
            faults.append(error)
            if len(faults) == len(distinct):
                raise
            console.print(f"runs will fail: {error}", markup=False)


def _print_summary(manifest: Manifest, sweep_dir: Path, console: Console) -> None:
    sent = [run for run in manifest.runs if run.job_id is not None]
    out = sum(run.left_out is not None for run in manifest.runs)
    console.print(
        f"{counted(len(sent), 'run')} submitted to {manifest.launcher} in "
        f"{counted(len({run.job_id for run in sent}), 'job')}"
        + (f"; {out} left out (done, queued, running or too large)" * bool(out)),
        markup=False,
    )
    console.print(f"status: python -m dpeval.status {shlex.quote(str(sweep_dir))}", markup=False)


def _raise_refused(manifest: Manifest) -> None:
    refused = [run for run in manifest.runs if run.refused is not None]
    if refused:
        raise LaunchError(
            f"{len(refused)} of {counted(len(manifest.runs), 'run')} not submitted: "
            + "; ".join(dict.fromkeys(str(run.refused) for run in refused))
        )
