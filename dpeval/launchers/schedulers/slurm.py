"""SLURM: submission through sbatch, states from squeue and sacct, and what a job knows."""

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
    Option,
    Scheduler,
    checked_options,
    chosen,
    one_line,
    run_command,
    worker_command,
)
from dpeval.launchers.schedulers.resources import Group, Resources
from dpeval.launchers.schedulers.slurm_states import (
    latest,
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
"""Variables that say where SLURM is, not what a job is like."""
USERS_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
}
"""Defaults that users keep for sbatch, and the parameter that takes their place."""


@contextlib.contextmanager
def without_job_variables(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Hide variables of a surrounding job, which sbatch would take for options of the new one.

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
        partition = getattr(options, "partition", None) or site.partition
        partition = partition or os.environ.get("SBATCH_PARTITION")
        try:
            listed = run_command(["sinfo", "-h", "-o", "%P|%l"])
        except LaunchError:
            return None  # a dry run far from the cluster
        return parse_time_limits(listed, partition)

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
        from submitit import SlurmExecutor

        if SlurmExecutor.affinity() < 0:
            raise LaunchError(
                "srun is not installed here: submit from a login node of the SLURM cluster, or "
                "look at the submission with hydra.launcher.dry_run=true"
            )
        executor = SlurmExecutor(folder)
        executor.update_parameters(**parameters)
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

    def find(self, job_name: str) -> list[str]:
        """See :meth:`Scheduler.find`."""
        command = ["squeue", "-h", "-r", "-u", getpass.getuser(), "-n", job_name, "-o", "%i"]
        return run_command(command).split()

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


def slurm_parameters(
    resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
) -> dict[str, Any]:
    """Keyword arguments of ``submitit.SlurmExecutor.update_parameters``.

    One task per node starts the node's ranks. ``srun`` of SLURM 22.05 and later does not inherit
    the job's ``--cpus-per-task``, so it is repeated; ``--cpu-bind=none`` leaves pinning inside the
    job's cpuset to dpeval.

    Args:
        resources: what the job needs; cores, GPUs and memory per node.
        site: the cluster's settings.
        options: the keys of ``hydra/launcher``, which take precedence over both.
        job_name: the job's name.

    Raises:
        ConfigError: a text contains a control character.
    """
    shared = [f"--cpus-per-task={resources.cores}"]
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cores,
        "time": resources.time_min,
        "signal_delay_s": resources.warning_s,
        "array_parallelism": options.array_parallelism,
        "srun_args": [
            *([] if resources.exclusive else shared),
            "--cpu-bind=none",
            "--kill-on-bad-exit=1",
        ],
        "additional_parameters": {
            "requeue" if site.requeue and options.requeue else "no-requeue": True
        },
    }
    if resources.gpus:
        parameters |= _slurm_gpus(resources.gpus, site)
    if site.ask_memory or options.mem_gb is not None:
        memory_mib = resources.memory_mib
        if memory_mib is not None and not resources.all_memory:
            parameters["mem"] = f"{memory_mib}M"
        elif resources.exclusive:
            parameters["mem"] = "0"  # all of the node's
    if resources.exclusive:
        parameters["exclusive"] = True
    constraint = (site.gpu_constraint if resources.gpus else None) or site.constraint
    for key, value in (
        ("partition", site.partition),
        ("account", site.account),
        ("qos", site.qos),
        ("constraint", constraint),
    ):
        if value is not None:
            parameters[key] = one_line(f"site.{key}", value)
    if site.setup:
        parameters["setup"] = list(site.setup)
    given = checked_options("site.options", site.options)
    return _overridden(_with_options(parameters, given), options)


_CONTRARY = {"requeue": "no-requeue", "no-requeue": "requeue"}


def _with_options(parameters: Mapping[str, Any], given: Mapping[str, Option]) -> dict[str, Any]:
    """`parameters` with the options that the user gives in place of derived ones.

    An option that is false or null is left out. Of a list, sbatch takes the elements with commas.
    """
    made, additional = dict(parameters), dict(parameters["additional_parameters"])
    for name, value in given.items():
        own = name.replace("-", "_")
        key = own if own in made else name
        additional.pop(_CONTRARY.get(name, ""), None)
        if value is None or value is False:
            made.pop(key, None)
            additional.pop(key, None)
        else:
            additional[key] = ",".join(value) if isinstance(value, list) else value
    return {**made, "additional_parameters": additional}


_NATIVE = (
    "partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu",
    "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "account",
)  # fmt: skip
"""Keys of hydra-submitit-launcher that submitit accepts under the same name."""
_INSTEAD_OF = {
    "gres": ("gpus_per_node",),
    "gpus_per_task": ("gpus_per_node", "gres"),
    "cpus_per_gpu": ("cpus_per_task",),
    "mem_per_gpu": ("mem",),
    "mem_per_cpu": ("mem",),
}
"""Derived options that each key replaces, because sbatch does not accept both."""


def _overridden(parameters: dict[str, Any], options: LauncherOptions) -> dict[str, Any]:
    """`parameters` with the keys of ``hydra/launcher`` in place of derived options."""
    made = dict(parameters)
    for key in _NATIVE:
        value = getattr(options, key, None)
        if value is None:
            continue
        for derived in _INSTEAD_OF.get(key, ()):
            made.pop(derived, None)
        made[key] = value if isinstance(value, int) else one_line(f"hydra.launcher.{key}", value)
    if "cpus_per_task" not in made:
        made["srun_args"] = [
            word for word in made["srun_args"] if not word.startswith("--cpus-per-task")
        ]
    if options.setup is not None:
        made["setup"] = list(options.setup)
    if options.stderr_to_stdout:
        made["stderr_to_stdout"] = True
    key = "hydra.launcher.additional_parameters"
    return _with_options(made, checked_options(key, options.additional_parameters))


def _slurm_gpus(gpus: int, site: SiteConfig) -> dict[str, Any]:
    kind = "" if site.gpu_type is None else one_line("site.gpu_type", site.gpu_type) + ":"
    if site.gpu_option == "gres":
        return {"gres": f"gpu:{kind}{gpus}"}
    return {"gpus_per_node": f"{kind}{gpus}" if kind else gpus}


def sbatch_file(group: Group, folder: Path, python: str = sys.executable) -> str:
    """The batch file that submitit writes for `group`.

    Args:
        group: jobs with equal requests.
        folder: where the submission file and the logs go.
        python: the interpreter that the job runs.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    count = len(group.jobs)
    return str(
        _make_sbatch_string(
            command=worker_command(folder, python),
            folder=folder,
            map_count=count if count > 1 else None,
            **group.parameters,
        )
    )
