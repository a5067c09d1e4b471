"""A scheduler: here, processes of this machine, started by submitit's own executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import submitit

from dpeval.config import LauncherOptions, SiteConfig
from dpeval.launchers.schedulers.base import JobState, Scheduler
from dpeval.launchers.schedulers.resources import Group, Resources
from dpeval.record import schema
from dpeval.run.job import Node


class Processes(Scheduler):
    """One process for each job."""

    name = "processes"

    def parameters(
        self, resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
    ) -> dict[str, Any]:
        return {"timeout_min": resources.time_min}

    def preview(self, group: Group, folder: Path, options: LauncherOptions) -> str:
        return f"processes={len(group.jobs)} minutes={group.parameters['timeout_min']}"

    def executor(
        self, folder: Path, parameters: dict[str, Any], site: SiteConfig, options: LauncherOptions
    ) -> Any:
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(**parameters)
        return executor

    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        return parameters

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return {
            job_id: JobState(state="running")
            if psutil.pid_exists(int(job_id))
            else JobState(state="ended", ending="completed")
            for job_id in job_ids
        }

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            psutil.Process(int(job_id)).terminate()

    def describe_job(self, environment: Mapping[str, str]) -> schema.Scheduler:
        return schema.Scheduler(kind=self.name, job_id=environment["SUBMITIT_LOCAL_JOB_ID"])

    def node_in_job(self, environment: Mapping[str, str], count: int, folder: Path) -> Node:
        return Node(0, count, folder, "only")

    def other_jobs(self, job: schema.Scheduler, environment: Mapping[str, str]) -> dict[str, str]:
        return {}

    def requeue(self, environment: Mapping[str, str]) -> int:
        return 1
