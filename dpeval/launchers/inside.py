"""What a job can read of itself: its scheduler's variables and files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpeval.record.schema import Scheduler


def show_oar_gpus(environment: Any) -> None:
    """Make the job's GPUs, and only them, visible to CUDA: OAR itself sets nothing."""
    path = environment.get("OAR_RESOURCE_PROPERTIES_FILE")
    if path is None or "CUDA_VISIBLE_DEVICES" in environment:
        return
    devices = oar_gpus(Path(path).read_text(encoding="utf-8", errors="replace"))
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))


def oar_gpus(properties: str, host: str | None = None) -> list[int]:
    """Device numbers in OAR's resource file (lines ``gpudevice = '0' , host = 'node1' , …``).

    Of several nodes the job's first counts (`host` None): OAR starts the job there.
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


def describe_job(launcher: str, environment: Mapping[str, str]) -> Scheduler:
    """The job that this process is in, from the variables that its scheduler sets."""
    if launcher == "slurm":
        array = environment.get("SLURM_ARRAY_JOB_ID")
        task = environment.get("SLURM_ARRAY_TASK_ID")
        raw = environment.get("SLURM_JOB_ID", "")
        return Scheduler(
            kind=launcher,
            job_id=f"{array}_{task}" if array else raw,
            array_id=array,
            nodes=[environment[name] for name in ("SLURM_JOB_NODELIST",) if name in environment],
            details=_some(environment, _SLURM_DETAILS),
        )
    return Scheduler(
        kind=launcher,
        job_id=environment.get("OAR_JOB_ID", ""),
        array_id=environment.get("OAR_ARRAY_ID"),
        nodes=oar_nodes(environment),
        details=_some(environment, _OAR_DETAILS),
    )


_SLURM_DETAILS = (
    "SLURM_JOB_PARTITION",
    "SLURM_CPUS_ON_NODE",
    "SLURM_MEM_PER_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_ACCOUNT",
)
_OAR_DETAILS = (
    "OAR_PROJECT_NAME",
    "OAR_JOB_WALLTIME",
    "OAR_ARRAY_INDEX",
    "CUDA_VISIBLE_DEVICES",
)


def _some(environment: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environment[name] for name in names if name in environment}


def oar_nodes(environment: Mapping[str, str]) -> list[str]:
    try:
        lines = Path(environment["OAR_NODEFILE"]).read_text(encoding="utf-8").split()
    except (KeyError, OSError):
        return []
    return list(dict.fromkeys(lines))
