"""The environment of a run: hardware, versions, environment variables, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from dpeval.record.machine import Environment, Machine
from dpeval.system.procfs import ROOT, read_text
from dpeval.system.topology import parse_cpu_list, read_cpus

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "hydra-core",
    "omegaconf",
    "submitit",
    "dpeval",
)


SPEED_VARIABLES = re.compile(
    r"^(OMP|GOMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS|NUMEXPR|TBB|GLOO|NCCL|UCX|FI|CUDA|CUBLAS|CUDNN|"
    r"NVIDIA|HIP|HIPBLASLT|ROCR|ROCBLAS|HSA|RCCL|MIOPEN|TORCH|PYTORCH|MALLOC|TCMALLOC|JEMALLOC)_|^(LD_PRELOAD|GLIBC_TUNABLES|PYTHONMALLOC)$"
)


_ARITHMETIC = re.compile(r"^(avx|amx_|fma$|f16c$|asimd|sve|bf16$|i8mm$)")
_GIT_TIMEOUT_S = 5.0


def environment(
    machine: Machine, extra_versions: Mapping[str, str] | None = None, root: Path = ROOT
) -> Environment:
    """Describe the hardware and software that runs on this machine use.

    Args:
        machine: from :func:`dpeval.system.topology.detect`.
        extra_versions: versions that only libraries report (CUDA, cuDNN, NCCL; HIP, MIOpen, RCCL).
        root: the folder that holds ``proc`` and ``sys``.
    """
    online = parse_cpu_list(read_text(root / "sys/devices/system/cpu/online"))
    host = read_cpus(online, root) or machine.cpus
    commit, dirty = git_state(Path(__file__).resolve().parent)
    return Environment(
        host=machine.host,
        cpu_model=_cpu_model(root),
        logical_cpus=len(host),
        physical_cores=len({cpu.core for cpu in host}),
        sockets=len({cpu.socket for cpu in host}),
        numa_nodes=len({cpu.numa for cpu in host}),
        allowed_cpus=[cpu.cpu for cpu in machine.cpus],
        gpus=machine.gpus,
        memory_bytes=machine.memory_bytes,
        kernel=platform.release(),
        os=platform.platform(),
        python=platform.python_version(),
        versions={**_versions(), **(extra_versions or {})},
        git_commit=commit,
        git_dirty=dirty,
        variables={
            name: value for name, value in sorted(os.environ.items()) if SPEED_VARIABLES.match(name)
        },
        cpu_quota=machine.cpu_quota,
        cpu_features=_cpu_features(root),
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model(root: Path) -> str:
    text = read_text(root / "proc/cpuinfo")
    found = re.search(r"^(?:model name|cpu model|cpu)\s*:\s*(.*\S)", text, re.M)
    if found is not None:
        return found[1]
    arm = re.search(r"^CPU implementer\s*:\s*(\w+)[\s\S]*?^CPU part\s*:\s*(\w+)", text, re.M)
    if arm is not None:
        return f"{platform.machine()} (implementer {arm[1]}, part {arm[2]})"
    return platform.processor() or platform.machine()


def _cpu_features(root: Path) -> list[str]:
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", read_text(root / "proc/cpuinfo"), re.M)
    words = listed[1].split() if listed is not None else []
    return sorted({word for word in words if _ARITHMETIC.match(word)})


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks `folder`, and whether tracked files differ from it.

    (None, None) without git or a commit, and if the checkout around `folder` does not track it, as
    for an installed package, since such a commit says nothing about `folder`.
    """
    status_of = ("status", "--porcelain=v2", "--branch", "--untracked-files=no")
    try:
        with _git(folder, "ls-files", "--", ".") as tracked, _git(folder, *status_of) as status:
            try:
                files, _ = tracked.communicate(timeout=_GIT_TIMEOUT_S)
                lines, _ = status.communicate(timeout=_GIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                tracked.kill()
                status.kill()
                return None, None
    except OSError:
        return None, None
    commit = re.search(r"^# branch.oid ([0-9a-f]+)$", lines, re.M)
    if not files or commit is None:
        return None, None
    return commit[1], any(not line.startswith("#") for line in lines.splitlines())


def _git(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # Inside a git hook, GIT_* variables point to another checkout; and a status that takes a lock
    # could make a concurrent commit fail.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.Popen(
        ["git", "-C", str(folder), *arguments],
        env={**clean, "GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
