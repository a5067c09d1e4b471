"""Limits that control groups set on this process: memory and CPU time.

A container or a scheduler may set limits on any group above the process, under version 1 or 2 of
the interface or both at once (cgroups(7)), and may mount only part of the tree. Groups are
therefore looked up in ``/proc/self/cgroup`` and located through ``/proc/self/mountinfo``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from dpeval.system.procfs import ROOT as ROOT
from dpeval.system.procfs import read_text

_NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page, about 2**63."""


def memory_limits(root: Path = ROOT) -> list[int]:
    """The memory limits of all groups above this process, bytes.

    ``memory.high`` counts as a limit: above it, the kernel throttles a process so much that
    measuring it is pointless.
    """
    found: list[int] = []
    for folder in folders("memory", root):
        words = [
            read_text(folder / name)
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        ]
        # The lowest limit of all groups above, including those outside this container.
        text = read_text(folder / "memory.stat")
        words += re.findall(r"^hierarchical_memory_limit (\d+)", text, re.M)
        found += [int(word) for word in words if word.strip().isdigit()]
    return [limit for limit in found if is_limit(limit)]


def is_limit(limit_bytes: int) -> bool:
    """Whether a value in a limit file is a real limit."""
    return 0 < limit_bytes < _NO_LIMIT_BYTES


def cpu_quota(root: Path = ROOT) -> float | None:
    """The CPU quota of this process in CPUs, the lowest of all groups above; None: no limit."""
    quotas: list[float] = []
    for folder in folders("cpu", root):
        words = read_text(folder / "cpu.max").split() or [
            read_text(folder / "cpu.cfs_quota_us").strip(),
            read_text(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def throttled_s(stats: Iterable[str]) -> float | None:
    """Total time that quotas throttled groups, s, from their ``cpu.stat``; None: not reported.

    Of nested groups, the longest time counts. A group's time adds up over the CPUs on which it was
    throttled.
    """
    times: list[float] = []
    for text in stats:
        for name, per_s in (("throttled_usec", 1e6), ("throttled_time", 1e9)):
            times += [int(value) / per_s for value in re.findall(rf"^{name} (\d+)", text, re.M)]
    return max(times, default=None)


def folders(controller: str, root: Path = ROOT) -> list[Path]:
    """The groups of this process under `controller`, innermost first, as folders below `root`."""
    found: list[Path] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            for mounted, top in _mounts(controllers, root):
                found += [root / place.relative_to("/") for place in _climb(path, mounted, top)]
    return found


def _climb(path: str, mounted: PurePosixPath, top: PurePosixPath) -> Iterator[PurePosixPath]:
    """Folders from the group `path` up to `top`, where the group `mounted` is mounted."""
    group = PurePosixPath(path)
    if group.is_relative_to(mounted) and ".." not in group.parts:
        inner = top / group.relative_to(mounted)
        yield inner
        yield from (above for above in inner.parents if above.is_relative_to(top))
    else:
        # The name is that of the host, while this group's folder is mounted as the top.
        yield top


def _mounts(controllers: str, root: Path) -> list[tuple[PurePosixPath, PurePosixPath]]:
    """Mounted groups of a hierarchy and their mount points (proc(5), mountinfo)."""
    found: list[tuple[PurePosixPath, PurePosixPath]] = []
    wanted = set(controllers.split(",")) if controllers else set[str]()
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split(" ")
        is_ours = kind == "cgroup2" if not wanted else kind == "cgroup"
        if is_ours and wanted <= set(options.split(",")):
            fields = before.split(" ")
            found.append((PurePosixPath(fields[3]), PurePosixPath(fields[4])))
    return found


def memory_left(folder: Path) -> int | None:
    """Memory left below a cgroup's limit, bytes, counting page cache as free; None: no limit."""
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = int((folder / limit_name).read_text())
            usage = int((folder / usage_name).read_text())
        except (OSError, ValueError):
            continue
        return max(0, limit - usage + _page_cache(folder)) if is_limit(limit) else None
    return None


def _page_cache(folder: Path) -> int:
    """File pages that the kernel reclaims before it kills, bytes."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = {name: int(value) for name, value in (line.split() for line in lines)}
    # v1 counts the pages of the cgroup itself and, with total_, also those of its descendants.
    return sum(
        stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file")
    )


def display_name(folder: Path) -> str:
    """The kernel's name of a cgroup, without mount point and controller."""
    parts = folder.parts
    inner = parts[parts.index("cgroup") + 1 :] if "cgroup" in parts else parts
    return "/" + "/".join(part for part in inner if part not in ("memory", "unified"))
