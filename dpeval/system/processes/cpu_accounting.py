"""CPU time of the ranks and of other processes on the ranks' CPUs, from /proc (proc(5)).

The busy time of a CPU minus the time that the run's processes used is what other processes took.
The kernel counts both from boot, so the first and the last sample suffice. Helpers of ranks
(processes that decode images) count as part of the ranks; threads pinned to other CPUs do not
count.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpeval.system.procfs import KernelFile, read_text
from dpeval.system.topology import parse_cpu_list

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTimes:
    """Time of one CPU since boot, s."""

    work_s: float
    """Time spent in processes, including guests and the kernel."""
    interrupt_s: float
    steal_s: float

    def __sub__(self, other: CpuTimes) -> CpuTimes:
        return CpuTimes(
            self.work_s - other.work_s,
            self.interrupt_s - other.interrupt_s,
            self.steal_s - other.steal_s,
        )


@dataclass(frozen=True)
class Process:
    """One line of ``/proc/<pid>/stat``."""

    pid: int
    name: str
    parent: int
    group: int
    minor_faults: int
    major_faults: int
    spent_s: float
    cpu: int
    """The CPU that it ran on last."""


class _Clock:
    """CPU time of one process or thread since `begin_s`, up to the last reading that was kept."""

    def __init__(self, folder: Path, begin_s: float) -> None:
        self._begin_s = self._kept_s = self._read_s = begin_s
        self._file = KernelFile(folder / "stat")

    def read(self) -> Process | None:
        """Read the file; None if the process has ended, which leaves its time unchanged."""
        process = parse_process(self._file.read())
        if process is not None:
            self._read_s = process.spent_s
        return process

    def keep(self) -> None:
        """Keep the last reading."""
        self._kept_s = self._read_s

    @property
    def spent_s(self) -> float:
        return self._kept_s - self._begin_s

    def close(self) -> None:
        self._file.close()


@dataclass
class _Group:
    """Ranks that share CPUs, and their helpers."""

    cpus: set[int]
    ranks: set[int]
    members: dict[int, _Clock] = field(default_factory=dict[int, _Clock])
    """The ranks and their helpers, by process id."""
    elsewhere: dict[tuple[int, int], _Clock] = field(default_factory=dict[tuple[int, int], _Clock])
    """Threads (process, thread) that are pinned to other CPUs."""

    def own_s(self) -> float:
        """Time that the ranks and their helpers used on these CPUs, s."""
        away_s = sum(clock.spent_s for clock in self.elsewhere.values())
        return sum(clock.spent_s for clock in self.members.values()) - away_s


@dataclass
class _Other:
    """A process that does not belong to the run."""

    name: str
    begin_s: float
    now_s: float
    cpus: set[int]
    """CPUs that it was seen on."""


class RankTimes:
    """CPU time on the CPUs of a run's ranks since the first sample."""

    def __init__(self, rank_cpus: Mapping[int, Sequence[int]], proc: Path) -> None:
        """`rank_cpus` maps the process id of every rank to the CPUs that it is pinned to."""
        self._proc = proc
        self._groups = [_Group(*group) for group in _merged(rank_cpus)]
        self._stat = KernelFile(proc / "stat")
        self._status = {pid: KernelFile(proc / f"{pid}/status") for pid in rank_cpus}
        self._others: dict[int, _Other] = {}
        self._begin: dict[int, CpuTimes] = {}
        self._now: dict[int, CpuTimes] = {}
        self._switches: dict[int, tuple[int, int]] = {}
        self._major_faults: dict[int, tuple[int, int]] = {}
        self._minor_faults: dict[int, tuple[int, int]] = {}

    def sample(self) -> bool:
        """Read all counters; False, with nothing kept, if a rank has ended.

        Call :meth:`scan` before the first sample.
        """
        cpus = parse_cpu_times(self._stat.read())
        processes = {
            pid: clock.read() for group in self._groups for pid, clock in group.members.items()
        }
        for group in self._groups:
            for clock in group.elsewhere.values():
                clock.read()
        ranks = {pid: processes.get(pid) for pid in self._status}
        if not cpus or any(rank is None for rank in ranks.values()):
            return False
        for group in self._groups:
            for clock in (*group.members.values(), *group.elsewhere.values()):
                clock.keep()
        self._begin = self._begin or cpus
        self._now = cpus
        for pid, rank in ranks.items():
            counts = [(self._switches, _switches(self._status[pid].read()))]
            if rank is not None:
                counts.append((self._major_faults, rank.major_faults))
                counts.append((self._minor_faults, rank.minor_faults))
            for seen, count in counts:
                seen[pid] = _since_first(seen.get(pid), count)
        return True

    def scan(self) -> None:
        """Find the ranks' helpers, threads pinned elsewhere, and all other processes.

        Reads every process of the host, so call it only now and then.
        """
        processes = {process.pid: process for process in read_processes(self._proc)}
        # A process that is missing from the first scan has started since.
        is_first = not self._begin
        foreign = set(processes)
        for group in self._groups:
            family = _family(group.ranks, processes)
            foreign -= family
            for pid in family & processes.keys():
                if pid not in group.members:
                    begin_s = processes[pid].spent_s if is_first else 0.0
                    group.members[pid] = _Clock(self._proc / str(pid), begin_s)
                self._find_elsewhere(group, pid)
        for pid in foreign:
            now = processes[pid]
            begin_s = now.spent_s if is_first else 0.0
            other = self._others.setdefault(pid, _Other(now.name, begin_s, begin_s, set()))
            other.now_s = now.spent_s
            other.cpus.add(now.cpu)

    def _find_elsewhere(self, group: _Group, pid: int) -> None:
        for tid in _numbers(self._proc / f"{pid}/task"):
            if (pid, tid) in group.elsewhere:
                continue
            folder = self._proc / f"{pid}/task/{tid}"
            allowed = read_text(folder / "status").partition("Cpus_allowed_list:")[2]
            cpus = parse_cpu_list(allowed.partition("\n")[0])
            thread = parse_process(read_text(folder / "stat"))
            if cpus and thread is not None and group.cpus.isdisjoint(cpus):
                group.elsewhere[pid, tid] = _Clock(folder, thread.spent_s)

    def close(self) -> None:
        """Close all files."""
        for file in (self._stat, *self._status.values()):
            file.close()
        for group in self._groups:
            for clock in (*group.members.values(), *group.elsewhere.values()):
                clock.close()

    def cpu_times(self) -> dict[int, CpuTimes]:
        """Time of each CPU of the host between the first and the last sample."""
        begin, now = self._begin, self._now
        return {cpu: now[cpu] - begin[cpu] for cpu in begin.keys() & now.keys()}

    def foreign_s(self) -> dict[int, float]:
        """Time that other processes took on each CPU of the ranks, s.

        Exact for ranks with one CPU each. Within a group of shared CPUs, the kernel does not report
        which CPU other processes used, so their time is spread evenly.
        """
        times = self.cpu_times()
        found: dict[int, float] = {}
        for group in self._groups:
            if group.cpus <= times.keys() and group.members:
                work_s = sum(times[cpu].work_s for cpu in group.cpus)
                share_s = max(0.0, work_s - group.own_s()) / len(group.cpus)
                found |= dict.fromkeys(group.cpus, share_s)
        return found

    def elsewhere_s(self) -> float:
        """Time that ranks' threads spent on CPUs that no rank is pinned to, s."""
        return sum(clock.spent_s for group in self._groups for clock in group.elsewhere.values())

    def top_processes(self, cpus: Collection[int], least_s: float) -> list[str]:
        """Other processes seen on `cpus` that used at least `least_s`, the busiest first."""
        seen = [
            (
                other.now_s - other.begin_s,
                "the dpeval parent process" if pid == os.getpid() else f"{other.name} (pid {pid})",
            )
            for pid, other in self._others.items()
            if not other.cpus.isdisjoint(cpus) and other.now_s - other.begin_s >= least_s
        ]
        return [name for _, name in sorted(seen, reverse=True)]

    def switches(self) -> int:
        """Context switches of the ranks' main threads."""
        return sum(now - first for first, now in self._switches.values())

    def major_faults(self) -> int:
        """Page faults of the ranks that were served from disk."""
        return sum(now - first for first, now in self._major_faults.values())

    def minor_faults(self) -> int:
        """Page faults of the ranks that were served from memory."""
        return sum(now - first for first, now in self._minor_faults.values())


def parse_cpu_times(text: str) -> dict[int, CpuTimes]:
    """Time of every CPU since boot, from the text of ``/proc/stat``."""
    found: dict[int, CpuTimes] = {}
    for line in text.splitlines():
        name, *words = line.split()
        if not name.startswith("cpu"):
            break
        if name != "cpu" and len(words) >= 8:
            user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words[:8])
            found[int(name[3:])] = CpuTimes(
                (user + nice + system) * TICK_S, (irq + softirq) * TICK_S, steal * TICK_S
            )
    return found


def parse_process(text: str) -> Process | None:
    """A process or thread from its ``stat``; None if that is empty or the process has ended."""
    # The name may contain anything, including blanks and parentheses.
    before, _, after = text.rpartition(")")
    pid, _, name = before.partition(" (")
    words = after.split()
    if len(words) < 37 or words[0] in "ZX":
        return None
    return Process(
        pid=int(pid),
        name="".join(char if char.isprintable() else "?" for char in name),
        parent=int(words[1]),
        group=int(words[2]),
        minor_faults=int(words[7]),
        major_faults=int(words[9]),
        spent_s=(int(words[11]) + int(words[12])) * TICK_S,
        cpu=int(words[36]),
    )


def read_processes(proc: Path) -> Iterator[Process]:
    """All visible processes."""
    for pid in _numbers(proc):
        process = parse_process(read_text(proc / f"{pid}/stat"))
        if process is not None:
            yield process


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def _switches(status: str) -> int:
    lines = [line.split() for line in status.splitlines() if "ctxt_switches" in line]
    return sum(int(words[1]) for words in lines)


def _since_first(pair: tuple[int, int] | None, now: int) -> tuple[int, int]:
    """The first value of a counter and its current value."""
    return (pair[0] if pair is not None else now, now)


def _family(ranks: set[int], processes: Mapping[int, Process]) -> set[int]:
    """`ranks`, everything in the process groups that they lead, and all their descendants."""
    family = ranks | {pid for pid, process in processes.items() if process.group in ranks}
    while True:
        children = {pid for pid, process in processes.items() if process.parent in family}
        if children <= family:
            return family
        family |= children


def _merged(rank_cpus: Mapping[int, Sequence[int]]) -> list[tuple[set[int], set[int]]]:
    """Sets of CPUs with the ranks pinned to them, merged where they overlap."""
    groups: list[tuple[set[int], set[int]]] = []
    for pid, cpus in rank_cpus.items():
        joined, pids = set(cpus), {pid}
        for other in [group for group in groups if group[0] & joined]:
            groups.remove(other)
            joined, pids = joined | other[0], pids | other[1]
        groups.append((joined, pids))
    return groups
