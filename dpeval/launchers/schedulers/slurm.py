"""SLURM: submission through sbatch, states from squeue and sacct, and a job's own variables."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from dpeval.config import LauncherOptions, SiteConfig
from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import (
    JobState,
    Scheduler,
    chosen,
    run_command,
    worker_command,
)
from dpeval.launchers.schedulers.container import python_words
from dpeval.launchers.schedulers.resources import Group, NodeSize, Resources
from dpeval.launchers.schedulers.slurm_request import in_container, sbatch_file, slurm_parameters
from dpeval.launchers.schedulers.slurm_states import (
    latest,
    parse_node_sizes,
    parse_sacct,
    parse_squeue,
    parse_time_limits,
)
from dpeval.record import schema
from dpeval.run.job import Node

_DETAILS = (
    "SLURM_JOB_PARTITION",
    "SLURM_CPUS_ON_NODE",
    "SLURM_MEM_PER_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_ACCOUNT",
)
"""A job's variables that go into the record."""


CLIENT_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
"""Variables that locate SLURM and do not describe a job."""
USERS_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
}
"""Users' defaults for sbatch, and the parameter that replaces each."""


@contextlib.contextmanager
def without_job_variables(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Hide variables of a surrounding job, which sbatch would apply to the new one.

    They would even take precedence over the options in the submission file.

    Args:
        parameters: submitit's; a user's default stays unless one of them takes its place.
    """
    # Late: it takes a tenth of a second, and few sweeps need it.
    from submitit.helpers import clean_env

    given = {**parameters, **(parameters.get("additional_parameters") or {})}
    stay = [name for name, key in USERS_DEFAULTS.items() if given.get(key) is None]
    kept = chosen(os.environ, [*CLIENT_VARIABLES, *stay])
    with clean_env():
        os.environ.update(kept)
        yield


@dataclass
class SlurmOptions(LauncherOptions, SlurmQueueConf):  # type: ignore[misc]  # untyped base
    """Keys of ``hydra/launcher=slurm``: those of ``submitit_slurm`` and dpeval's own.

    They override the site: ``hydra.launcher.partition`` takes precedence over ``site.partition``.
    """

    scheduler: str = "slurm"
    requeue: int = 1

    @property
    def gpus_asked(self) -> int | None:
        # A generic resource is written gpu, gpu:2 or gpu:a100:2.
        found = re.search(r"\bgpu\b(?::[^:,]*[^:,\d][^:,]*)?(?::(\d+))?", self.gres or "")
        if found is not None:
            return int(found[1] or 1)
        return self.gpus_per_task if self.gpus_per_task is not None else self.gpus_per_node


class Slurm(Scheduler):
    """SLURM through submitit, squeue (queued and running jobs) and sacct (ended jobs)."""

    name = "slurm"
    options = SlurmOptions

    def parameters(
        self, resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
    ) -> dict[str, Any]:
        """See :meth:`Scheduler.parameters`."""
        return slurm_parameters(resources, site, options, job_name)

    def longest_min(self, site: SiteConfig, options: LauncherOptions) -> int | None:
        """See :meth:`Scheduler.longest_min`."""
        try:
            listed = run_command(["sinfo", "-h", "-o", "%P|%l"])
        except LaunchError:
            return None  # a dry run far from the cluster
        return parse_time_limits(listed, _partition(site, options))

    def node_size(self, site: SiteConfig, options: LauncherOptions) -> NodeSize:
        """See :meth:`Scheduler.node_size`."""
        try:
            listed = run_command(["sinfo", "-h", "-e", "-o", "%P|%c|%G"])
        except LaunchError:
            return NodeSize()
        return parse_node_sizes(listed, _partition(site, options))

    def most_in_array(self) -> int | None:
        """``MaxArraySize``; None where SLURM is not installed or does not say."""
        try:
            shown = run_command(["scontrol", "show", "config"])
        except LaunchError:
            return None
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
        return int(found[1]) if found is not None and int(found[1]) > 0 else None

    def preview(self, group: Group, folder: Path, options: LauncherOptions) -> str:
        """See :meth:`Scheduler.preview`."""
        return sbatch_file(group, folder)

    def executor(
        self, folder: Path, parameters: dict[str, Any], site: SiteConfig, options: LauncherOptions
    ) -> Any:
        """See :meth:`Scheduler.executor`."""
        import submitit

        words = python_words(site.container, folder)

        class SlurmExecutor(submitit.SlurmExecutor):  # submitit derives names from the class's
            """Starts jobs as the dry run shows."""

            @property
            def _submitit_command_str(self) -> str:
                return worker_command(folder, words)

        if SlurmExecutor.affinity() < 0:
            raise LaunchError(
                "srun is not installed here: submit from a login node of the SLURM cluster, or "
                "look at the submission with hydra.launcher.dry_run=true"
            )
        executor = SlurmExecutor(folder)
        executor.update_parameters(**in_container(parameters, site, folder))
        return executor

    def submitting(self, parameters: Mapping[str, Any]) -> AbstractContextManager[None]:
        return without_job_variables(parameters)

    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        additional = {**parameters["additional_parameters"], "kill-on-invalid-dep": "yes"}
        after = {"dependency": f"afterok:{job_id}", "additional_parameters": additional}
        return {**parameters, **after}

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        if not job_ids:
            return {}
        arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)
        # squeue --jobs fails if one of the jobs is no longer known; --user does not.
        # All states: the accounting may not know yet that a job has ended.
        recent = parse_squeue(
            run_command(
                ["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%T|%r|%N"]
            )
        )
        fields = "JobID,State,ExitCode,NodeList"
        try:
            accounted = parse_sacct(
                run_command(["sacct", "-n", "-P", "-o", fields, "-j", ",".join(arrays)])
            )
        except LaunchError:
            accounted = None  # no accounting: the controller alone knows, and forgets soon
        found = {job_id: latest(job_id, recent, accounted) for job_id in job_ids}
        return {job_id: state for job_id, state in found.items() if state is not None}

    def find(self, folder: Path) -> list[str]:
        """See :meth:`Scheduler.find`."""
        command = ["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%o"]
        pairs = (line.partition("|") for line in run_command(command).splitlines())
        return [job_id for job_id, _, script in pairs if script.startswith(f"{folder}/")]

    def cancel(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            run_command(["scancel", *job_ids])

    def describe_job(self, environment: Mapping[str, str]) -> schema.Scheduler:
        array = environment.get("SLURM_ARRAY_JOB_ID")
        task = environment.get("SLURM_ARRAY_TASK_ID")
        return schema.Scheduler(
            kind=self.name,
            job_id=f"{array}_{task}" if array else environment.get("SLURM_JOB_ID", ""),
            array_id=array,
            nodes=list(chosen(environment, ["SLURM_JOB_NODELIST"]).values()),
            details=chosen(environment, _DETAILS),
        )

    def node_in_job(self, environment: Mapping[str, str], count: int, folder: Path) -> Node:
        """This process's node, from ``SLURM_NODEID``.

        Args:
            environment: of this process.
            count: how many nodes the run has.
            folder: the run's folder, which all nodes share.
        """
        job, restart = environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0")
        return Node(int(environment["SLURM_NODEID"]), count, folder, f"{job}-{restart}")

    def other_jobs(self, job: schema.Scheduler, environment: Mapping[str, str]) -> dict[str, str]:
        listed = run_command(
            ["squeue", "-h", "-r", "-t", "R", "-w", ",".join(job.nodes), "-o", "%A|%u"]
        )
        pairs = (line.split("|", 1) for line in listed.split() if "|" in line)
        own = environment.get("SLURM_JOB_ID", "")
        return {job_id: owner for job_id, owner in pairs if job_id != own}

    def is_preempted(self, environment: Mapping[str, str]) -> bool:
        # SLURM sends SIGTERM both to cancel and to preempt. It requeues a preempted job only if
        # the job is still running after its grace time, which a run that stops in order is not.
        try:
            shown = run_command(["scontrol", "show", "job", environment["SLURM_JOB_ID"]])
        except LaunchError:
            return False
        found = re.search(r"\bPreemptTime=(\S+)", shown)
        return found is not None and found[1] not in ("None", "Unknown", "N/A")

    def requeue(self, environment: Mapping[str, str]) -> int:
        try:
            run_command(["scontrol", "requeue", environment["SLURM_JOB_ID"]])
        except LaunchError as error:
            print(f"dpeval: not requeued: {error}", file=sys.stderr)
        return 1


def _partition(site: SiteConfig, options: LauncherOptions) -> str | None:
    given = getattr(options, "partition", None) or site.partition
    return given or os.environ.get("SBATCH_PARTITION")
