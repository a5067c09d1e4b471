"""Send a sweep to a scheduler: every run with its own resources, equal ones as one array."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from dpeval.config import Config, LauncherOptions, identity, to_plain
from dpeval.errors import LaunchError
from dpeval.launchers import manifest as manifests
from dpeval.launchers.ahead import Ahead, leave_record
from dpeval.launchers.base import SweepJob, SweepLauncher
from dpeval.launchers.dry_run import describe_groups
from dpeval.launchers.job import SPEC_NAME, CarriedPreparation, CarriedRun, JobSpec
from dpeval.launchers.manifest import Manifest, SentRun
from dpeval.launchers.resources import (
    Group,
    Resources,
    check_folder,
    group,
    job_name,
    resolve,
)
from dpeval.launchers.resume import left_out
from dpeval.launchers.wait import wait_for


class SchedulerLauncher(SweepLauncher):
    """What SLURM and OAR have in common."""

    kind: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = LauncherOptions(**options)

    @abstractmethod
    def translate(self, name: str) -> Callable[[Resources, Any], dict[str, Any]]:
        """How a run's resources and site become the executor's parameters."""

    @abstractmethod
    def text(self, group: Group, folder: Path) -> str:
        """What the scheduler would be given for `group`, for the dry run."""

    @abstractmethod
    def executor(self, folder: Path, parameters: dict[str, Any], config: Config) -> Any:
        """The submitit executor."""

    @abstractmethod
    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        """`parameters` with the condition that job `job_id` has ended well."""

    def carry_out(self, jobs: list[SweepJob], sweep_dir: Path) -> None:
        """Submit `jobs` and, unless ``wait=false``, follow them to their ends."""
        sweep_dir = sweep_dir.absolute()
        check_folder(str(sweep_dir))
        console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        identities = [identity(job.config) for job in jobs]
        skipped = left_out(identities, jobs[0].config.sweep, sweep_dir.parent, sweep_dir)
        ahead = Ahead()
        skipped |= self._refused(ahead, jobs, identities, skipped, console)
        token = secrets.token_hex(3)
        needs = [
            (
                position,
                resolve(job.config, ahead.forecast(job.config), self.options),
                job.config.site,
            )
            for position, job in enumerate(jobs)
            if identities[position] not in skipped
        ]
        groups = group(needs, self.translate(job_name(jobs[0].config.study, token)))
        folder, labels = sweep_dir / ".submitit", labels_of(jobs)
        if self.options.dry_run:
            texts = [self.text(one, folder) for one in groups]
            console.print(describe_groups(groups, labels, texts), markup=False)
            return
        if self.options.prepare == "parent":
            _prepare([jobs[position].config for position, _, _ in needs], console)
        manifest = Manifest(
            launcher=self.kind,
            token=token,
            study=jobs[0].config.study,
            created_at=datetime.now().astimezone().isoformat(timespec="seconds"),
            submitit_folder=str(folder),
            runs=[
                SentRun(
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
        manifest = self._send(jobs, groups, manifest, sweep_dir)
        _tell(manifest, groups, sweep_dir, console)
        if self.options.wait:
            wait_for(manifest, sweep_dir, self.options.poll_s, console)
            if jobs[0].config.analyze:
                _analyze(sweep_dir)
        _raise_refused(manifest)

    def _refused(
        self,
        ahead: Ahead,
        jobs: list[SweepJob],
        identities: list[str],
        skipped: dict[str, str],
        console: Console,
    ) -> dict[str, str]:
        """Record the runs that cannot fit their memory; returns why, by identity."""
        refused: dict[str, str] = {}
        for job, mark in zip(jobs, identities, strict=True):
            decision = None if mark in skipped else ahead.refusal(job.config)
            if decision is None:
                continue
            refused[mark] = decision.line
            console.print(f"{' '.join(job.overrides)}: {decision.line}", markup=False)
            if not self.options.dry_run:
                leave_record(job, decision, self.kind)
        return refused

    def _send(
        self, jobs: list[SweepJob], groups: list[Group], manifest: Manifest, sweep_dir: Path
    ) -> Manifest:
        """Submit group by group; the manifest on disk always knows all that was sent."""
        folder = Path(manifest.submitit_folder)
        folder.mkdir(parents=True, exist_ok=True)
        # It holds pickles, which a job will load: nobody else may write or read there.
        folder.chmod(0o700)
        manifests.write(manifest, sweep_dir)
        for position in (position for one in groups for position in one.members):
            _write_spec(jobs[position], self.kind, self.options.requeue)
        if self.options.prepare == "job" and groups:
            manifest = self._send_preparation(jobs, groups[0], manifest, sweep_dir)
        for one in groups:
            parameters = one.parameters
            if manifest.prepare_job_id is not None:
                parameters = self.after(parameters, manifest.prepare_job_id)
            members = [jobs[position] for position in one.members]
            calls = [CarriedRun(str(job.folder.absolute())) for job in members]
            with _not_torn_apart():
                ids, refused = self._submit(folder, parameters, calls, members[0].config)
                manifest = _noted(manifest, one.members, ids, refused)
                manifests.write(manifest, sweep_dir)
        return manifest

    def _submit(
        self, folder: Path, parameters: dict[str, Any], calls: Sequence[Any], config: Config
    ) -> tuple[list[str | None], str | None]:
        """The jobs' ids, or in which words the scheduler refused them."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = self.executor(folder, parameters, config)
            sent = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            told = [line.strip() for line in str(error).splitlines() if line.strip()]
            return [None] * len(calls), f"{self.kind} refused it: {' '.join(told[-2:])}"
        return [job.job_id for job in sent], None

    def _send_preparation(
        self, jobs: list[SweepJob], like: Group, manifest: Manifest, sweep_dir: Path
    ) -> Manifest:
        """One job with one run's resources that prepares every data set of the sweep."""
        folder = Path(manifest.submitit_folder)
        distinct = {str(job.config.dataset): job for job in jobs}
        specs = tuple(_spec(job, self.kind, 0).model_dump_json() for job in distinct.values())
        ids, refused = self._submit(
            folder, like.parameters, [CarriedPreparation(specs)], jobs[0].config
        )
        if refused is not None:
            raise LaunchError(f"the job that prepares the data was not accepted: {refused}")
        manifest = manifest.model_copy(update={"prepare_job_id": ids[0]})
        manifests.write(manifest, sweep_dir)
        return manifest


def labels_of(jobs: Sequence[SweepJob]) -> list[str]:
    """Each run in the words of the overrides that not all runs have in common."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [
        " ".join(word for word in job.overrides if word not in common) or f"run {job.number}"
        for job in jobs
    ]


def _spec(job: SweepJob, kind: str, requeue: int) -> JobSpec:
    return JobSpec(
        launcher=kind,
        config=to_plain(job.config),
        overrides=list(job.overrides),
        identity=identity(job.config),
        requeue=requeue if job.config.site.requeue else 0,
    )


def _write_spec(job: SweepJob, kind: str, requeue: int) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    text = _spec(job, kind, requeue).model_dump_json()
    (job.folder / SPEC_NAME).write_text(text + "\n", encoding="utf-8")


def _noted(
    manifest: Manifest, members: Sequence[int], ids: Sequence[str | None], refused: str | None
) -> Manifest:
    by_position = dict(zip(members, ids, strict=True))
    runs = [
        run.model_copy(update={"job_id": by_position[position], "refused": refused})
        if position in by_position
        else run
        for position, run in enumerate(manifest.runs)
    ]
    return manifest.model_copy(update={"runs": runs})


@contextlib.contextmanager
def _not_torn_apart() -> Iterator[None]:
    """Ctrl-C between a submission and its note would lose the jobs: it waits, or is repeated.

    Ignored, not handled: the scheduler's command inherits that and is not cut off either.
    """
    try:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, which no Ctrl-C reaches
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _prepare(configs: list[Config], console: Console) -> None:
    from dpeval.data import prepare

    distinct = {str(config.dataset): config.dataset for config in configs}
    for dataset in distinct.values():
        prepare(dataset, console.print)


def _tell(manifest: Manifest, groups: list[Group], sweep_dir: Path, console: Console) -> None:
    sent = [run for run in manifest.runs if run.job_id is not None]
    out = sum(run.left_out is not None for run in manifest.runs)
    console.print(
        f"{len(sent)} runs sent to {manifest.launcher} in {len(groups)} "
        f"submission{'s' * (len(groups) != 1)}"
        + (f"; {out} left out (done or on their way)" * bool(out)),
        markup=False,
    )
    console.print(f"follow them: python -m dpeval.status {sweep_dir}", markup=False)


def _raise_refused(manifest: Manifest) -> None:
    refused = [run for run in manifest.runs if run.refused is not None]
    if refused:
        raise LaunchError(
            f"{len(refused)} of {len(manifest.runs)} runs were not accepted: "
            + "; ".join(dict.fromkeys(str(run.refused) for run in refused))
        )


def _analyze(sweep_dir: Path) -> None:
    # Late: pandas and matplotlib take a second that submitting must not wait for.
    from dpeval.analysis.pipeline import analyze

    analyze([sweep_dir])
