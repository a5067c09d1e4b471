"""Recognise out-of-memory errors and OOM kills. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpeval.system import cgroups
from dpeval.util.display.units import GIB

MESSAGES = (
    "out of memory",
    "out_of_memory",
    "outofmemory",
    "status_alloc_failed",
    "statusallocfailed",
    "cufft_alloc_failed",
    "rocblas_status_memory_error",
    "memory not available to allocate buffer",
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "std::bad_alloc",
    "cannot allocate memory",
    "failed to allocate",
    "unable to allocate",
    "could not create a memory object",
)
"""Lower-case messages of the allocators of torch (c10/core/impl/alloc_cpu.cpp and
c10/cuda/CUDACachingAllocator.cpp), the CUDA and HIP runtimes and drivers, NCCL and RCCL ("Cuda
failure 2 'out of memory'"), the libraries of CUDA ("CUBLAS_STATUS_ALLOC_FAILED") and of ROCm
("hipErrorOutOfMemory", "miopenStatusAllocFailed"), oneDNN, NumPy, the C++ library and the C
library."""

AMBIGUOUS_MESSAGES = (
    "unable to find an engine to execute this computation",
    "no valid execution plans built",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "cublas_status_not_initialized",
    "cublas_status_internal_error",
    "cusolver_status_not_initialized",
    "cusparse_status_not_initialized",
    "rocblas_status_invalid_handle",
    "rocblas_status_internal_error",
    "hipblas_status_not_initialized",
    "miopenstatusunknownerror",
    "miopenstatusinternalerror",
    "failed to cuda",
)
"""Lower-case messages of errors that may have other causes than a lack of memory: cuDNN and cuBLAS
do not say that a handle or a workspace did not fit (aten/src/ATen/native/cudnn/Conv_v8.cpp discards
the error of every engine), and NCCL reports only its last error (its src/include/alloc.h)."""

LITTLE_BYTES = 1 * GIB
"""If less memory than this is free on a device, an ambiguous error counts as out of memory:
workspaces of cuBLAS and communication buffers of NCCL take tens to hundreds of MiB, and cuDNN has
engines that need less."""


def is_out_of_memory(error: BaseException, free_bytes: int | None = None) -> bool:
    """Whether `error`, or an error that it was raised from, reports a lack of memory.

    Args:
        error: what was raised.
        free_bytes: free memory on the rank's device at the time; None if unknown or if there is no
            such device, in which case an ambiguous error does not count as out of memory.
    """
    is_scarce = free_bytes is not None and free_bytes < LITTLE_BYTES
    messages = (*MESSAGES, *AMBIGUOUS_MESSAGES) if is_scarce else MESSAGES
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError":
            return True
        if isinstance(link, (RuntimeError, OSError)):
            text = str(link).lower()
            if any(message in text for message in messages):
                return True
        link = link.__cause__ or link.__context__
    return False


@dataclass(frozen=True)
class KillCounter:
    """A counter of the processes killed by the OOM killer."""

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
    """Where a process in the cgroup of this process was killed between two readings.

    Whichever limit was exceeded, the kernel counts the kill in the victim's cgroup. The counters of
    the groups above and of the host also count other victims, so they are only used if this cgroup
    has no counter.

    Returns:
        The cgroup's folder, ``host``, or None.
    """
    earlier = {item.place: item.kills for item in before}
    own = next(iter(after), None)
    if own is None or own.kills <= earlier.get(own.place, own.kills):
        return None
    return own.place


def _field(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return None
    return None
