"""This process and others: memory, OOM score, CPUs to keep off."""

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


class ResidentMemory(Frozen):
    """Memory that a process holds and the kernel cannot take back."""

    now_bytes: int
    peak_bytes: int


def resident(pid: int | str = "self", proc: Path = Path("/proc")) -> ResidentMemory | None:
    """What a process holds without pages of files (proc(5), status); None where it cannot be read.

    Pages of libraries and of a mapped cache of pixels are the host's file cache: processes
    share them and the kernel drops them before it refuses memory to anyone. They may have come
    after the peak, which is then told too low by what came.
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
    """Let this process keep what it frees, as ``GlibcAllocator`` with `keeps` models it.

    Raises:
        MachineError: its C library is not GNU's, or refuses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0)):
        raise MachineError(
            "hardware.keep_memory=true needs the GNU C library's allocator, and this system has "
            "another; use hardware.keep_memory=false"
        )


def prefer_oom_kill() -> None:
    """Ask the kernel to end this process, and not its parent, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextlib.contextmanager
def avoid_cpus(cpus: Collection[int]) -> Iterator[None]:
    """Keep the calling thread off `cpus` meanwhile, where it may use any others.

    Whoever watches ranks should not take their time.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    others = allowed - set(cpus)
    os.sched_setaffinity(0, others or allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
