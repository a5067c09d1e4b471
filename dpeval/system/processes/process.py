"""Memory, OOM score and CPU affinity of processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from dpeval.errors import MachineError
from dpeval.util.frozen import Frozen

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
PR_SET_TIMERSLACK, LAZY_NS = 29, 500_000_000


class ResidentMemory(Frozen):
    """Memory that a process holds and the kernel cannot reclaim."""

    now_bytes: int
    peak_bytes: int


def resident(pid: int | str = "self", proc: Path = Path("/proc")) -> ResidentMemory | None:
    """Memory of a process without file pages (proc(5), status); None if it cannot be read.

    Pages of libraries and of a memory-mapped pixel cache belong to the host's page cache: processes
    share them, and the kernel reclaims them before it runs out of memory. If they were mapped after
    the peak, the peak is underestimated by as much.
    """
    try:
        text = (proc / str(pid) / "status").read_text()
    except OSError:
        return None
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    if "VmHWM" not in sizes or "RssFile" not in sizes:
        return None
    now = sizes["VmRSS"] - sizes["RssFile"]
    return ResidentMemory(now_bytes=now, peak_bytes=max(now, sizes["VmHWM"] - sizes["RssFile"]))


def keep_freed_memory() -> None:
    """Make this process keep freed memory, as ``GlibcAllocator`` with `keeps` models it.

    Raises:
        MachineError: the C library is not glibc, or it refuses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0)):
        raise MachineError(
            "hardware.keep_memory=true needs glibc's allocator, but this system has another; "
            "use hardware.keep_memory=false"
        )


def trim_freed_memory() -> None:
    """Return memory that this process has freed to the system, if the C library is glibc.

    glibc returns only what lies at the end of its heap; the rest stays until malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


@contextlib.contextmanager
def lazy_timers() -> Iterator[None]:
    """Let threads that start in this context wake up later than their timeouts ask.

    gloo's thread checks every 10 ms whether to end. That takes 0.15 % of a core, which adds up when
    dozens of ranks wait for their turns. Data still wakes it at once, however late its timers may
    be (prctl(2), PR_SET_TIMERSLACK, which new threads inherit).
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        yield
        return
    prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(LAZY_NS), 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(0), 0, 0, 0)  # back to the thread's default


def prefer_oom_kill() -> None:
    """Make the OOM killer choose this process rather than its parent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextlib.contextmanager
def avoid_cpus(*choices: Collection[int]) -> Iterator[None]:
    """In this context, keep the calling thread off the first of `choices` that leaves it any CPU.

    The supervisor must not take CPU time from its ranks.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    left = (allowed - set(cpus) for cpus in choices)
    os.sched_setaffinity(0, next(filter(None, left), allowed))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
