"""SLURM: what sbatch is asked for, what squeue and sacct answer, what a job knows of itself."""

from __future__ import annotations

import getpass
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from dpeval.config import LauncherOptions, SiteConfig
from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import (
    UNKNOWN,
    Ending,
    JobState,
    Scheduler,
    State,
    ask,
    chosen,
    one_line,
    plain_options,
    worker_command,
)
from dpeval.launchers.schedulers.resources import Group, Resources
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
"""Variables of a job that its run's record keeps."""


@dataclass
class SlurmOptions(LauncherOptions, SlurmQueueConf):  # type: ignore[misc]  # untyped base
    """Keys of ``hydra/launcher=slurm``: those of ``submitit_slurm`` and dpeval's own.

    They override the site's: ``hydra.launcher.partition`` wins over ``site.partition``.
    """

    scheduler: str = "slurm"
    requeue: int = 1

    @property
    def gpus_asked(self) -> int | None:
        # gpu, gpu:2 and gpu:a100:2 are the forms of one generic resource.
        found = re.search(r"\bgpu\b(?::[^:,]*[^:,\d][^:,]*)?(?::(\d+))?", self.gres or "")
        if found is not None:
            return int(found[1] or 1)
        return self.gpus_per_task if self.gpus_per_task is not None else self.gpus_per_node


class Slurm(Scheduler):
    """SLURM through submitit, squeue (what waits and runs) and sacct (what has ended)."""

    name = "slurm"
    options = SlurmOptions

    def parameters(
        self, resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
    ) -> dict[str, Any]:
        return slurm_parameters(resources, site, options, job_name)

    def preview(self, group: Group, folder: Path, options: LauncherOptions) -> str:
        return sbatch_file(group, folder)

    def executor(
        self, folder: Path, parameters: dict[str, Any], site: SiteConfig, options: LauncherOptions
    ) -> Any:
        from submitit import SlurmExecutor

        if SlurmExecutor.affinity() < 0:
            raise LaunchError(
                "srun is not installed here: submit from a login node of the SLURM cluster, or "
                "look at the submission with hydra.launcher.dry_run=true"
            )
        executor = SlurmExecutor(folder)
        executor.update_parameters(**parameters)
        return executor

    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        return {**parameters, "dependency": f"afterok:{job_id}"}

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        if not job_ids:
            return {}
        arrays = sorted({job_id.partition("_")[0] for job_id in job_ids}, key=int)
        # squeue --jobs fails as a whole when it has forgotten one of them; --user does not.
        # All states: a job that has just ended may not have reached the accounting yet.
        recent = parse_squeue(
            ask(["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%T|%r|%N"])
        )
        fields = "JobID,State,ExitCode,NodeList"
        try:
            accounted = parse_sacct(
                ask(["sacct", "-n", "-P", "-o", fields, "-j", ",".join(arrays)])
            )
        except LaunchError:
            accounted = None  # without accounting only the controller's short memory is left
        found = {job_id: latest(job_id, recent, accounted) for job_id in job_ids}
        return {job_id: state for job_id, state in found.items() if state is not None}

    def cancel(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            ask(["scancel", *job_ids])

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
        job, restart = environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0")
        return Node(int(environment["SLURM_NODEID"]), count, folder, f"{job}-{restart}")

    def other_jobs(self, job: schema.Scheduler, environment: Mapping[str, str]) -> dict[str, str]:
        listed = ask(["squeue", "-h", "-r", "-t", "R", "-w", ",".join(job.nodes), "-o", "%A|%u"])
        pairs = (line.split("|", 1) for line in listed.split() if "|" in line)
        own = environment.get("SLURM_JOB_ID", "")
        return {job_id: owner for job_id, owner in pairs if job_id != own}

    def is_preempted(self, environment: Mapping[str, str]) -> bool:
        # SLURM sends SIGTERM to cancel and to preempt, and requeues a preempted job itself only
        # if that outlives its grace time, which a run that ends cleanly does not.
        shown = _scontrol("show", "job", environment["SLURM_JOB_ID"]).stdout
        found = re.search(r"\bPreemptTime=(\S+)", shown)
        return found is not None and found[1] not in ("None", "Unknown", "N/A")

    def requeue(self, environment: Mapping[str, str]) -> int:
        done = _scontrol("requeue", environment["SLURM_JOB_ID"])
        if done.returncode:
            print(f"dpeval: not requeued: {done.stderr.strip()}", file=sys.stderr)
        return 1


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def slurm_parameters(
    resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
) -> dict[str, Any]:
    """Keyword arguments of ``submitit.SlurmExecutor.update_parameters``.

    One task per node starts its ranks itself. ``srun`` of SLURM 22.05 and later does not take
    ``--cpus-per-task`` over from the job, so it is told again; ``--cpu-bind=none`` leaves the
    pinning inside the job's cpuset to dpeval.
    """
    shared = [f"--cpus-per-task={resources.cores}"]
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cores,
        "time": resources.time_min,
        "signal_delay_s": options.signal_delay_s,
        "array_parallelism": options.array_parallelism,
        "srun_args": [
            *([] if resources.exclusive else shared),
            "--cpu-bind=none",
            "--kill-on-bad-exit=1",
        ],
        "additional_parameters": {
            **({"requeue": True} if site.requeue and options.requeue else {"no-requeue": True}),
            **plain_options("site.options", site.options),
        },
    }
    if resources.gpus:
        parameters |= _slurm_gpus(resources.gpus, site)
    if site.ask_memory or options.mem_gb is not None:
        memory_mib = resources.memory_mib
        if memory_mib is not None:
            parameters["mem"] = f"{memory_mib}M"
        elif resources.exclusive:
            parameters["mem"] = "0"
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
    return _overridden(parameters, options)


_NATIVE = (
    "partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu",
    "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "account",
)  # fmt: skip
"""Keys of hydra-submitit-launcher that are submitit's own names of sbatch options."""
_INSTEAD_OF = {
    "gres": ("gpus_per_node",),
    "gpus_per_task": ("gpus_per_node", "gres"),
    "cpus_per_gpu": ("cpus_per_task",),
    "mem_per_gpu": ("mem",),
    "mem_per_cpu": ("mem",),
}
"""What sbatch accepts not together with a key: derived options that give way to it."""


def _overridden(parameters: dict[str, Any], options: LauncherOptions) -> dict[str, Any]:
    """`parameters` with the keys of ``hydra/launcher`` that were given in place of derived ones."""
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
    made["additional_parameters"] = {
        **made["additional_parameters"],
        **plain_options("hydra.launcher.additional_parameters", options.additional_parameters),
    }
    return made


def _slurm_gpus(gpus: int, site: SiteConfig) -> dict[str, Any]:
    kind = "" if site.gpu_type is None else one_line("site.gpu_type", site.gpu_type) + ":"
    if site.gpu_option == "gres":
        return {"gres": f"gpu:{kind}{gpus}"}
    return {"gpus_per_node": f"{kind}{gpus}" if kind else gpus}


def sbatch_file(group: Group, folder: Path, python: str = sys.executable) -> str:
    """The batch file that submitit writes for `group`."""
    from submitit.slurm.slurm import _make_sbatch_string

    count = len(group.members)
    return str(
        _make_sbatch_string(
            command=worker_command(folder, python),
            folder=folder,
            map_count=count if count > 1 else None,
            **group.parameters,
        )
    )


def latest(
    job_id: str, recent: Mapping[str, JobState], accounted: Mapping[str, JobState] | None
) -> JobState | None:
    """The controller's word for what lives, the accounting's for how a job ended.

    Only the accounting knows the steps, hence whether memory was the cause: a job that has
    ended for the controller alone is still ending.
    """
    now = recent.get(job_id)
    past = accounted.get(job_id) if accounted is not None else None
    if now is None or accounted is None:
        return now or past
    if now.state != "ended" or (past is not None and past.state == "ended"):
        return past if now.state == "ended" else now
    return JobState(state="running", reason="ending", nodes=now.nodes)


_SLURM_ENDINGS: dict[str, Ending] = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "OUT_OF_MEMORY": "oom_kill",
    "PREEMPTED": "preempted",
}
_SLURM_RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")


def slurm_state(word: str, reason: str = "", nodes: str = "") -> JobState:
    """One of SLURM's state words (``CANCELLED by 1001``) in dpeval's."""
    name = word.split()[0] if word.split() else ""
    told = reason if reason not in ("", "None") else ""
    nodes = "" if nodes == "None assigned" else nodes
    if name in _SLURM_ENDINGS:
        return JobState(
            state="ended", ending=_SLURM_ENDINGS[name], reason=told or word, nodes=nodes
        )
    state: State = "running" if name in _SLURM_RUNNING else "queued"
    return JobState(state=state, reason=told or word, nodes=nodes)


def parse_squeue(text: str) -> dict[str, JobState]:
    """Lines ``id|state|reason|nodes`` of ``squeue -r``."""
    found = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) == 4:
            found[parts[0]] = slurm_state(parts[1], parts[2], parts[3])
    return found


def parse_sacct(text: str) -> dict[str, JobState]:
    """Lines ``id|state|exit code|nodes`` of ``sacct -P``, steps included.

    A job whose step was killed for memory under ``srun`` is itself only FAILED: the step tells.
    """
    found: dict[str, JobState] = {}
    steps: list[tuple[str, str]] = []
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) != 4:
            continue
        job_id, word, exit_code, nodes = parts
        if "." in job_id:
            steps.append((job_id.partition(".")[0], word))
            continue
        state = slurm_state(word, "", nodes)
        if state.ending == "failed":
            state = state.model_copy(update={"reason": f"{word} with exit code {exit_code}"})
        for one in _expand(job_id):
            found[one] = state
    for job_id, word in steps:
        state = found.get(job_id, UNKNOWN)
        if word.startswith("OUT_OF_ME") and state.ending in ("failed", "cancelled"):
            found[job_id] = state.model_copy(update={"ending": "oom_kill", "reason": word})
    return found


def _expand(job_id: str) -> list[str]:
    """``7_[2-4,9%2]``, sacct's name for tasks that wait together, as single ids."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if found is None:
        return [job_id]
    ids = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        ids += [f"{found[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return ids
