"""Clocks, heat, energy and memory traffic during a run, from /sys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dpeval.system.procfs import ROOT, KernelFile, read_text
from dpeval.system.topology import parse_cpu_list
from dpeval.util.display.plural import counted, inflected

CLOCK_DROP = 0.9
"""A core whose clock is a tenth lower does a tenth less work."""
_MIN_CLOCKS = 5
"""Minimum number of samples for meaningful quantiles of a clock."""


class EventCounter:
    """Total increase of some counters since the first reading."""

    def __init__(self, files: Iterable[Path], ranges: Sequence[int] = ()) -> None:
        """`ranges` are the values at which the counters wrap around; empty if they do not."""
        self._files = [KernelFile(path) for path in files]
        self._ranges = ranges or (0,) * len(self._files)
        self._last: list[int] | None = None
        self._increase: int | None = 0

    def read(self) -> None:
        """Add the increase of the counters since the last reading."""
        words = [file.read().strip() for file in self._files]
        if not words or not all(word.isdigit() for word in words):
            self._increase = None
            return
        now = [int(word) for word in words]
        if self._last is not None and self._increase is not None:
            steps = [new - old for new, old in zip(now, self._last, strict=True)]
            steps = [
                step + span if step < 0 else step
                for step, span in zip(steps, self._ranges, strict=True)
            ]
            # A counter that decreased and has no known range was reset: its increase is unknown.
            self._increase = self._increase + sum(steps) if min(steps) >= 0 else None
        self._last = now

    @property
    def increase(self) -> int | None:
        """The sum of all increases; None if a counter could not be read every time."""
        return self._increase if self._last is not None else None


class Rapl:
    """Energy of the host's CPU packages and memory (powercap, "intel-rapl", AMD's too).

    Packages are counted as a whole, including energy used on behalf of other programs.
    """

    def __init__(self, root: Path = ROOT) -> None:
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        # A package contains its core and uncore zones, and psys contains the packages.
        names = {zone: read_text(zone / "name").strip() for zone in zones}
        packages = [zone for zone, name in names.items() if name.startswith("package")]
        memory = [zone for zone, name in names.items() if name == "dram"]
        metered = packages + memory if packages else []
        ranges = [read_text(zone / "max_energy_range_uj").strip() for zone in metered]
        self._meter = EventCounter(
            [zone / "energy_uj" for zone in metered],
            [int(span) if span.isdigit() else 0 for span in ranges],
        )
        self.is_there = bool(metered)
        self.source = f"RAPL ({counted(len(packages), 'CPU package')}" + (
            ", memory)" if memory else ")"
        )

    def read(self) -> None:
        """Take a reading; often enough that no counter wraps twice (minutes)."""
        self._meter.read()

    @property
    def energy_j(self) -> float | None:
        """Energy since the first reading, J; None if it cannot be read."""
        return self._meter.increase / 1e6 if self._meter.increase is not None else None


class Clocks:
    """Clock frequencies of some CPUs, MHz."""

    def __init__(self, cpus: Sequence[int], root: Path = ROOT) -> None:
        self._root = root
        self._seen: dict[int, list[float]] = {cpu: [] for cpu in cpus}
        self._rated = {cpu: read_text(self._file(cpu, "cpuinfo_max_freq")) for cpu in cpus}
        self._files = {cpu: KernelFile(self._file(cpu, "scaling_cur_freq")) for cpu in cpus}
        # Without this flag the kernel reports the rated clock, which never changes.
        self._by_cpuinfo = not any(
            file.read() for file in self._files.values()
        ) and " aperfmperf" in read_text(root / "proc/cpuinfo")

    def _file(self, cpu: int, name: str) -> Path:
        return self._root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}"

    def read(self) -> None:
        """Take a sample of every CPU's clock."""
        if self._by_cpuinfo:
            self._read_cpuinfo()
            return
        for cpu, file in self._files.items():
            word = file.read().strip()
            if word.isdigit():
                self._seen[cpu].append(int(word) / 1e3)

    def _read_cpuinfo(self) -> None:
        cpu = -1
        for line in read_text(self._root / "proc/cpuinfo").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "processor":
                cpu = int(value)
            elif name.strip() == "cpu MHz" and cpu in self._seen:
                self._seen[cpu].append(float(value))

    def spread(self) -> dict[str, float]:
        """Median, min and max over all samples, MHz; empty if clocks cannot be read."""
        values = [value for seen in self._seen.values() for value in seen]
        if not values:
            return {}
        return {"median": float(np.median(values)), "min": min(values), "max": max(values)}

    def disturbances(self) -> list[str]:
        """Clocks that changed, and cores that ran slower than others of their kind."""
        seen = {cpu: np.array(mhz) for cpu, mhz in self._seen.items() if len(mhz) >= _MIN_CLOCKS}
        found = []
        ends = {cpu: np.quantile(mhz, (0.1, 0.9)) for cpu, mhz in seen.items()}
        changed = {cpu: (low, high) for cpu, (low, high) in ends.items() if low < CLOCK_DROP * high}
        if changed:
            low, high = min(changed.values(), key=lambda pair: pair[0] / pair[1])
            found.append(f"{name_cores(changed)} changed clocks: {low:.0f} to {high:.0f} MHz")
        for rated in sorted(set(self._rated.values())):
            mid = {cpu: float(np.median(seen[cpu])) for cpu in seen if self._rated[cpu] == rated}
            best = max(mid.values(), default=0.0)
            slow = {cpu: mhz for cpu, mhz in mid.items() if mhz < CLOCK_DROP * best}
            if slow:
                found.append(
                    f"{name_cores(slow)} ran at {min(slow.values()):.0f} MHz, others with the same "
                    f"rated clock at {best:.0f} MHz"
                )
        return found


def name_cores(cpus: Iterable[int]) -> str:
    """``core 3`` or ``cores 0,1``."""
    numbers = sorted(cpus)
    return f"{inflected(len(numbers), 'core')} {','.join(map(str, numbers))}"


def heat_counter(cpus: Sequence[int], root: Path = ROOT) -> EventCounter:
    """Counts how often heat throttled these CPUs (x86)."""
    folder = root / "sys/devices/system/cpu"
    # SMT siblings report the count of their core.
    return EventCounter(folder / f"cpu{cpu}/thermal_throttle/core_throttle_count" for cpu in cpus)


def memory_counter(root: Path = ROOT) -> EventCounter:
    """Counts the bytes that all cores transferred from and to memory, if resctrl is mounted."""
    folders = sorted((root / "sys/fs/resctrl/mon_data").glob("mon_L3_*"))
    return EventCounter(folder / "mbm_total_bytes" for folder in folders)


def siblings_of(cpus: Sequence[int], root: Path = ROOT) -> list[int]:
    """The SMT siblings of `cpus` that are not among them."""
    folder = root / "sys/devices/system/cpu"
    found: set[int] = set()
    for cpu in cpus:
        topology = folder / f"cpu{cpu}/topology"
        text = read_text(topology / "core_cpus_list") or read_text(
            topology / "thread_siblings_list"
        )
        found.update(parse_cpu_list(text))
    return sorted(found - set(cpus))
