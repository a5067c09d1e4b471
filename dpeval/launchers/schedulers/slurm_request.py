"""The request to SLURM: a job's options, and the batch file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpeval.config import LauncherOptions, SiteConfig
from dpeval.launchers.schedulers.base import Option, checked_options, one_line, worker_command
from dpeval.launchers.schedulers.container import python_words, srun_words
from dpeval.launchers.schedulers.resources import Group, Resources


def slurm_parameters(
    resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
) -> dict[str, Any]:
    """Keyword arguments of ``submitit.SlurmExecutor.update_parameters``.

    One task per node starts the node's ranks. ``srun`` of SLURM 22.05 and later does not inherit
    the job's ``--cpus-per-task``, so it is repeated; ``--cpu-bind=none`` leaves pinning inside the
    job's cpuset to dpeval. A node that fails must not end node 0, which writes the record: the
    nodes tell each other of failures and end by themselves.

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
            "--kill-on-bad-exit=0",
            "--wait=0",
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
    """`parameters`, with derived options replaced by those that the user gives.

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
    """`parameters`, with derived options replaced by keys of ``hydra/launcher``."""
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

    words = [python] if group.site.container.image is None else None
    words = words or python_words(group.site.container, folder)
    count = len(group.jobs)
    return str(
        _make_sbatch_string(
            command=worker_command(folder, words),
            folder=folder,
            map_count=count if count > 1 else None,
            **in_container(group.parameters, group.site, folder),
        )
    )


def in_container(parameters: dict[str, Any], site: SiteConfig, folder: Path) -> dict[str, Any]:
    """`parameters` with which srun starts the site's container.

    Args:
        parameters: see :func:`slurm_parameters`.
        site: the cluster's settings.
        folder: where submission files and pickles lie.
    """
    words = [*parameters["srun_args"], *srun_words(site.container, folder)]
    return {**parameters, "srun_args": words}
