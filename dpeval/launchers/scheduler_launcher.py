"""Submit a sweep to a scheduler: jobs with the resources of their runs, equal ones as one array."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from rich.console import Console

from dpeval.config import Config, LauncherOptions, SiteConfig, check_bounds, identity
from dpeval.errors import ConfigError, DataError, LaunchError, ModelError, nearest
from dpeval.launchers.base import SweepJob, SweepLauncher, labels_of
from dpeval.launchers.dry_run import describe_groups
from dpeval.launchers.in_job.data_folder import data_at
from dpeval.launchers.packing import (
    Need,
    apart_words,
    hours_words,
    job_of,
    jobs_of,
    without_largest,
)
from dpeval.launchers.preflight import Preflight, write_fault, write_refusal
from dpeval.launchers.schedulers import registry
from dpeval.launchers.schedulers.resources import (
    Group,
    JobRequest,
    NodeSize,
    Resources,
    check_folder,
    derive,
    group,
    job_name,
    shortfalls,
)
from dpeval.launchers.submission.interpreter import check_interpreter
from dpeval.launchers.submission.submit import Submission, nodes_requested
from dpeval.launchers.tracking.manifest import Manifest, ManifestRun, mark_of
from dpeval.launchers.tracking.resume import skip_reasons
from dpeval.launchers.tracking.wait import wait_for
from dpeval.util.display.plural import counted
from dpeval.util.display.tables import make_console


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
        self._nodes: dict[str | None, NodeSize] = {}
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
        jobs = [self._with_site_of_launcher(job) for job in jobs]
        nodes = [nodes_requested(job.config, self.options) for job in jobs]
        marks = [mark_of(identity(job.config), kind) for job, kind in zip(jobs, nodes, strict=True)]
        skipped = skip_reasons(
            marks,
            jobs[0].config.sweep,
            sweep_dir.parent,
            sweep_dir,
            is_dry=self.options.dry_run,
        )
        preflight = Preflight()
        faults = self._record_faults(preflight, jobs, marks, skipped, console)
        skipped |= self._skip_oversized(preflight, jobs, marks, skipped | faults, console)
        token = secrets.token_hex(3)
        needs = self._needs(preflight, jobs, marks, skipped | faults, console)
        name = self.options.name or job_name(jobs[0].config.study, token)
        groups = self._grouped(self._jobs(needs, self.options.pack), name)
        divide = functools.partial(self._divided, {need.position: need for need in needs}, name)
        folder, labels = self._folder(), labels_of(jobs)
        if apart_line := apart_words(needs, self.options.pack):
            console.print(apart_line, markup=False)
        if self.options.dry_run:
            texts = [self.scheduler.preview(one, folder, self.options) for one in groups]
            packed, apart = self._jobs(needs, pack=True), self._jobs(needs, pack=False)
            cost = hours_words(packed, apart, self._node_size)
            console.print(describe_groups(groups, labels, texts, cost), markup=False)
            return
        pythons = self._pythons([jobs[one.members[0]].config for one in groups], console)
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
                    identity=identity(job.config),
                    nodes=kind,
                    label=label,
                    overrides=list(job.overrides),
                    left_out=skipped.get(mark),
                    refused=faults.get(mark),
                )
                for job, mark, kind, label in zip(jobs, marks, nodes, labels, strict=True)
            ],
        )
        submission = Submission(jobs, sweep_dir, self.scheduler, self.options, console.out)
        manifest = submission.submit(groups, manifest, divide)
        _print_summary(manifest, sweep_dir, pythons, console)
        if self.options.wait:
            wait_for(manifest, sweep_dir, self.options.poll_s, console)
        else:
            _raise_refused(manifest)

    def _with_site_of_launcher(self, job: SweepJob) -> SweepJob:
        """`job` at the site that ``hydra/launcher`` makes of its own."""
        given = {key: getattr(self.options, key, None) for key in ("partition", "constraint")}
        changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if "constraint" in changed:
            changed["gpu_constraint"] = None
        site = dataclasses.replace(job.config.site, **changed)
        return dataclasses.replace(job, config=dataclasses.replace(job.config, site=site))

    def _needs(
        self,
        preflight: Preflight,
        jobs: list[SweepJob],
        marks: list[str],
        skipped: dict[str, str],
        console: Console,
    ) -> list[Need]:
        """What every run needs that is not skipped."""
        needs: list[Need] = []
        warned: set[str] = set()
        for position, job in enumerate(jobs):
            if marks[position] in skipped:
                continue
            needed = derive(job.config, preflight.forecast(job.config), self.options)
            caution = self.scheduler.caution(needed, job.config.site, self.options)
            for line in [*shortfalls(job.config, needed, self.options), caution]:
                if line and line not in warned:
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

    def _node_size(self, site: SiteConfig) -> NodeSize:
        """What the scheduler says of a whole node at `site`."""
        if site.partition not in self._nodes:
            self._nodes[site.partition] = self.scheduler.node_size(site, self.options)
        return self._nodes[site.partition]

    def _grouped(self, requests: Sequence[JobRequest], name: str) -> list[Group]:
        """The submissions: equal requests together."""

        def parameters(resources: Resources, site: SiteConfig) -> dict[str, Any]:
            return self.scheduler.parameters(resources, site, self.options, name)

        most = self.scheduler.most_in_array() if len(requests) > 1 else None
        return group(requests, parameters, most)

    def _record_faults(
        self,
        preflight: Preflight,
        jobs: list[SweepJob],
        marks: list[str],
        skipped: dict[str, str],
        console: Console,
    ) -> dict[str, str]:
        """Write records of the runs whose model cannot be trained; return why, by mark.

        Raises:
            ModelError: no run's model can be trained.
        """
        asked = [(job, mark) for job, mark in zip(jobs, marks, strict=True) if mark not in skipped]
        found = [(job, mark, preflight.fault(job.config)) for job, mark in asked]
        faults = {mark: str(fault) for _, mark, fault in found if fault is not None}
        if faults and all(fault is not None for _, _, fault in found):
            raise ModelError("; ".join(dict.fromkeys(faults.values())))
        for job, _, fault in found:
            if fault is None:
                continue
            console.print(f"{' '.join(job.overrides)}: fails: {fault}", markup=False)
            if not self.options.dry_run:
                write_fault(job, fault, self.options.scheduler)
        return faults

    def _skip_oversized(
        self,
        preflight: Preflight,
        jobs: list[SweepJob],
        marks: list[str],
        skipped: dict[str, str],
        console: Console,
    ) -> dict[str, str]:
        """Write records of the runs that exceed their memory; return why, by mark."""
        refused: dict[str, str] = {}
        for job, mark in zip(jobs, marks, strict=True):
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

    def _pythons(self, configs: Sequence[Config], console: Console) -> list[str]:
        """The interpreters that the jobs of `configs` will run.

        Raises:
            LaunchError: one cannot import what it needs.
        """
        distinct = {str(config.site): config.site for config in configs}
        return [
            check_interpreter(
                site, site.setup if self.options.setup is None else self.options.setup, console.out
            )
            for site in distinct.values()
        ]

    def _folder(self) -> Path:
        """The folder in which submitit writes.

        Raises:
            LaunchError: a scheduler cannot write logs there.
        """
        folder = Path(self.options.submitit_folder).absolute()
        check_folder("hydra.launcher.submitit_folder", str(folder))
        return folder


def _prepare(configs: list[Config], console: Console) -> None:
    from dpeval.data import prepare

    own = [config for config in configs if not config.task.has_own_data]
    distinct = {(str(config.dataset), config.site.scratch): config for config in own}
    faults: list[DataError] = []
    for config in distinct.values():
        try:
            with data_at(config, is_needed=True):
                prepare(config.dataset, console.print)
        except DataError as error:
            faults.append(error)
            if len(faults) == len(distinct):
                raise
            console.print(f"runs will fail: {error}", markup=False)


def _print_summary(
    manifest: Manifest, sweep_dir: Path, pythons: Sequence[str], console: Console
) -> None:
    sent = [run for run in manifest.runs if run.job_id is not None]
    out = sum(run.left_out is not None for run in manifest.runs)
    failed = sum(run.refused is not None for run in manifest.runs)
    console.print(
        f"{counted(len(sent), 'run')} submitted to {manifest.launcher} in "
        f"{counted(len({run.job_id for run in sent}), 'job')}"
        + f", which run {' and '.join(dict.fromkeys(pythons))}" * bool(sent)
        + (f"; {out} left out (done, queued, running or too large)" * bool(out))
        + (f"; {failed} not submitted" * bool(failed)),
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
