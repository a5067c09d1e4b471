"""OAR: submission through oarsub, states from oarstat, and a job's own variables."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeval.config import Config, LauncherOptions, SiteConfig
from dpeval.errors import LaunchError
from dpeval.launchers.schedulers.base import (
    JobState,
    Option,
    Scheduler,
    checked_options,
    chosen,
    one_line,
    run_command,
)
from dpeval.launchers.schedulers.container import check_on_oar, python_words
from dpeval.launchers.schedulers.oar import nodes as oar_nodes
from dpeval.launchers.schedulers.oar.states import oar_state, parse_oarstat
from dpeval.launchers.schedulers.oar.submission import oarsub_command, waves
from dpeval.launchers.schedulers.resources import Group, Resources
from dpeval.record import schema
from dpeval.run.job import Node
from dpeval.system.gpu.libraries import VISIBLE_DEVICES

RESUBMIT_STATUS = 99
"""Exit status after which OAR resubmits an ``idempotent`` job."""
_DETAILS = (
    "OAR_PROJECT_NAME",
    "OAR_JOB_WALLTIME",
    "OAR_ARRAY_INDEX",
    *VISIBLE_DEVICES,
)
"""A job's variables that go into the record."""


@dataclass
class OarOptions(LauncherOptions):
    """Keys of ``hydra/launcher=oar``."""

    scheduler: str = "oar"
    queue: str | None = None
    """OAR queue; null: ``site.partition``."""
    poll_s: float = 5.0


class Oar(Scheduler):
    """OAR through a corrected submitit-oar (:mod:`dpeval.launchers.schedulers.oar.executor`)."""

    name = "oar"
    options = OarOptions
    _at_once = 500
    """Ids per command line, far below the kernel's limit."""

    def parameters(
        self, resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
    ) -> dict[str, Any]:
        """See :meth:`Scheduler.parameters`."""
        return oar_parameters(resources, site, options, job_name)

    def caution(self, resources: Resources, site: SiteConfig, options: LauncherOptions) -> str:
        """See :meth:`Scheduler.caution`."""
        if not resources.gpus:
            return ""
        asked = self.parameters(resources, site, options, "")["additional_parameters"].get("p")
        if any(word in str(asked) for word in _PINS):
            return ""
        return (
            "no GPU model is requested, so runs may land on different models, which are not "
            "compared with each other; request one with site.properties, as in gpu_model='A100'"
        )

    def preview(self, group: Group, folder: Path, options: LauncherOptions) -> str:
        """See :meth:`Scheduler.preview`."""
        script = folder / "<submission>.sh"
        lines, parameters = [], group.parameters
        for wave in waves(group.jobs, options.array_parallelism):
            singly = bool(options.requeue) and len(wave) > 1
            line = shlex.join(oarsub_command(parameters, script, None if singly else len(wave)))
            lines.append(line)
            if singly:
                lines.append(f"({len(wave)} times: OAR does not resubmit the elements of an array)")
            parameters = self.after(group.parameters, "<each job above>")
        return "\n".join(lines)

    def executor(
        self, folder: Path, parameters: dict[str, Any], site: SiteConfig, options: LauncherOptions
    ) -> Any:
        """See :meth:`Scheduler.executor`."""
        # Late: it imports submitit.
        from dpeval.launchers.schedulers.oar.executor import OarExecutor

        if OarExecutor.affinity() < 0:
            raise LaunchError(
                "oarsub is not installed here: submit from a frontend of the OAR cluster, or "
                "look at the submission with hydra.launcher.dry_run=true"
            )
        executor = OarExecutor(folder)
        executor.python = python_words(site.container, folder)
        executor.exported = tuple(site.environment)
        executor.no_arrays = bool(options.requeue)
        executor.max_concurrent = options.array_parallelism
        executor.update_parameters(**parameters)
        return executor

    def after(self, parameters: dict[str, Any], job_id: str) -> dict[str, Any]:
        additional = {**parameters["additional_parameters"], "a": job_id}
        return {**parameters, "additional_parameters": additional}

    def query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        found: dict[str, JobState] = {}
        for first in range(0, len(job_ids), self._at_once):
            some = job_ids[first : first + self._at_once]
            found |= self._query(some)
        return found

    def _query(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        ids = ",".join(str(int(job_id)) for job_id in job_ids)
        # One query for all jobs: -j given N times costs N queries.
        jobs = parse_oarstat(run_command(["oarstat", "-f", "-J", "--sql", f"job_id IN ({ids})"]))
        again = parse_oarstat(
            run_command(["oarstat", "-f", "-J", "--sql", f"resubmit_job_id IN ({ids})"])
        )
        found = {job_id: oar_state(job) for job_id, job in jobs.items()}
        if again:
            later = self._query(list(again))
            for job_id, job in again.items():
                found[str(job["resubmit_job_id"])] = later.get(job_id, oar_state(job))
        return found

    def find(self, folder: Path) -> list[str]:
        """See :meth:`Scheduler.find`."""
        jobs = parse_oarstat(run_command(["oarstat", "-f", "-J", "-u", getpass.getuser()]))
        return [job_id for job_id, job in jobs.items() if _runs_from(folder, job)]

    def cancel(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        ids = ",".join(str(int(job_id)) for job_id in job_ids)
        again = parse_oarstat(
            run_command(["oarstat", "-f", "-J", "--sql", f"resubmit_job_id IN ({ids})"])
        )
        run_command(["oardel", *job_ids, *again])

    def describe_job(self, environment: Mapping[str, str]) -> schema.Scheduler:
        return schema.Scheduler(
            kind=self.name,
            job_id=environment.get("OAR_JOB_ID", ""),
            array_id=environment.get("OAR_ARRAY_ID"),
            nodes=oar_nodes.hosts(environment),
            details=chosen(environment, _DETAILS),
        )

    def node_in_job(self, environment: Mapping[str, str], count: int, folder: Path) -> Node:
        """This process's node, from the variable that node 0 sets on the others.

        Args:
            environment: of this process.
            count: how many nodes the run has.
            folder: the run's folder, which all nodes share.
        """
        index = int(environment.get(oar_nodes.NODE_VARIABLE, "0"))
        return Node(index, count, folder, environment["OAR_JOB_ID"])

    def other_jobs(self, job: schema.Scheduler, environment: Mapping[str, str]) -> dict[str, str]:
        running = parse_oarstat(run_command(["oarstat", "-f", "-J", "--sql", "state = 'Running'"]))
        here = set(job.nodes)
        return {
            job_id: str(other.get("owner") or other.get("job_user") or "?")
            for job_id, other in running.items()
            if job_id != job.job_id and here & set(other.get("assigned_network_address") or [])
        }

    def expose_gpus(self, environment: MutableMapping[str, str]) -> None:
        path = environment.get("OAR_RESOURCE_PROPERTIES_FILE")
        if path is None or any(name in environment for name in VISIBLE_DEVICES):
            return
        devices = oar_gpus(Path(path).read_text(encoding="utf-8", errors="replace"))
        indices = cuda_indices(devices, openable_gpus())
        if indices:
            # OAR counts GPUs as the driver does; CUDA by default puts the fastest first.
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            # The ROCm runtime also obeys this variable.
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, indices))

    def other_nodes(self, config: Config, node: Node | None) -> AbstractContextManager[None]:
        return oar_nodes.started(config, node)

    def requeue(self, environment: Mapping[str, str]) -> int:
        return RESUBMIT_STATUS


def _runs_from(folder: Path, job: Mapping[str, Any]) -> bool:
    """Whether the script of `job` lies in `folder`; see :func:`oarsub_command`."""
    try:
        words = shlex.split(str(job.get("command") or ""))
    except ValueError:
        return False  # no command of dpeval's
    return any(word.startswith(f"{folder}/") for word in words)


def oar_gpus(properties: str, host: str | None = None) -> list[int]:
    """Device numbers of `host` in OAR's resource file.

    Args:
        properties: lines such as ``gpudevice = '0' , host = 'node1' , …``.
        host: None: the job's first node, on which OAR starts the job.
    """
    found: dict[str, set[int]] = {}
    for line in properties.splitlines():
        fields = dict(re.findall(r"(\w+)\s*=\s*'([^']*)'", line))
        where = fields.get("network_address") or fields.get("host") or ""
        devices = found.setdefault(where, set())
        if fields.get("gpudevice", "").isdigit():
            devices.add(int(fields["gpudevice"]))
    if not found:
        return []
    return sorted(found.get(host or next(iter(found)), set()))


def openable_gpus(folder: Path = Path("/dev")) -> list[int]:
    """The numbers of NVIDIA's GPUs that this process may open: a cgroup can forbid the others."""
    found = []
    for path in folder.glob("nvidia[0-9]*"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            found.append(int(path.name.removeprefix("nvidia")))
    return sorted(found)


def cuda_indices(devices: Sequence[int], openable: Sequence[int]) -> list[int]:
    """The job's GPUs as CUDA counts them: among those that the process may open.

    Args:
        devices: the job's, as the node counts them.
        openable: those that this process may open; none: not NVIDIA's.
    """
    if not set(devices) <= set(openable):
        return list(devices)
    return [list(openable).index(device) for device in devices]


def oar_parameters(
    resources: Resources, site: SiteConfig, options: LauncherOptions, job_name: str
) -> dict[str, Any]:
    """Keyword arguments of :class:`dpeval.launchers.schedulers.oar.executor.OarExecutor`.

    The whole ``-l`` request is written here: submitit-oar 1.1.2 supports no other name for the GPU
    level, turns ``gpus_per_node=0`` into ``/gpu=0``, which oarsub refuses, and raises ValueError
    on memory, cores per task and tasks per node. ``/gpu=N`` alone may span several nodes, so
    ``/nodes=`` always comes first.

    Args:
        resources: what the job needs; cores, GPUs and memory per node.
        site: the cluster's settings.
        options: the keys of ``hydra/launcher``, which take precedence over both.
        job_name: the job's name.

    Raises:
        ConfigError: a text contains a control character, or OAR cannot start the container.
    """
    check_on_oar(site.container, resources.nodes)
    hours, minutes = divmod(resources.time_min, 60)
    request = f"/nodes={resources.nodes}"
    if not resources.exclusive:
        level = f"/{one_line('site.gpu_level', site.gpu_level)}={resources.gpus}"
        request += level if resources.gpus else f"/core={resources.cores}"
    kinds = ["besteffort"] if site.besteffort else []
    if site.requeue and options.requeue:
        kinds.append("idempotent")
    account = options.account or site.account
    derived: dict[str, Any] = {
        "l": f"{request},walltime={hours:02}:{minutes:02}:00",
        "checkpoint": str(resources.warning_s),
        "t": kinds or None,
        "project": None if account is None else one_line("account", account),
        "p": _oar_properties(resources, site) or None,
    }
    asked = checked_options("site.options", site.options)
    key = "hydra.launcher.additional_parameters"
    more = checked_options(key, options.additional_parameters)
    additional = _with_options(_with_options(derived, asked, joins=True), more, joins=False)
    parameters: dict[str, Any] = {
        "n": job_name,
        "timeout_min": resources.time_min,
        "additional_parameters": additional,
    }
    queue = getattr(options, "queue", None) or site.partition
    if queue is not None:
        parameters["queue"] = one_line("queue", queue)
    setup = site.setup if options.setup is None else options.setup
    if setup:
        parameters["setup"] = list(setup)
    if options.stderr_to_stdout:
        parameters["stderr_to_stdout"] = True
    return parameters


def _with_options(
    derived: Mapping[str, Any], given: Mapping[str, Option], *, joins: bool
) -> dict[str, Any]:
    """`derived` options, replaced by those that the user gives.

    Types of a job, ``-t``, are added to the derived ones. An option that is false or null is left
    out; of a list, oarsub takes the elements one by one.

    Args:
        derived: options of oarsub.
        given: the user's.
        joins: the user's properties, ``-p``, must hold beside the derived ones.
    """
    made = {_SHORT.get(name, name): value for name, value in derived.items()}
    for name, value in ((_SHORT.get(name, name), value) for name, value in given.items()):
        before = made.get(name)
        if name == "t" and value and before:
            made[name] = list(dict.fromkeys([*_listed(before), *_listed(value)]))
        elif name == "p" and joins and isinstance(value, str) and before:
            made[name] = _joined([before, value])
        else:
            made[name] = value
    return {name: value for name, value in made.items() if value is not None and value is not False}


_PINS = ("model", "cluster", "host", "network_address")
"""Words in properties that select nodes whose GPUs are alike."""
_SHORT = {"type": "t", "property": "p", "resource": "l"}
"""Options that dpeval derives too, under their long names."""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _oar_properties(resources: Resources, site: SiteConfig) -> str:
    parts = [site.properties]
    if resources.gpus and site.gpu_properties:
        parts.append(site.gpu_properties.replace("{gpus}", str(resources.gpus)))
    if resources.memory_mib is not None and site.memory_properties:
        parts.append(site.memory_properties.replace("{mib}", str(resources.memory_mib)))
    return _joined(one_line("site.properties", part) for part in parts if part)


def _joined(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else " AND ".join(f"({part})" for part in found)
