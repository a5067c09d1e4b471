"""Recognise out-of-memory errors and OOM kills. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpeval.system import cgroups

MESSAGES = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "std::bad_alloc",
    "cannot allocate memory",
    "failed to allocate",
    "unable to allocate",
    "could not create a memory object",
    "out_of_memory",
)
"""Lower-case messages of the allocators of torch (c10/core/impl/alloc_cpu.cpp), CUDA, cuBLAS,
cuDNN, oneDNN, NumPy, the C++ library and the C library."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or an error that it was raised from, reports a lack of memory."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError":
            return True
        if isinstance(link, (RuntimeError, OSError)):
            text = str(link).lower()
            if any(message in text for message in MESSAGES):
                return True
        link = link.__cause__ or link.__context__
    return False


@dataclass(frozen=True)
class KillCounter:
    """One counter of processes that the OOM killer killed."""

    place: str
    """The cgroup's folder, or ``host``."""
    kills: int


def kill_counters(root: Path = cgroups.ROOT) -> list[KillCounter]:
    """The counters of every cgroup above this process, v1 and v2, and of the host, last."""
    counters = []
    for folder in cgroups.folders("memory", root):
        for name in ("memory.events", "memory.oom_control"):
            kills = _field(folder / name, "oom_kill")
            if kills is not None:
                counters.append(KillCounter(str(folder), kills))
    host = _field(root / "proc/vmstat", "oom_kill")
    return counters if host is None else [*counters, KillCounter("host", host)]


def killed_for_memory(before: list[KillCounter], after: list[KillCounter]) -> str | None:
    """Where a counter rose between two readings: a cgroup's folder, ``host``, or None."""
    earlier = {item.place: item.kills for item in before}
    for item in after:
        if item.kills > earlier.get(item.place, item.kills):
            return item.place
    return None


def _field(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return None
    return None
