"""The state of the machine while a run was measured."""

from __future__ import annotations

from dpeval.util.frozen import Frozen

MIN_ELAPSED_S = 1.0
"""In less time, the kernel's 10 ms ticks cannot resolve 1 %."""


class Conditions(Frozen):
    """The state of the machine, sampled from outside the ranks while they measured."""

    samples: int
    interval_s: float
    """Mean time between samples."""
    elapsed_s: float = 0.0
    """From the first sample to the last."""
    cpu_mhz: dict[str, float] = {}
    """Median, min and max over samples of the ranks' cores."""
    steal_share: float | None = None
    """Share of the time of the ranks' CPUs that the hypervisor gave to other guests (steal)."""
    interrupt_share: float | None = None
    """Share of the time of the ranks' CPUs spent on interrupts, including the ranks' own network
    traffic."""
    busy_share: dict[str, float] = {}
    """Per CPU of the ranks: share of its time in any process."""
    foreign_share: dict[str, float] = {}
    """Per CPU of the ranks: share of its time taken by other processes."""
    sibling_share: dict[str, float] = {}
    """Per SMT sibling of the ranks' CPUs that no rank uses: share taken by other processes."""
    taken_by: list[str] = []
    """Other processes that ran on the ranks' CPUs, the busiest first."""
    quota_share: float | None = None
    """Share of the time of the ranks' CPUs during which a cgroup quota throttled this job."""
    heat_events: int | None = None
    """How often heat throttled the ranks' cores."""
    context_switches_per_s: float | None = None
    """Context switches of the ranks' main threads, summed over ranks."""
    major_faults: int | None = None
    minor_faults_per_s: float | None = None
    """Summed over ranks, including those of the reference work. A fault takes about 2 µs: thousands
    in every step mean that the C library returns memory to the OS and faults it in again, which is
    part of the cost of training."""
    load_average: float | None = None
    memory_bytes_per_s: float | None = None
    """To and from memory, by all cores of the host."""
    gpus: dict[str, dict[str, float]] = {}
    """Per GPU: sm_mhz, temperature_c, power_w, throttled_share, foreign_processes, …"""
    energy_j: float | None = None
    """Between the first sample and the last; divide by `elapsed_s` for power."""
    energy_source: str = ""
    unreadable: list[str] = []
    """Readings that this machine does not provide."""
    bad: list[str] = []
    """One sentence for each condition that makes the figures less trustworthy."""

    @property
    def power_w(self) -> float | None:
        """Mean power; divided by the throughput in img/s it is the energy per image, J."""
        if self.energy_j is None or self.elapsed_s < MIN_ELAPSED_S:
            return None
        return self.energy_j / self.elapsed_s
