"""The machine's condition while a run measured, sampled from outside the ranks.

Counters of the kernel are read at the first and the last sample, so shares of time need no
frequent sampling; clocks and temperatures are read once a second. A sample takes well under a
millisecond and is made by the process that watches the ranks, never by a rank.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpeval.nvml import GpuReader, open_reader
from dpeval.schema import Frozen

SAMPLE_EVERY_S = 1.0
MIN_ELAPSED_S = 1.0
"""Below this the kernel's 10 ms ticks say nothing about shares of a per cent."""
FOREIGN_SHARE = 0.05
"""A core that others used for more than this slows a step by as much: twice the precision that
`measure=standard` promises."""
STEAL_SHARE = 0.02
CLOCK_DROP = 0.9
FAULTS_PER_S = 10.0


class Conditions(Frozen):
    """Sampled from outside the ranks while they measured."""

    samples: int
    interval_s: float
    elapsed_s: float = 0.0
    """From the first sample to the last."""
    cpu_mhz: dict[str, float] = {}
    """Median, min and max over samples of the ranks' cores."""
    steal_share: float | None = None
    foreign_share: dict[str, float] = {}
    """Per CPU of the ranks: share of its time taken by other processes."""
    context_switches_per_s: float | None = None
    major_faults: int | None = None
    load_average: float | None = None
    gpus: dict[str, dict[str, float]] = {}
    """Per GPU: sm_mhz, temperature_c, power_w, throttled_share, foreign_processes."""
    energy_j: float | None = None
    energy_source: str = ""
    unreadable: list[str] = []
    """What this machine does not let be read."""
    bad: list[str] = []
    """Conditions that make the figures suspect, in words."""


@dataclass
class _Counters:
    """Kernel counters at one moment."""

    at_s: float
    busy_s: dict[int, float] = field(default_factory=dict[int, float])
    steal_s: dict[int, float] = field(default_factory=dict[int, float])
    rank_s: dict[int, float] = field(default_factory=dict[int, float])
    switches: int = 0
    major_faults: int = 0
    energy_j: dict[str, float] = field(default_factory=dict[str, float])


class ConditionSampler:
    """Watches the CPUs and GPUs of a run's ranks; call :meth:`sample` as often as you like."""

    def __init__(
        self,
        rank_cpus: Mapping[int, Sequence[int]],
        *,
        gpus: Sequence[int] = (),
        proc: Path = Path("/proc"),
        sysfs: Path = Path("/sys"),
    ) -> None:
        """`rank_cpus` maps the process id of every rank to the CPUs it is pinned to."""
        self._rank_cpus, self._proc, self._sysfs = dict(rank_cpus), proc, sysfs
        self._cpus = sorted({cpu for cpus in rank_cpus.values() for cpu in cpus})
        self._gpus: GpuReader | None = open_reader(gpus, set(rank_cpus)) if gpus else None
        self._first: _Counters | None = None
        self._last: _Counters | None = None
        self._mhz: list[float] = []
        self._loads: list[float] = []
        self._samples = 0

    def sample(self) -> None:
        """Take a sample if the last one is old enough."""
        now_s = time.monotonic()
        if self._last is not None and now_s - self._last.at_s < SAMPLE_EVERY_S:
            return
        counters = self._read(now_s)
        self._first = self._first or counters
        self._last = counters
        self._samples += 1
        self._mhz += self._clocks()
        self._loads.append(os.getloadavg()[0])
        if self._gpus is not None:
            self._gpus.sample()

    def finish(self) -> Conditions:
        """What was seen, with whatever makes the figures suspect in words."""
        first, last = self._first, self._last
        elapsed_s = last.at_s - first.at_s if first is not None and last is not None else 0.0
        seen = Conditions(
            samples=self._samples,
            interval_s=SAMPLE_EVERY_S,
            elapsed_s=elapsed_s,
            cpu_mhz=_spread(self._mhz),
            load_average=float(np.mean(self._loads)) if self._loads else None,
            gpus=self._gpus.finish() if self._gpus is not None else {},
        )
        if first is not None and last is not None and elapsed_s >= MIN_ELAPSED_S:
            seen = seen.model_copy(update=self._shares(first, last, elapsed_s))
        seen = seen.model_copy(update={"unreadable": self._unreadable(seen)})
        return seen.model_copy(update={"bad": bad_words(seen)})

    def _read(self, now_s: float) -> _Counters:
        counters = _Counters(now_s)
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        for line in _lines(self._proc / "stat"):
            name, *values = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in self._cpus:
                user, nice, system, _, _, irq, softirq, steal = (int(x) for x in values[:8])
                counters.busy_s[int(name[3:])] = (user + nice + system + irq + softirq) * tick_s
                counters.steal_s[int(name[3:])] = steal * tick_s
        for pid in self._rank_cpus:
            text = "".join(_lines(self._proc / f"{pid}/stat")).rpartition(")")[2].split()
            if len(text) > 12:
                counters.rank_s[pid] = (int(text[11]) + int(text[12])) * tick_s
                counters.major_faults += int(text[9])
            for line in _lines(self._proc / f"{pid}/status"):
                if "ctxt_switches" in line:
                    counters.switches += int(line.split()[1])
        for zone in self._sysfs.glob("class/powercap/intel-rapl:?"):
            value = "".join(_lines(zone / "energy_uj"))
            if value.isdigit():
                counters.energy_j[zone.name] = int(value) / 1e6
        return counters

    def _shares(self, first: _Counters, last: _Counters, elapsed_s: float) -> dict[str, object]:
        steal = [last.steal_s[cpu] - first.steal_s[cpu] for cpu in first.steal_s]
        found: dict[str, object] = {
            "steal_share": sum(steal) / len(steal) / elapsed_s if steal else None,
            "foreign_share": self._foreign(first, last, elapsed_s),
            "context_switches_per_s": (last.switches - first.switches) / elapsed_s,
            "major_faults": max(0, last.major_faults - first.major_faults),
        }
        joules = [last.energy_j[name] - first.energy_j[name] for name in first.energy_j]
        gpu_joules = self._gpus.energy_j() if self._gpus is not None else None
        if gpu_joules is not None:
            found |= {"energy_j": gpu_joules, "energy_source": "NVML (GPUs only)"}
        elif joules and min(joules) >= 0:
            # A counter that wrapped would go backwards; then nothing is said.
            found |= {"energy_j": sum(joules), "energy_source": "RAPL (CPU packages)"}
        return found

    def _foreign(self, first: _Counters, last: _Counters, elapsed_s: float) -> dict[str, float]:
        """Busy time of the ranks' CPUs that was not the ranks' own, as a share of the time.

        Ranks that share CPUs are taken together; within such a group the kernel does not tell
        which CPU the foreign time fell on, so it is spread evenly.
        """
        shares: dict[str, float] = {}
        for cpus, pids in _groups(self._rank_cpus):
            if not all(cpu in first.busy_s for cpu in cpus):
                continue
            busy_s = sum(last.busy_s[cpu] - first.busy_s[cpu] for cpu in cpus)
            own_s = sum(last.rank_s.get(pid, 0.0) - first.rank_s.get(pid, 0.0) for pid in pids)
            share = max(0.0, busy_s - own_s) / elapsed_s / len(cpus)
            shares |= {str(cpu): share for cpu in cpus}
        return shares

    def _clocks(self) -> list[float]:
        found = []
        for cpu in self._cpus:
            path = self._sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
            text = "".join(_lines(path))
            if text.isdigit():
                found.append(int(text) / 1e3)
        return found

    def _unreadable(self, seen: Conditions) -> list[str]:
        missing = {
            "CPU clock": not seen.cpu_mhz,
            "time of other processes": not seen.foreign_share,
            "energy": seen.energy_j is None,
            "memory bandwidth": True,
        }
        return [name for name, is_missing in missing.items() if is_missing]


def bad_words(seen: Conditions) -> list[str]:
    """Conditions that make the figures suspect, one sentence each."""
    words = []
    crowded = {cpu: share for cpu, share in seen.foreign_share.items() if share > FOREIGN_SHARE}
    if crowded:
        cores = ",".join(sorted(crowded, key=int))
        words.append(
            f"core{'s' * (len(crowded) > 1)} {cores} lost {max(crowded.values()):.0%} of "
            f"{'their' if len(crowded) > 1 else 'its'} time to other processes"
        )
    if (seen.steal_share or 0.0) > STEAL_SHARE:
        words.append(f"the hypervisor took {seen.steal_share:.0%} of the cores' time (steal)")
    mhz = seen.cpu_mhz
    if mhz and mhz["min"] < CLOCK_DROP * mhz["max"]:
        words.append(f"CPU clocks moved between {mhz['min']:.0f} and {mhz['max']:.0f} MHz")
    if seen.elapsed_s and (seen.major_faults or 0) / seen.elapsed_s > FAULTS_PER_S:
        words.append(f"{seen.major_faults} page faults went to disk")
    for name, gpu in seen.gpus.items():
        if gpu.get("throttled_share", 0.0) > FOREIGN_SHARE:
            words.append(f"GPU {name} throttled in {gpu['throttled_share']:.0%} of the samples")
        if gpu.get("foreign_processes", 0.0):
            words.append(f"GPU {name} was shared with {gpu['foreign_processes']:.0f} processes")
    return words


def _groups(rank_cpus: Mapping[int, Sequence[int]]) -> list[tuple[set[int], set[int]]]:
    """Sets of CPUs with the processes pinned to them, merged where they overlap."""
    groups: list[tuple[set[int], set[int]]] = []
    for pid, cpus in rank_cpus.items():
        joined, pids = set(cpus), {pid}
        for other in [group for group in groups if group[0] & joined]:
            groups.remove(other)
            joined, pids = joined | other[0], pids | other[1]
        groups.append((joined, pids))
    return groups


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
