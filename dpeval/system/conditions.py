"""The state of the machine during a run, sampled from outside the ranks.

The supervisor calls :meth:`ConditionSampler.sample` between its polls, so nothing runs inside a
rank. Shares of time come from kernel counters, whose first and last reading suffice; clocks and
temperatures are sampled.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpeval.record.conditions import MIN_ELAPSED_S, Conditions
from dpeval.system import cgroups
from dpeval.system.gpu.libraries import open_reader
from dpeval.system.gpu.reader import GpuReader, UsedGpu
from dpeval.system.processes.cpu_accounting import CpuTimes, RankTimes
from dpeval.system.procfs import ROOT, KernelFile
from dpeval.system.sensors import (
    Clocks,
    EventCounter,
    Rapl,
    heat_counter,
    memory_counter,
    name_cores,
    siblings_of,
)
from dpeval.util.display.plural import counted, inflected
from dpeval.util.display.ranges import percent, percents

INTERVAL_S = 1.0
BEGIN_INTERVAL_S = 0.2
"""Interval between samples in the first seconds, so that even short runs have two readings."""
COST_SHARE = 0.002
"""Sampling takes at most this share of one core's time; slow sampling is done less often."""
LOST_SHARE = 0.02
"""A step waits for its slowest rank, so a core that loses more than this moves the mean outside the
± 2 % that measure=standard promises."""
SIBLING_SHARE = 0.1
"""A busy SMT sibling costs its core about a quarter of its speed, so this share costs 2-3 %."""
FAULTS_PER_S = 10.0
"""A major fault waits 0.1 to 10 ms for the disk: at this rate, about 1 % of the time."""
THROTTLED_SHARE = 0.05
"""Share of samples: one in twenty is more than a single odd reading in a short run."""
_TICKS_PER_S = 100
"""The lowest tick rate of a kernel (CONFIG_HZ)."""
_MAX_NAMED = 3


class ConditionSampler:
    """Samples the CPUs and GPUs of a run's ranks; :meth:`sample` may be called at any rate."""

    def __init__(
        self,
        rank_cpus: Mapping[int, Sequence[int]],
        *,
        gpus: Mapping[int, UsedGpu] | None = None,
        root: Path = ROOT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the kernel's files and the GPUs.

        Args:
            rank_cpus: maps the process id of every rank to the CPUs that it is pinned to.
            gpus: the ranks' GPUs by CUDA index.
            root: the folder that holds ``proc`` and ``sys``.
            clock: monotonic time, s.
        """
        self._clock = clock
        self._cpus = sorted({cpu for cpus in rank_cpus.values() for cpu in cpus})
        self._siblings = siblings_of(self._cpus, root)
        self._times = RankTimes(rank_cpus, root / "proc")
        self._clocks = Clocks(self._cpus, root)
        self._heat: EventCounter = heat_counter(self._cpus, root)
        self._memory: EventCounter = memory_counter(root)
        self._rapl = Rapl(root)
        self._own_rapl = Rapl(root)
        """Reader for :meth:`energy_now_j`, which is called at other moments."""
        self._gpus: GpuReader | str | None = open_reader(gpus) if gpus else None
        self._quotas = [KernelFile(folder / "cpu.stat") for folder in cgroups.folders("cpu", root)]
        self._quota_s: list[float] = []
        self._loads: list[float] = []
        self._samples = 0
        self._begin_s = self._last_s = math.nan
        self._next_s = self._scan_s = -math.inf

    def sample(self) -> None:
        """Take a sample if one is due and all ranks are alive."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        if now_s >= self._scan_s:
            self._scan()
            now_s = self._clock()
        begin_cost_s = time.thread_time()
        if not self._times.sample():
            return
        if self._samples == 0:
            self._begin_s = now_s
        self._last_s = now_s
        self._samples += 1
        self._read_sensors()
        every_s = INTERVAL_S if now_s - self._begin_s > 2 * INTERVAL_S else BEGIN_INTERVAL_S
        self._next_s = now_s + max(every_s, (time.thread_time() - begin_cost_s) / COST_SHARE)

    @property
    def has_sampled(self) -> bool:
        return self._samples > 0

    def energy_now_j(self, gpus: Collection[str]) -> float | None:
        """Energy of the CPUs and of `gpus` since some fixed moment, J, read now.

        Args:
            gpus: their CUDA indices; empty: the CPUs alone.

        Returns:
            Energy as in :meth:`finish`: of the GPUs only if that of the CPUs cannot be read; None
            before the first sample, and if that of the GPUs cannot be read.
        """
        if not self.has_sampled:
            return None
        self._own_rapl.read()
        host_j = self._own_rapl.energy_j
        if not gpus:
            return host_j
        gpu_j = self._gpus.energy_now_j(gpus) if isinstance(self._gpus, GpuReader) else None
        return gpu_j + (host_j or 0.0) if gpu_j is not None else None

    def _scan(self) -> None:
        """Find new and ended processes, at growing intervals."""
        begin_cost_s, now_s = time.thread_time(), self._clock()
        self._times.scan()
        elapsed_s = now_s - self._begin_s if self._samples else 0.0
        cost_s = time.thread_time() - begin_cost_s
        self._scan_s = now_s + max(INTERVAL_S, elapsed_s / 4, cost_s / COST_SHARE)

    def _read_sensors(self) -> None:
        for sensor in (self._clocks, self._heat, self._memory, self._rapl):
            sensor.read()
        if isinstance(self._gpus, GpuReader):
            self._gpus.sample()
        stopped_s = cgroups.throttled_s(file.read() for file in self._quotas)
        if stopped_s is not None:
            self._quota_s.append(stopped_s)
        with contextlib.suppress(OSError):
            self._loads.append(os.getloadavg()[0])

    def finish(self) -> Conditions:
        """The conditions, with one sentence for each that makes the figures less trustworthy."""
        elapsed_s = self._last_s - self._begin_s if self._samples else 0.0
        seen = Conditions(
            samples=self._samples,
            interval_s=elapsed_s / (self._samples - 1) if self._samples > 1 else 0.0,
            elapsed_s=elapsed_s,
            cpu_mhz=self._clocks.spread(),
            heat_events=self._heat.increase,
            load_average=float(np.mean(self._loads)) if self._loads else None,
        )
        if isinstance(self._gpus, GpuReader):
            seen = seen.model_copy(update={"gpus": self._gpus.finish()})
        if elapsed_s >= MIN_ELAPSED_S:
            seen = seen.model_copy(update={**self._shares(elapsed_s), **self._energy(elapsed_s)})
        seen = seen.model_copy(update={"unreadable": self._unreadable(seen)})
        self._times.close()
        if isinstance(self._gpus, GpuReader):
            self._gpus.close()
        return seen.model_copy(update={"bad": disturbances(seen) + self._clocks.disturbances()})

    def _shares(self, elapsed_s: float) -> dict[str, object]:
        times = self._times.cpu_times()
        own = [times[cpu] for cpu in self._cpus if cpu in times]
        if not own:
            return {}
        all_s = elapsed_s * len(own)
        foreign_s = self._times.foreign_s()
        sibling_s = self._sibling_s(times)
        lost = {**foreign_s, **sibling_s}
        least_s = LOST_SHARE / 2 * elapsed_s
        slowed = [cpu for cpu, lost_s in lost.items() if lost_s > least_s]
        return {
            "steal_share": sum(cpu.steal_s for cpu in own) / all_s,
            "interrupt_share": sum(cpu.interrupt_s for cpu in own) / all_s,
            "busy_share": {
                str(cpu): times[cpu].work_s / elapsed_s for cpu in self._cpus if cpu in times
            },
            "foreign_share": {str(cpu): lost_s / elapsed_s for cpu, lost_s in foreign_s.items()},
            "sibling_share": {str(cpu): lost_s / elapsed_s for cpu, lost_s in sibling_s.items()},
            "taken_by": self._times.top_processes(slowed, least_s)[:_MAX_NAMED],
            "quota_share": (self._quota_s[-1] - self._quota_s[0]) / all_s
            if self._quota_s
            else None,
            "context_switches_per_s": self._times.switches() / elapsed_s,
            "major_faults": self._times.major_faults(),
            "minor_faults_per_s": self._times.minor_faults() / elapsed_s,
        }

    def _sibling_s(self, times: Mapping[int, CpuTimes]) -> dict[int, float]:
        """Time of other processes on SMT siblings, s: busy time minus what the ranks' helpers may
        have used."""
        busy = {cpu: times[cpu].work_s for cpu in self._siblings if cpu in times}
        all_s = sum(busy.values())
        if all_s == 0:
            return busy
        foreign_s = max(0.0, all_s - self._times.elsewhere_s())
        return {cpu: work_s * foreign_s / all_s for cpu, work_s in busy.items()}

    def _energy(self, elapsed_s: float) -> dict[str, object]:
        """Energy of GPUs and CPUs, as far as it can be read.

        Empty if a run's GPUs report no energy: the energy of the CPUs would be mistaken for the
        total.
        """
        traffic = self._memory.increase
        found: dict[str, object] = {
            "memory_bytes_per_s": traffic / elapsed_s if traffic is not None else None
        }
        host_j = self._rapl.energy_j
        if self._gpus is None:
            if host_j is not None:
                found |= {"energy_j": host_j, "energy_source": self._rapl.source}
            return found
        if isinstance(self._gpus, str):
            return found
        gpu_j, library = self._gpus.energy_j, self._gpus.source
        if gpu_j is not None and host_j is not None:
            source = f"{library} (the ranks' GPUs) and {self._rapl.source}"
            found |= {"energy_j": gpu_j + host_j, "energy_source": source}
        elif gpu_j is not None:
            found |= {"energy_j": gpu_j, "energy_source": f"{library} (the ranks' GPUs alone)"}
        return found

    def _unreadable(self, seen: Conditions) -> list[str]:
        is_short = seen.elapsed_s < MIN_ELAPSED_S
        found = []
        if is_short:
            found.append(
                f"shares of time and energy (watched for {seen.elapsed_s:.1f} s, at least "
                f"{MIN_ELAPSED_S:.0f} s are needed)"
            )
        elif not seen.foreign_share:
            found.append("time of other processes")
        if not seen.cpu_mhz:
            found.append("CPU clock")
        if seen.heat_events is None:
            found.append("CPU throttling by heat")
        if self._memory.increase is None:
            found.append("memory bandwidth")
        if self._rapl.energy_j is None:
            why = "its counters cannot be read" if self._rapl.is_there else "no RAPL"
            found.append(f"energy of the CPUs ({why})")
        if isinstance(self._gpus, str):
            found.append(f"clocks, power, energy, other processes of the GPUs ({self._gpus})")
        for name, gpu in seen.gpus.items():
            missing = sorted(_GPU_READINGS - gpu.keys())
            found += [f"GPU {name}: {', '.join(missing)}"] if missing else []
        return found


_GPU_READINGS = {"sm_mhz", "temperature_c", "power_w", "throttled_share", "foreign_processes"}


def disturbances(seen: Conditions) -> list[str]:
    """Conditions that make the figures less trustworthy, one sentence each."""
    found = []
    slowed = {
        int(cpu): share
        for cpu, share in seen.foreign_share.items()
        if share > LOST_SHARE + _tick_error(seen.busy_share.get(cpu, 0.5), seen.elapsed_s)
    }
    by = f": {', '.join(seen.taken_by)}" if seen.taken_by else ""
    if slowed:
        found.append(
            f"{name_cores(slowed)} lost {_range(slowed)} of {_their(slowed)} time to other "
            f"processes{by}"
        )
    shared = {int(cpu): share for cpu, share in seen.sibling_share.items() if share > SIBLING_SHARE}
    if shared:
        found.append(
            f"the SMT {inflected(len(shared), 'sibling')} {','.join(map(str, sorted(shared)))} of "
            f"the ranks' cores gave {_range(shared)} of {_their(shared)} time to other processes"
            f"{by if not slowed else ''}"
        )
    if (seen.steal_share or 0.0) > LOST_SHARE:
        found.append(
            f"the hypervisor took {percent(seen.steal_share or 0.0)} of the cores' time (steal)"
        )
    if (seen.quota_share or 0.0) > LOST_SHARE:
        found.append(
            f"a cgroup quota stopped this job for {percent(seen.quota_share or 0.0)} of the "
            "cores' time"
        )
    if seen.heat_events:
        found.append(f"the ranks' cores were throttled by heat {seen.heat_events} times")
    if seen.elapsed_s and (seen.major_faults or 0) / seen.elapsed_s > FAULTS_PER_S:
        found.append(f"{seen.major_faults} page faults of the ranks were served from disk")
    return found + _gpu_disturbances(seen)


def _gpu_disturbances(seen: Conditions) -> list[str]:
    found = []
    for name, gpu in seen.gpus.items():
        throttled, others = gpu.get("throttled_share", 0.0), gpu.get("foreign_processes", 0.0)
        if throttled > THROTTLED_SHARE:
            found.append(f"GPU {name} was throttled in {percent(throttled)} of the samples")
        if others:
            found.append(
                f"GPU {name} was shared with "
                f"{counted(int(others), 'other process', plural='other processes')}"
            )
    return found


def _tick_error(busy_share: float, elapsed_s: float) -> float:
    """Three standard errors of a share that is counted by sampling at every tick.

    A kernel with tick-based CPU accounting (CONFIG_TICK_CPU_ACCOUNTING) samples the time of CPUs
    but counts that of processes exactly, so a half-idle core seems more or less busy than it is.
    """
    share = min(1.0, max(0.0, busy_share))
    return 3 * math.sqrt(share * (1 - share) / (_TICKS_PER_S * elapsed_s)) if elapsed_s else 1.0


def _their(cpus: Sequence[int] | Mapping[int, float]) -> str:
    return "their" if len(cpus) > 1 else "its"


def _range(shares: Mapping[int, float]) -> str:
    return percents(min(shares.values()), max(shares.values()))
