"""The launcher for one machine: one run after another, or all of them in turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import run_job
from omegaconf import DictConfig

from dpeval.config import identity
from dpeval.errors import ConfigError, RunInterrupted
from dpeval.launchers.base import SweepJob, SweepLauncher, labels_of
from dpeval.launchers.dry_run import describe_local
from dpeval.launchers.tracking.local_process import LocalSweep
from dpeval.launchers.tracking.resume import skip_reasons
from dpeval.record.schema import Record
from dpeval.run import console, forkserver
from dpeval.run.console import Reporter
from dpeval.run.job import Job, take_turns
from dpeval.system import limits
from dpeval.system.processes.signals import stop_signals
from dpeval.util.display.plural import counted
from dpeval.util.paths import shown

if TYPE_CHECKING:
    from dpeval.run.session import Session


class LocalLauncher(SweepLauncher):
    """Runs a sweep one run at a time; a failed run does not stop the sweep."""

    def __init__(self, dry_run: bool = False, wait: bool = True) -> None:
        """Take the keys of ``hydra.launcher``.

        Args:
            dry_run: see :class:`dpeval.config.LocalOptions`.
            wait: must be true.

        Raises:
            ConfigError: ``wait=false``.
        """
        super().__init__()
        self._dry_run = dry_run
        if not wait:
            raise ConfigError(
                "hydra.launcher.wait=false is not possible with hydra/launcher=local, which runs "
                "the sweep in this process; use hydra/launcher=slurm or oar, or remove wait=false"
            )

    def launch_jobs(self, jobs: list[SweepJob], sweep_dir: Path) -> None:
        reporter = console.make_reporter()
        everything, left_out = jobs, self._left_out(jobs, sweep_dir, reporter)
        jobs = [job for job in jobs if job.folder not in left_out]
        if not jobs:
            return
        limits.check()
        # Late: this imports torch, which takes seconds; a mistake is told at once.
        forkserver.warm_up()
        from dpeval.run.session import Session

        session = Session(reporter)
        planned = [
            session.job(job.config, job.folder, list(job.overrides), keep_fault=True)
            for job in jobs
        ]
        if self._dry_run:
            session.require_sound(planned)
            reporter.say(describe_local(planned))
            return
        session.require_any(planned)
        planned = session.prepare_all(planned, keep_fault=True)
        self._sweep = LocalSweep(
            {job.folder: job.config for job in everything},
            {job.folder: job.overrides for job in everything},
            sweep_dir,
            dict(zip((job.folder for job in everything), labels_of(everything), strict=True)),
            left_out,
        )
        with stop_signals() as received, reporter:
            reporter.sweep_started(planned, sweep_dir)
            run = self._in_turns if take_turns(planned) else self._one_after_another
            records = run(session, jobs, planned, received)
            if received or not all(job.config.analyze for job in planned):
                # Otherwise the analysis follows, whose table begins with what to use.
                reporter.sweep_ended(
                    [job for job in planned if job.folder in records],
                    [records[job.folder] for job in planned if job.folder in records],
                    sweep_dir,
                )
        if received and not any(record.status == "interrupted" for record in records.values()):
            raise RunInterrupted(
                f"interrupted by {received[0]}; {len(records)} of {counted(len(jobs), 'run')} "
                f"measured; add sweep.resume={shown(sweep_dir)} to measure the others"
            )

    def _one_after_another(
        self,
        session: Session,
        jobs: list[SweepJob],
        planned: list[Job],
        received: Sequence[str],
    ) -> dict[Path, Record]:
        """Run each job to its end, until a stop signal; return the records by folder."""
        records: dict[Path, Record] = {}
        for job, plan in zip(jobs, planned, strict=True):
            if received:
                break
            self._sweep.start([job.folder])
            records[job.folder] = self._run(job, functools.partial(session.execute, plan))
            self._sweep.note_elsewhere(session.files.elsewhere)
        return records

    def _in_turns(
        self,
        session: Session,
        jobs: list[SweepJob],
        planned: list[Job],
        received: Sequence[str],  # the coordinator collects the same
    ) -> dict[Path, Record]:
        """Run the jobs in turns; return the records by folder."""
        from dpeval.sitting import sweep

        sweep_jobs = {job.folder: job for job in jobs}
        self._sweep.start(sweep_jobs)
        records: dict[Path, Record] = {}
        for job, record in sweep.measure(session, planned):
            # For Hydra's files and callbacks only: the record already exists.
            returned = functools.partial(lambda made: made, record)
            records[job.folder] = self._run(sweep_jobs[job.folder], returned)
            self._sweep.note_elsewhere(session.files.elsewhere)
        self._sweep.not_started(folder for folder in sweep_jobs if folder not in records)
        return records

    def _left_out(
        self, jobs: list[SweepJob], sweep_dir: Path, reporter: Reporter
    ) -> dict[Path, str]:
        """Why runs that earlier sweeps have done are left out, by folder; see ``sweep.resume``."""
        identities = [identity(job.config) for job in jobs]
        done = skip_reasons(
            identities, jobs[0].config.sweep, sweep_dir.parent, sweep_dir, is_dry=self._dry_run
        )
        for job, mark in zip(jobs, identities, strict=True):
            if mark in done:
                reporter.say(f"{' '.join(job.overrides)}: left out, {done[mark]}")
        return {
            job.folder: done[mark]
            for job, mark in zip(jobs, identities, strict=True)
            if mark in done
        }

    def _run(self, job: SweepJob, execute: Callable[[], Record]) -> Record:
        """Run a job through Hydra's ``run_job``, which writes its files and calls its callbacks."""
        assert self.hydra_context is not None
        assert self.config is not None

        made: list[Record] = []

        def task(_: DictConfig) -> Record:
            made.append(execute())
            return made[0]

        try:
            returned = run_job(
                task_function=task,
                config=job.composed,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=self.hydra_context,
            )
        except (OSError, ValueError) as error:
            # logging wraps what its handlers raise.
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
            # Hydra cannot write its own files, for example on a full disk: keep the measurement.
            return made[0] if made else execute()
        record = returned.return_value  # raises what the task raised
        assert isinstance(record, Record)
        return record
